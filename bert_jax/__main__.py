"""`python -m bert_jax --config=FILE --workdir=DIR`: pre-train or fine-tune; the same command again goes on.

Any field of the experiment is a flag: --config.encoder.layers=4 --config.task.masking.whole_word=true
--config.phases.0.steps=1000. Example, on the machine's own documentation (scripts/quickstart does this and more):

    python -m bert_jax --config=experiments/bert_laptop.py --workdir=run --config.task.corpus=corpus

Several seeds, and a grid of values, in one call; each run has a workdir of its own below --workdir:

    python -m bert_jax --config=experiments/mrpc.py --workdir=sweep --seeds=3 --grid=experiments/grids/paper.py

--show prints the experiment, all its fields, its parameters, steps and FLOPs, and runs nothing:

    python -m bert_jax --config=experiments/bert_large.py --show
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from bert_jax import startup
from bert_jax.config import require, split_flags

_CONFIG = flags.DEFINE_string(
    "config", None, "The experiment: a Python file that defines EXPERIMENT, or the name of one of ours.", required=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run is kept; local or gs://.")
_SHOW = flags.DEFINE_bool("show", False, "Print the experiment, all its fields, and what it takes; run nothing.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir", os.environ.get("BERT_JAX_DATA", ""), "Tasks' official files; default: $BERT_JAX_DATA."
)
_CACHE_DIR = flags.DEFINE_string(
    "cache_dir", "", "What runs share, and may be deleted; default: $BERT_JAX_CACHE, else ~/.cache/bert_jax."
)
_STOP_AT = flags.DEFINE_integer(
    "stop_at", 0, "Stop after so many steps in all, with a checkpoint; 0: at the end.", lower_bound=0
)
_PROFILE = flags.DEFINE_string("profile", "", "START:STOP: writes a trace of these steps for XProf to WORKDIR/profile.")
_SEEDS = flags.DEFINE_integer(
    "seeds",
    1,
    "Run so many seeds, from the experiment's on; prints mean and spread.",
    lower_bound=1,
    upper_bound=10_000,
)
_GRID = flags.DEFINE_string("grid", None, "Run a grid: a Python file that defines GRID, values by field.")
_TOGETHER = flags.DEFINE_integer(
    "together", 1, "Of --seeds and --grid: how many runs share a program, side by side.", lower_bound=1
)
_KEEP = flags.DEFINE_enum("keep", "best", ["best", "all"], "Of --seeds and --grid: whose checkpoints stay.")
_LOG_TO = flags.DEFINE_enum(
    "log_to", None, ["wandb"], "Where each line of metrics.jsonl goes, too: Weights & Biases (extra wandb)."
)
_MULTIHOST = flags.DEFINE_bool("multihost", False, "One process of several: see hosts.py.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, where the platform does not know it.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are, likewise.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process", None, "The number of this one, from 0, likewise.", lower_bound=0)
startup.require_values(_CONFIG, _WORKDIR, _GRID, _COORDINATOR)
flags.register_multi_flags_validator(
    [_WORKDIR, _SHOW], lambda given: given["show"] or given["workdir"] is not None, "--workdir=DIR is needed"
)


def main(argv: Sequence[str], changes: dict[str, str]) -> int:
    """Exit codes: 0 done, 1 an error that stands on stderr, 128 + n stopped by signal n with the state saved.

    Of several runs 1 also where one failed, after all others were made.
    """
    if len(argv) > 1:
        raise app.UsageError(f"too many arguments: {argv[1:]}; a flag's value follows an equals sign")
    from bert_jax import experiment
    from bert_jax.studies import sweep
    from bert_jax.training import describe, hosts, metrics, planning, train  # --help needs no JAX

    startup.keep_programs(_CACHE_DIR.value)
    if _MULTIHOST.value:
        hosts.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    try:
        workdir = _WORKDIR.value or ""  # none with --show alone
        chosen = planning.configured(experiment.load(_CONFIG.value), changes, workdir)
        if _SHOW.value:
            chosen = planning.resolve(chosen, workdir)
            print(describe.text(chosen, describe.work(chosen, _DATA_DIR.value, _CACHE_DIR.value)))
            return 0
        need, there = experiment.least_bytes(chosen), startup.memory()
        require(
            need <= there, f"this takes {need:,} bytes of memory at the very least; there are {there:,}. {_SMALLER}"
        )
        where: dict[str, Any] = {"data_dir": _DATA_DIR.value, "cache_dir": _CACHE_DIR.value}
        where["on_metrics"] = metrics.HOOKS[_LOG_TO.value]() if _LOG_TO.value else None
        profile = _steps(_PROFILE.value)
        if _SEEDS.value != 1 or _GRID.value:
            require(profile is None, "--profile is for one run: leave out --seeds and --grid")
            grid = sweep.load_grid(_GRID.value) if _GRID.value else {}
            several: dict[str, Any] = {"seeds": _SEEDS.value, "together": _TOGETHER.value, "keep": _KEEP.value}
            summary = sweep.sweep(chosen, workdir, grid, **several, **where)
            print(f"{summary.table()}\n\nbest run: {summary.best_run()}")
            for run, why in summary.failed.items():
                print(f"failed: {run}: {why}", file=sys.stderr)
            return 1 if summary.failed else 0
        result = train.run(chosen, workdir, stop_at=_STOP_AT.value, profile=profile, **where)
        print(json.dumps(result, indent=1))
    except train.Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signum
    except (ValueError, FloatingPointError, OSError) as error:
        if os.environ.get("BERT_JAX_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return hosts.leave(1)
    except (MemoryError, RuntimeError) as error:
        if not startup.out_of_memory(error) or os.environ.get("BERT_JAX_TRACEBACK"):
            raise
        print(f"error: out of memory: {error}. {_SMALLER}", file=sys.stderr)
        return hosts.leave(1)
    return 0


_SMALLER = (
    "Less is needed with a smaller --config.phases.0.batch_size or --config.optimizer.accumulate of more parts, with "
    "--config.encoder.remat, a smaller encoder, or more devices (--config.mesh.fsdp)"
)


def _steps(text: str) -> tuple[int, int] | None:
    """The two numbers of START:STOP; None of ""."""
    match = re.fullmatch(r"(\d+):(\d+)", text)
    require(match or not text, f"--profile=START:STOP takes two step numbers, as in --profile=100:110, not {text!r}")
    return (int(match[1]), int(match[2])) if match else None


if __name__ == "__main__":
    startup.use_huge_pages()
    try:
        arguments, overrides = split_flags(sys.argv)
    except ValueError as problem:
        sys.exit(f"error: {problem}")
    startup.run(lambda argv: main(argv, overrides), argv=arguments)
