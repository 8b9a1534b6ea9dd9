"""What people see of a study: the marks of a cell, files that hold all, a page that stands by itself."""

import dataclasses
import json
import math
import pathlib
import re

import matplotlib.image
import pytest

from bert_jax.studies import report, results, study
from bert_jax.studies.results import Comparison, Result
from bert_jax.studies.study import Base, Cell, Column, Row, Study
from tests.conftest import REPOSITORY
from tests.studies.test_results import cells

TUNED = {"step": 10, "tokens": 12_345, "flops": 6.5e9, "seconds": 3.2, "device": "1 x cpu", "metric": "accuracy"}


@pytest.mark.parametrize(
    ("values", "against", "expected"),
    [
        ([84.0, 85.0], None, "84.5 ± 0.7 [84.4]"),
        ([84.0, 85.0], Comparison(1.0, 0.3, 2, "fine-tuning seeds"), "84.5 ± 0.7 ≈ [84.4]"),
        ([84.0, 85.0], Comparison(1.0, 0.01, 2, "fine-tuning seeds"), "84.5 ± 0.7 * [84.4]"),
        ([84.0], Comparison(1.0, math.nan, 1, "fine-tuning seeds"), "84.0 ? (1 of 2; 1 not yet run) [84.4]"),
        ([], None, "not yet run [84.4]"),
    ],
)
def test_a_cell(tmp_path: pathlib.Path, values: list[float], against: Comparison | None, expected: str) -> None:
    (cell,) = cells(tmp_path, {("row", "column"): [{}, {}]})
    one = Result(cell, {(0, n): value for n, value in enumerate(values)}, (), against)
    assert report.text(one) == expected


def test_a_collapsed_run_is_named_so(tmp_path: pathlib.Path) -> None:
    (cell,) = cells(tmp_path, {("row", "column"): [{}]})
    assert "1 collapsed" in report.text(Result(cell, {(0, 0): 50.0}, ((0, 0),), None))


def test_what_failed_is_told_from_what_is_not_run_yet(tmp_path: pathlib.Path) -> None:
    figures = {("row", "some"): [{"score": 0.8}, {}, {}], ("row", "none"): [{}, {}, {"mcc": 1.0}]}
    found = cells(tmp_path / "runs", figures)
    for cell in found:
        broken = pathlib.Path(cell.runs[0, 1].workdir)
        (broken / "failed.json").write_text('{"error": "the loss is <no> number at step 3", "time": 1.0}')
    collected = results.collect(found)
    assert [report.text(one) for one in collected] == [
        "80.0 (1 of 3; 1 failed, 1 not yet run) [84.4]",
        "1 failed, 1 not yet run, 1 without this figure [84.4]",
    ]
    plan = Study("s", "A study", (found[0].row,), tuple(cell.column for cell in found), seeds=3)
    base = Base("base.py", found[0].runs[0, 0].experiment, {}, {}, {})
    report.write(plan, base, collected, tmp_path / "out")
    values = json.loads((tmp_path / "out" / "table.json").read_text())
    why = "the loss is <no> number at step 3"
    assert [cell["failed"] for cell in values["cells"]] == [{"0,1": why}] * 2
    states = [run["state"] for run in values["runs"].values()]
    assert states == ["done", "failed", "to run", "to run", "failed", "done"]
    text = (tmp_path / "out" / "table.md").read_text()
    assert f"- {found[0].runs[0, 1].workdir}: {why}" in text
    assert text.index("## Runs that failed") < text.index("## What the runs took"), "where the command prints it"
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("the loss is &lt;no&gt; number at step 3") == 4
    assert "<h2>Runs that failed</h2>" in page


@pytest.fixture
def written(tmp_path: pathlib.Path) -> pathlib.Path:
    """The files of a study of two rows and two columns, of which one run is missing; names hold signs of HTML."""
    figures = {
        ("a <b>", "one"): [{**TUNED, "score": 0.81, "majority": 0.5}, {**TUNED, "score": 0.84}],
        ("a <b>", "two"): [{**TUNED, "metric": "f1", "majority": 0.6, "f1": 0.5}, {**TUNED, "f1": 0.6}],
        ("c & d", "one"): [{**TUNED, "score": 0.71}, {**TUNED, "score": 0.75}],
        ("c & d", "two"): [{**TUNED, "f1": 0.4}, {}],
    }
    found = cells(tmp_path / "runs", figures)
    columns = {cell.column.name: cell.column for cell in found}
    rows = {cell.row.name: cell.row for cell in found}
    columns["two"] = dataclasses.replace(columns["two"], experiment="two.py", changes={"phases.0.length": 64})
    rows["c & d"] = dataclasses.replace(rows["c & d"], pretraining={"task.masking.rate": 0.4})
    rows = {name: dataclasses.replace(row, paper={"one": 84.4, "two": 84.4}) for name, row in rows.items()}
    found = [Cell(rows[cell.row.name], columns[cell.column.name], cell.runs) for cell in found]
    plan = Study("s", "A study", tuple(rows.values()), tuple(columns.values()), seeds=2)
    base = Base("base.py", found[0].runs[0, 0].experiment, {"task.corpus": "c"}, {}, {"phases.0.steps": 7})
    report.write(plan, base, results.collect(found), tmp_path / "out", "data")
    return tmp_path / "out"


def test_the_table_in_markdown(written: pathlib.Path) -> None:
    text = (written / "table.md").read_text()
    lines = text.splitlines()
    made = (
        "Base: base.py; pre-trained with task.corpus=c; fine-tuned with phases.0.steps=7. Seeds: 1 of pre-training, 2"
    )
    assert any(line.startswith(made) for line in lines)
    assert "| | one | two |" in lines
    assert "| a <b> | 82.5 ± 2.1 [84.4] | 55.0 ± 7.1 [84.4] |" in lines
    assert re.search(
        r"\| c & d \| 73\.0 ± 2\.8 [*≈] \[84\.4\] \| 40\.0 \? \(1 of 2; 1 not yet run\) \[84\.4\] \|", text
    )
    assert "| always the largest class | 50.0 | accuracy 60.0 |" in lines
    assert "- c & d: task.masking.rate: 0.4" in lines
    assert "- a <b>: the base as it is" in lines
    assert "- two: two.py; figure: f1; phases.0.length: 64" in lines
    done = "7 of 8 runs are done, 1 not yet run. They took 4.55e+10 FLOPs and 0.01 hours in steps, on 1 x cpu."
    assert done in lines
    assert re.search(r"^Written [-\d]+ [:\d]+ UTC by bert_jax .*, JAX .*, Python ", text, flags=re.MULTILINE)
    assert "| 10 | 12,345 | 6.5e+09 | 3 | 3,858 | - | 1 x cpu |" in text
    assert text.count("python -m bert_jax --config=file.py") == 8
    assert "Runs that failed" not in text


def test_mfu_is_of_all_chips(tmp_path: pathlib.Path) -> None:
    took = {**TUNED, "flops": 989e12, "seconds": 2.0, "device": "4 x NVIDIA H100 80GB HBM3"}
    (cell,) = cells(tmp_path, {("row", "column"): [took]})
    assert report.cost(cell.runs[0, 0])["mfu"] == pytest.approx(1 / 8)


def test_the_table_in_json(written: pathlib.Path) -> None:
    values = json.loads((written / "table.json").read_text())
    cell = values["cells"][2]
    assert (cell["row"], cell["column"], cell["n"], cell["of"], cell["paper"]) == ("c & d", "one", 2, 2, 84.4)
    assert cell["values"] == {"0,0": 71.0, "0,1": 75.0}
    assert cell["against_first_row"]["difference"] == pytest.approx(-9.5)
    assert values["cells"][3]["against_first_row"]["p"] is None
    run = values["runs"][cell["runs"][0]]
    assert run["config"]["is"] == "Experiment"
    assert run["flops"] == 6.5e9


def test_the_page_needs_no_other_file(written: pathlib.Path) -> None:
    page = (written / "report.html").read_text()
    assert "a &lt;b&gt;" in page
    assert "<b>" not in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "data:image/png;base64," in page
    assert "<dt>less the first row</dt><dd>-9.50; " in page
    assert page.count("<details>") == 4 + 2 * 8, "cells, runs and their configs"
    table = page[page.index("<table>") : page.index("</table>")]
    assert "<details>" not in table
    assert "c &amp; d<small>task.masking.rate: 0.4</small>" in table.replace("<wbr>", "")
    places = re.findall(r'href="#(\w+)"', table)
    assert len(places) == len(set(places)) == 4
    assert re.findall(r'<details><summary>[^<]*</summary><div id="(\w+)">', page) == places


def test_the_picture_is_drawn(written: pathlib.Path) -> None:
    picture = matplotlib.image.imread(written / "table.png")
    assert picture.shape[0] > 300
    assert len({tuple(pixel) for pixel in picture[:, :, :3].reshape(-1, 3)[::7].tolist()}) > 20


def test_a_figure_has_a_line_for_each_kind_of_row(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [(line, at) for line in "ab" for at in (0.5, 1.0)]
    found = cells(tmp_path, {(f"{line} {at}", "one"): [{"score": at}] for line, at in points})
    rows = [Row(cell.row.name, at=at, line=line) for cell, (line, at) in zip(found, points, strict=True)]
    column = Column("one")
    plan = Study("s", "A figure", tuple(rows), (column,), seeds=1)
    drawn = {}
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, *a, **k: drawn.update(figure=self))
    placed = [Cell(row, column, cell.runs) for row, cell in zip(rows, found, strict=True)]
    report.draw(plan, results.collect(placed), tmp_path / "f.png")
    (panel,) = drawn["figure"].axes
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["a", "b"]
    assert [list(one.lines[0].get_xdata()) for one in panel.containers] == [[0.5, 1.0]] * 2
    assert [list(one.lines[0].get_ydata()) for one in panel.containers] == [[50.0, 100.0]] * 2
    tests = [one.against for one in results.collect(placed)]
    assert tests[:2] == [None, None], "points of the first line"
    assert [test.difference for test in tests[2:]] == [0.0, 0.0], "each against the one above or below it"


def test_curves_are_named_by_the_rows_that_stand_on_them() -> None:
    plan = study.select(study.load(str(REPOSITORY / "experiments" / "table5.py")))
    for seeds, labels in ((1, ["BERT", "No NSP", "LTR & No NSP"]), (2, ["BERT, seed 0", "BERT, seed 1"])):
        plan = study.select(plan, pretraining_seeds=seeds)
        cells = study.plan(plan, study.load_base(str(REPOSITORY / "experiments" / "laptop.py"), {}, {}), "work")
        assert list(report._pretrainings(results.collect(cells)))[: len(labels)] == labels


def test_the_legend_names_the_marks_that_the_table_has(tmp_path: pathlib.Path) -> None:
    figures = {("a", "one"): [{**TUNED, "score": 0.8, "majority": 0.5}], ("b", "one"): [{**TUNED, "score": 0.7}]}
    found = cells(tmp_path, figures)
    plan = Study("s", "A study", tuple(cell.row for cell in found), (found[0].column,))
    said = " ".join(report.legend(plan, results.collect(found)))
    assert all(mark in said for mark in ("≈", "*", "?", "±", "[brackets]", "largest class"))
    assert not any(mark in said for mark in ("begun", "collapsed", "first line"))
    alone = [dataclasses.replace(one, cell=one.cell._replace(row=Row("a"))) for one in results.collect(found)[:1]]
    said = " ".join(report.legend(dataclasses.replace(plan, rows=(Row("a", line="x"),)), alone))
    assert "first line" in said
    assert not any(mark in said for mark in ("≈", "[brackets]"))
    collapsed = [dataclasses.replace(alone[0], collapsed=((0, 0),))]
    assert "collapsed" in " ".join(report.legend(plan, collapsed))


def test_the_paper_has_panels_where_it_has_figures(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its differences from the first row and ours, on one scale."""
    names = [(row, column) for row in ("first", "second") for column in ("one", "two")]
    figures = {name: [{"score": 0.8 - 0.1 * (name[0] == "second"), "f1": 0.6}] * 2 for name in names}
    found = cells(tmp_path, figures)
    rows = {"first": Row("first", paper={"one": 84.4}), "second": Row("second", paper={"one": 83.4})}
    columns = {cell.column.name: cell.column for cell in found}
    found = [Cell(rows[cell.row.name], columns[cell.column.name], cell.runs) for cell in found]
    plan = Study("s", "A study", tuple(rows.values()), tuple(columns.values()), seeds=2)
    drawn = {}
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, *a, **k: drawn.update(figure=self))
    report.draw(plan, results.collect(found), tmp_path / "f.png")
    panels = {panel.get_title(): panel for panel in drawn["figure"].axes}
    assert list(panels) == ["one", "two", "one, less the first row"]
    panel = panels["one, less the first row"]
    legend, handles = panel.get_legend_handles_labels()[::-1]
    assert legend == ["the paper's", "ours"]
    assert list(handles[0].get_ydata()) == [0.0, pytest.approx(-1.0)]
    assert list(handles[1].lines[0].get_ydata()) == [pytest.approx(-10.0)]


def test_fine_tuning_curves_are_on_the_page(tmp_path: pathlib.Path) -> None:
    """A panel for each column: training losses, and scores where there are several."""
    found = cells(tmp_path / "runs", {(row, "one"): [{**TUNED, "score": 0.8}] * 2 for row in ("a", "b")})
    for cell in found:
        for run in cell.runs.values():
            lines = [{"step": step, "split": "train", "loss": 1 / step} for step in (1, 2, 3)]
            lines += [{"step": step, "split": "validation", "accuracy": step / 4} for step in (2, 3)]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (pathlib.Path(run.workdir) / "metrics.jsonl").write_text(text)
    base = Base("base.py", found[0].runs[0, 0].experiment, {}, {}, {})
    plan = Study("s", "A study", tuple(cell.row for cell in found), (found[0].column,), seeds=2)
    found = [Cell(cell.row, plan.columns[0], cell.runs) for cell in found]
    report.write(plan, base, results.collect(found), tmp_path / "out")
    assert "<h2>Fine-tuning</h2>" in (tmp_path / "out" / "report.html").read_text()
    picture = matplotlib.image.imread(tmp_path / "out" / "fine_tuning.png")
    assert len({tuple(pixel) for pixel in picture[:, :, :3].reshape(-1, 3)[::7].tolist()}) > 20


def test_a_run_s_versions_and_data_stand_in_table_and_page(tmp_path: pathlib.Path) -> None:
    began = {"bert_jax": "1.0", "jax": "0.1", "python": "3.11", "commit": "ab" * 20, "date": "2026-01-02T03:04:05Z"}
    ended = {**began, "bert_jax": "1.1", "date": "2026-01-03T03:04:05Z"}
    result = {
        **TUNED,
        "score": 0.8,
        "began": began,
        "ended": ended,
        "data": {"init_from": "0123", "task.train": "4567"},
    }
    (cell,) = cells(tmp_path / "runs", {("row", "one"): [result]})
    base = Base("base.py", cell.runs[0, 0].experiment, {}, {}, {})
    report.write(Study("s", "S", (cell.row,), (cell.column,)), base, results.collect([cell]), tmp_path / "out")
    values = json.loads((tmp_path / "out" / "table.json").read_text())
    (run,) = values["runs"].values()
    assert {name: run[name] for name in ("began", "ended", "data")} == {
        name: result[name] for name in ("began", "ended", "data")
    }
    assert values["written"]["python"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<dt>ended</dt><dd>2026-01-03T03:04:05Z, bert_jax 1.1 (commit ababababab), JAX 0.1, Python 3.11</dd>" in page
    assert "<dt>data of init_from</dt><dd>0123</dd>" in page
