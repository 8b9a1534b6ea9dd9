"""Studies: which runs a table takes, which it shares, and that each is a command of its own."""

import dataclasses
import json
import pathlib
import shlex
import shutil
import subprocess
from typing import Any

import pytest

from bert_jax import config, experiment
from bert_jax.config import override, split_flags
from bert_jax.studies import study
from bert_jax.studies.study import Cell, Column, Row, Run, Study
from bert_jax.training import planning
from bert_jax.weights import checkpoint
from tests.conftest import REPOSITORY

EXPERIMENTS = REPOSITORY / "experiments"
STUDIES = sorted(path for path in EXPERIMENTS.glob("*.py") if "\nSTUDY = " in path.read_text())
LAPTOP, BASE = str(EXPERIMENTS / "laptop.py"), str(EXPERIMENTS / "bert_base.py")


def planned(
    name: str, base: str = LAPTOP, rows: Any = (), columns: Any = (), tuning: Any = None, **more: Any
) -> list[Cell]:
    found = study.load(str(EXPERIMENTS / f"{name}.py"))
    found = study.select(found, rows, columns, more.pop("seeds", 0), more.pop("pretraining_seeds", 0))
    return study.plan(found, study.load_base(base, {"task.corpus": "corpus", **more}, tuning or {}), "work")


def cell(cells: list[Cell], row: str, column: str) -> Cell:
    (found,) = [one for one in cells if (one.row.name, one.column.name) == (row, column)]
    return found


def only(cells: list[Cell], row: str, column: str) -> Run:
    return cell(cells, row, column).runs[0, 0]


@pytest.mark.parametrize("file", STUDIES, ids=lambda path: path.stem)
def test_columns_are_in_percent_as_the_paper_s(file: pathlib.Path) -> None:
    """Scores are shares of 1 everywhere; a perplexity is what it is."""
    for column in study.load(str(file)).columns:
        assert column.scale == (1 if "perplexity" in column.figure else 100), column.name


def test_there_are_the_studies_of_the_paper() -> None:
    names = {"table5", "table6", "table7", "table8", "figure5", "masking_static_dynamic", "whole_word"}
    assert {path.stem for path in STUDIES} == names


@pytest.mark.parametrize("base", [LAPTOP, BASE])
@pytest.mark.parametrize("file", STUDIES, ids=lambda path: path.stem)
def test_every_study_is_planned_on_a_small_base_and_a_large(file: pathlib.Path, base: str) -> None:
    found = study.load(str(file))
    everything = [column.name for column in found.columns]
    cells = planned(file.stem, base, [row.name for row in found.rows], everything)
    assert found.name == file.stem
    assert len(cells) == len(found.rows) * len(everything)
    assert all(one.runs for one in cells)


@pytest.mark.parametrize("file", STUDIES, ids=lambda path: path.stem)
def test_every_run_is_a_command_of_its_own(file: pathlib.Path) -> None:
    """What the command line makes of the printed words is the study's experiment, field by field."""
    tuning = {"optimizer.weight_decay": "0.02"}
    for run in study.runs(planned(file.stem, tuning=tuning)):
        words = shlex.split(run.command("data"))
        assert words[:3] == ["python", "-m", "bert_jax"]
        rest, changes = split_flags(words[3:])
        flags = dict(word.removeprefix("--").split("=", 1) for word in rest)
        inner = {name: value for name, value in changes.items() if not name.startswith("encoder.")}
        if run.kind == "fine-tuning":
            assert inner.keys() == changes.keys(), "an encoder's change needs the run that it starts from"
            assert flags["data_dir"] == f"data/{run.folder}"
        assert config.to_dict(override(experiment.load(flags["config"]), changes)) == config.to_dict(run.experiment)
        assert flags["workdir"] == run.workdir


@pytest.mark.parametrize("workdir", ["work", "two words"])
def test_seeds_are_a_loop_of_the_shell(workdir: str) -> None:
    cells = study.plan(
        study.select(study.load(str(EXPERIMENTS / "figure5.py"))), study.load_base(LAPTOP, {}, {}), workdir
    )
    found = study.runs(cells)
    lines = study.commands(found, "data")
    assert (len(lines) < len(found) / 2) == (" " not in workdir)  # a quoted $seed would stay one
    script = "\n".join(["python() { printf '%s\\n' \"python $*\"; }", *lines])
    said = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == [" ".join(shlex.split(run.command("data"))) for run in found]


def test_rows_and_studies_share_what_is_the_same() -> None:
    table5, figure5, table8 = planned("table5"), planned("figure5"), planned("table8")
    left, on_top = (only(table5, row, "QNLI") for row in ("LTR & No NSP", "+ BiLSTM"))
    assert left.after == on_top.after
    assert left.workdir != on_top.workdir
    bert = only(table5, "BERT", "MNLI-m")
    assert only(figure5, "MLM, 100%", "MNLI-m").workdir == bert.workdir == only(table8, "80/10/10", "MNLI-m").workdir
    assert only(figure5, "LTR, 20%", "MNLI-m").after.workdir == left.after.workdir
    pretrainings = {run.workdir for run in study.runs([*table5, *figure5, *table8]) if run.kind == "pre-training"}
    assert len(pretrainings) == 3 + 5


@pytest.mark.parametrize(
    ("value", "text", "kind"),
    [
        (True, "true", bool),
        (None, "none", int | None),
        (1e-3, "0.001", float),
        ((1, 2), "(1, 2)", tuple[int, ...]),
        (("a", "b"), "(a, b)", tuple[str, ...]),
    ],
    ids=str,
)
def test_how_a_value_is_spelled(value: Any, text: str, kind: Any) -> None:
    assert config.spelled(value) == text
    assert config.parse(text, kind, "x") == value


def test_runs_come_after_what_they_start_from() -> None:
    seen: set[str] = set()
    for run in study.runs(planned("table5")):
        assert run.after is None or run.after.workdir in seen
        assert run.workdir not in seen
        seen.add(run.workdir)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"every.log": 7}, True),
        ({"encoder.scan": True}, True),
        ({"mesh.fsdp": 4}, True),
        ({"encoder.layers": 3}, False),
        ({"task.masking.rate": 0.3}, False),
        ({"optimizer.learning_rate": 2e-3}, False),
    ],
)
def test_a_run_is_named_by_what_its_result_depends_on(changes: dict[str, Any], same: bool) -> None:
    here, there = (only(planned("table5", **more), "BERT", "QNLI") for more in ({}, changes))
    assert (here.after.workdir == there.after.workdir) == same
    assert (here.workdir == there.workdir) == same


def test_where_the_workdir_lies_does_not_count() -> None:
    plan = study.select(study.load(str(EXPERIMENTS / "table5.py")))
    here, there = (study.runs(study.plan(plan, study.load_base(LAPTOP, {}, {}), at)) for at in ("/here", "/else/there"))
    assert [run.name for run in here] == [run.name for run in there]


def test_seeds_of_pre_training_and_of_fine_tuning_are_counted_apart() -> None:
    runs = cell(planned("table5", seeds=4, pretraining_seeds=2), "BERT", "QNLI").runs
    assert set(runs) == {(p, s) for p in range(2) for s in range(4)}
    assert {run.after.experiment.seed for run in runs.values()} == {0, 1}
    assert all(run.experiment.seed == s and run.after.experiment.seed == p for (p, s), run in runs.items())
    assert len({run.workdir for run in runs.values()}) == 8
    assert len({pathlib.Path(run.workdir).parent for run in runs.values()}) == 2
    assert len({pathlib.Path(run.after.workdir).parent for run in runs.values()}) == 1
    perplexity = cell(planned("table6", seeds=4, pretraining_seeds=2), "L/2", "perplexity").runs
    assert set(perplexity) == {(0, 0), (1, 0)}


def test_no_row_differs_from_the_base_in_more_than_it_says() -> None:
    base = experiment.load(LAPTOP)
    expected = {
        "BERT": set(),
        "No NSP": {"task.next_sentence"},
        "No NSP, one document": {"task.next_sentence", "task.input_format"},
        "LTR & No NSP": {
            "task.next_sentence",
            "task.objective",
            "encoder.direction",
            "encoder.classify_from",
        },
    }
    cells = planned("table5", rows=list(expected), columns=["QNLI"])
    for row, fields in expected.items():
        run = only(cells, row, "QNLI").after
        lines = config.differences(config.to_dict(base), config.to_dict(run.experiment))
        assert {line.split(":")[0] for line in lines} - {"task.corpus", "every.keep_every"} == fields


def test_the_sizes_of_table_6_are_the_paper_s_on_bert_base() -> None:
    cells = planned("table6", BASE)
    sizes = [
        (e.layers, e.hidden, e.heads, e.feed_forward)
        for one in cells
        if one.column.name == "perplexity"
        for e in [one.runs[0, 0].experiment.encoder]
    ]
    paper = [(12, 768, 12), (3, 768, 12), (6, 768, 3), (6, 768, 12), (12, 1024, 16), (24, 1024, 16)]
    assert sizes == [(*size, 4 * size[1]) for size in paper]


def test_figure_5_starts_at_checkpoints_that_are_kept() -> None:
    cells = planned("figure5")
    steps = [one.runs[0, 0].experiment.init_step for one in cells]
    assert steps == [1200, 2400, 3600, 4800, None] * 2
    every = cells[0].runs[0, 0].after.experiment.every
    assert all(step % every.keep_every == 0 for step in steps if step)
    assert every.keep_every % every.checkpoint == 0
    with pytest.raises(ValueError, match="cannot be cut into 10 equal parts"):
        planned("figure5", **{"phases.0.steps": 4_001})
    with pytest.raises(ValueError, match="phases steps, not epochs"):
        planned("figure5", **{"phases.0.steps": 0, "phases.0.epochs": 1, "phases.1.steps": 0, "phases.1.epochs": 1})


@pytest.mark.parametrize(
    ("steps", "checkpoint", "kept", "often"),
    [
        (1_000_000, 10_000, 100_000, 10_000),
        (1_000_000, 0, 100_000, 100_000),
        (1_000_000, 250_000, 100_000, 100_000),
        (1_000_000, 30_000, 100_000, 25_000),
        (4_000, 600, 400, 400),
        (4_001, 600, 0, 600),
        (1_000_030, 10_000, 0, 10_000),  # a tenth is a prime
    ],
)
def test_whichever_study_is_first_the_checkpoints_of_all_are_kept(
    steps: int, checkpoint: int, kept: int, often: int
) -> None:
    """As often as the base saves, or oftener: what a preemption costs is not more for it."""
    one = {"phases.0.steps": steps // 2, "phases.1.steps": steps - steps // 2, "every.checkpoint": checkpoint}
    found: dict[str, config.Every] = {}
    for name in ("table5", "figure5") if kept else ("table5",):
        for run in study.runs(planned(name, **one)):
            if run.kind == "pre-training":
                every = run.experiment.every
                assert (every.keep_every, every.checkpoint, every.keep) == (kept, often, 10)
                assert found.setdefault(run.workdir, every) == every


def test_of_a_pre_training_whose_steps_are_not_known_the_newest_are_kept() -> None:
    mixed = planned("table5", **{"phases.1.steps": 0, "phases.1.epochs": 1})
    assert mixed[0].runs[0, 0].after.experiment.every.keep_every == 0


def test_where_no_number_of_steps_divides_a_tenth_checkpoints_lie_there_alone() -> None:
    run = only(planned("figure5", **{"phases.0.steps": 1_000_000, "phases.1.steps": 30}), "MLM, 20%", "MNLI-m").after
    assert (run.experiment.every.checkpoint, run.experiment.every.keep_every) == (100_003, 100_003)


def test_checkpoints_lie_at_shares_of_the_row_s_own_steps() -> None:
    half = {"phases.0.steps": 1_000, "phases.1.steps": 1_000}
    plan = dataclasses.replace(study.load(str(EXPERIMENTS / "figure5.py")), rows=(Row("half", half, at=0.4),))
    (one,) = study.plan(study.select(plan, seeds=1), study.load_base(LAPTOP, {}, {}), "work")
    run = one.runs[0, 0]
    assert (run.experiment.init_step, run.after.experiment.every.keep_every) == (800, 200)


def test_runs_are_named_by_the_content_of_their_data(
    corpus: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(corpus, "corpus")
    pathlib.Path("link").symlink_to("corpus")
    for name in ("train", "dev"):
        pathlib.Path("data/glue/QNLI").mkdir(parents=True, exist_ok=True)
        pathlib.Path(f"data/glue/QNLI/{name}.tsv").write_text("rows")
    plan = study.select(study.load(str(EXPERIMENTS / "table5.py")), ["BERT"], ["QNLI"], 1)

    def names(corpus: str, data_dir: str) -> tuple[str, str]:
        base = study.load_base(LAPTOP, {"task.corpus": corpus}, {})
        run = only(study.plan(plan, base, "work", data_dir), "BERT", "QNLI")
        return run.after.name, run.name

    before, tuned = names("corpus", "data")
    written = [names(c, d) for c in ("./corpus", "link", str(tmp_path / "corpus")) for d in ("./data", "data/../data")]
    assert set(written) == {(before, tuned)}
    pathlib.Path("data/glue/QNLI/dev.tsv").write_text("more rows")
    assert names("corpus", "data")[0] == before
    assert names("corpus", "data")[1] != tuned
    manifest = json.loads(pathlib.Path("corpus/manifest.json").read_text())
    pathlib.Path("corpus/manifest.json").write_text(json.dumps({**manifest, "sources": []}))
    pathlib.Path("data/glue/QNLI/dev.tsv").write_text("rows")
    other, after = names("corpus", "data")
    assert other != before
    assert after != tuned
    assert names("absent", "absent")  # a plan needs no data


def test_weights_that_are_there_are_known_by_content(tiny: experiment.Experiment, tmp_path: pathlib.Path) -> None:
    weights = _made(tmp_path / "weights")
    experiment.record(tiny, str(weights))
    checkpoint.write_params(str(weights), {"encoder": {"kernel": [1.0]}})
    shutil.copytree(weights, tmp_path / "copy")
    before = [run.name for run in study.runs(planned_from(weights))]
    assert [run.name for run in study.runs(planned_from(tmp_path / "copy"))] == before
    checkpoint.write_params(str(weights), {"encoder": {"kernel": [2.0]}}, 1)
    assert not {run.name for run in study.runs(planned_from(weights))} & set(before)


def test_a_row_costs_a_line() -> None:
    table8 = study.load(str(EXPERIMENTS / "table8.py"))
    more = dataclasses.replace(table8, rows=(*table8.rows, Row("mask rate 40%", {"task.masking.rate": 0.4})))
    cells = study.plan(study.select(more), study.load_base(LAPTOP, {}, {}), "work")
    run = only(cells, "mask rate 40%", "NER").after
    assert run.experiment.task.masking == config.Masking(rate=0.4)


def test_what_a_fine_tuning_is_made_of() -> None:
    """The recipe of a file; then the base's for all, the column's, the base's for it, the row's, the command line's."""
    cells = planned("table8", columns=["NER", "NER features"])
    tuned, frozen = (only(cells, "80/10/10", name).experiment for name in ("NER", "NER features"))
    assert tuned.optimizer.learning_rate == 3e-4  # of the base's file, where conll2003.py has 5e-5
    assert not tuned.task.document  # of the base's file, for this recipe
    assert not frozen.task.document
    assert frozen.optimizer.learning_rate == 1e-3  # the column's own
    assert frozen.task.bilstm.width == 128  # as wide as the base
    given = study.load_base(LAPTOP, {}, {})
    own = {name: {"optimizer.weight_decay": decay} for name, decay in (("", 0.3), ("conll2003", 0.4))}
    for fine_tuning, decay in (({}, 0.5), ({"": own[""]}, 0.5), (own, 0.4)):
        column = Column("NER features", str(EXPERIMENTS / "conll2003.py"), {"optimizer.weight_decay": 0.5})
        plan = Study("s", "", (Row("r"),), (column,))
        (one,) = study.plan(plan, dataclasses.replace(given, fine_tuning=fine_tuning), "work")
        assert one.runs[0, 0].experiment.optimizer.weight_decay == decay
    loud = planned("table8", columns=["NER features"], tuning={"optimizer.learning_rate": "0.5"})
    assert only(loud, "80/10/10", "NER features").experiment.optimizer.learning_rate == 0.5


def test_weights_that_are_there_stand_for_a_base(tiny: experiment.Experiment, tmp_path: pathlib.Path) -> None:
    weights = tmp_path / "weights"
    experiment.record(planning.resolve(override(tiny, {"encoder.layers": 4})), str(_made(weights)))
    checkpoint.write_params(str(weights), {"encoder": {}})
    cells = planned_from(weights)
    runs = study.runs(cells)
    assert {run.kind for run in runs} == {"fine-tuning"}
    assert {run.experiment.init_from for run in runs} == {str(weights)}
    with pytest.raises(ValueError, match="row 'No NSP': it needs a pre-training of its own"):
        planned_from(weights, "table5")
    with pytest.raises(ValueError, match=r"whose pre-training is over: task\.corpus cannot change"):
        study.load_base(str(weights), {"task.corpus": "elsewhere"}, {})


def test_a_base_that_starts_from_weights_has_their_encoder(tiny: experiment.Experiment, tmp_path: pathlib.Path) -> None:
    """A study of further pre-training: no change of an encoder, on either side, is one of BERT-Base's."""
    weights = tmp_path / "weights"
    experiment.record(tiny, str(_made(weights)))
    (tmp_path / "base.py").write_text(
        "from bert_jax import config\nfrom bert_jax.experiment import Experiment\n"
        f"EXPERIMENT = Experiment(init_from={str(weights)!r}, phases=(config.Phase(length=16, steps=2),))"
    )
    base = study.load_base(str(tmp_path / "base.py"), {"encoder.dropout": "0.2"}, {"encoder.attention_dropout": "0.3"})
    rows = (Row("plain"), Row("other", {"encoder.init_stddev": 0.5}))
    plan = Study("s", "", rows, (Column("c", str(EXPERIMENTS / "rte.py"), {"phases.0.length": 16}),), seeds=1)
    expected = override(tiny.encoder, {"dropout": 0.2})
    plain, other = (one.runs[0, 0] for one in study.plan(plan, base, "work"))
    assert plain.after.experiment.encoder == expected
    assert other.after.experiment.encoder == override(expected, {"init_stddev": 0.5})
    assert plain.experiment.encoder == override(expected, {"attention_dropout": 0.3})


def planned_from(weights: pathlib.Path, name: str = "table7") -> list[Cell]:
    found = study.select(study.load(str(EXPERIMENTS / f"{name}.py")))
    return study.plan(found, study.load_base(str(weights), {}, {}), "work")


def _made(folder: pathlib.Path) -> pathlib.Path:
    folder.mkdir()
    return folder


def test_wrong_names_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="has no 'No NPS': did you mean 'No NSP'"):
        planned("table5", rows=["No NPS"])
    with pytest.raises(ValueError, match="has no 'SST2': did you mean 'SST-2'"):
        planned("table5", columns=["SST2"])
    with pytest.raises(ValueError, match="two rows of s have one name"):
        Study("s", "", rows=(Row("a"), Row("a")), columns=(Column("c"),))
    with pytest.raises(ValueError, match="has the paper's figure of 'd'"):
        Study("s", "", rows=(Row("a", paper={"d": 1.0}),), columns=(Column("c"),))
    with pytest.raises(ValueError, match=r"at must lie in \(0, 1\]"):
        Study("s", "", rows=(Row("a", at=0.0),), columns=(Column("c"),))
    with pytest.raises(ValueError, match="must define STUDY"):
        study.load(LAPTOP)
    with pytest.raises(ValueError, match="there is no file"):
        study.load(str(tmp_path / "none.py"))
