"""A table or a figure of the paper, from text to cells: rows, tasks and seeds, on a base of any size.

    python scripts/reproduce.py --study=experiments/table5.py --base=experiments/laptop.py --workdir=studies \\
        --config.task.corpus=corpus --data_dir=glue
    python scripts/reproduce.py --study=experiments/table7.py --base=PRETRAINED --workdir=studies --data_dir=conll

--config.a.b=VALUE changes the base, --tuning.a.b=VALUE all fine-tunings. Again goes on; on several machines that see
the workdir under one path, the runs are shared out. Ends in WORKDIR/NAME/{table.md,table.json,table.png,report.html}.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from absl import app, flags

from bert_jax import startup
from bert_jax.config import split_flags

STUDY = flags.DEFINE_string("study", None, "A Python file that defines STUDY.", required=True)
BASE = flags.DEFINE_string(
    "base", None, "A Python file that defines EXPERIMENT, or a directory of weights; default: the study's own."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where all runs and tables are kept; studies can share it.", required=True
)
DATA_DIR = flags.DEFINE_string(
    "data_dir", os.environ.get("BERT_JAX_DATA", ""), "Tasks' official files; default: $BERT_JAX_DATA."
)
CACHE_DIR = flags.DEFINE_string("cache_dir", "", "As of python -m bert_jax.")
SEEDS = flags.DEFINE_integer(
    "seeds", None, "Seeds of each fine-tuning; default: the study's.", lower_bound=1, upper_bound=10_000
)
PRETRAINING_SEEDS = flags.DEFINE_integer(
    "pretraining_seeds", None, "Seeds of each pre-training; default: the study's.", lower_bound=1, upper_bound=10_000
)
ROWS = flags.DEFINE_list("rows", [], "Only these rows, by name; quotes hold a name with a comma: '\"L/2, A/4\",L/4'.")
COLUMNS = flags.DEFINE_list("columns", [], "Only these columns, by name, with those that are not the paper's.")
TOGETHER = flags.DEFINE_integer("together", 1, "How many seeds of a fine-tuning share a program.", lower_bound=1)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "List the runs with FLOPs, predicted time and what is there; run none.")
LOG_TO = flags.DEFINE_enum("log_to", None, ["wandb"], "As of python -m bert_jax.")
startup.require_values(STUDY, BASE, WORKDIR)


def main(argv: list[str], changes: dict[str, str], tuning: dict[str, str]) -> int:
    """Exit codes as those of `python -m bert_jax`: 1 also where all was run that can be, and a run failed."""
    if len(argv) > 1:
        raise app.UsageError(f"too many arguments: {argv[1:]}; a flag's value follows an equals sign")
    import rich.console

    from bert_jax import files
    from bert_jax.studies import reproduce, results, study
    from bert_jax.training import metrics, train

    startup.keep_programs(CACHE_DIR.value)
    console = rich.console.Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    try:
        plan = study.select(
            study.load(STUDY.value), ROWS.value, COLUMNS.value, SEEDS.value or 0, PRETRAINING_SEEDS.value or 0
        )
        base = study.load_base(BASE.value or plan.base, changes, tuning)
        workdir = str(files.path(WORKDIR.value))
        where: dict[str, Any] = {"data_dir": DATA_DIR.value, "cache_dir": CACHE_DIR.value}
        if DRY_RUN.value:
            cells = study.plan(plan, base, workdir, DATA_DIR.value)
            reproduce.show(*reproduce.estimates(cells, **where), console, DATA_DIR.value)
            reproduce.check_pretrainings(cells)
            return 0
        hook = metrics.HOOKS[LOG_TO.value]() if LOG_TO.value else None
        found = reproduce.reproduce(plan, base, workdir, together=TOGETHER.value, on_metrics=hook, **where)
        home = files.path(workdir) / plan.name
        print((home / "table.md").read_text().split("## What the runs took")[0])
        print(f"{home / 'report.html'}")
        failed = results.failures(found)
        for run, why in failed.items():
            print(f"failed: {run}: {why}", file=sys.stderr)
        return 1 if failed else 0
    except train.Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signum
    except (ValueError, OSError) as error:
        if os.environ.get("BERT_JAX_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not startup.out_of_memory(error) or os.environ.get("BERT_JAX_TRACEBACK"):
            raise
        print(f"error: out of memory: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    startup.use_huge_pages()
    try:
        arguments, overrides = split_flags(sys.argv)
        arguments, tunings = split_flags(arguments, "tuning.")
    except ValueError as problem:
        sys.exit(f"error: {problem}")
    startup.run(lambda argv: main(argv, overrides, tunings), argv=arguments)
