"""Draws the learning curves of runs: a panel for each metric, a curve for each run, the baseline beside it.

    python scripts/plot.py --metrics=mlm_loss,nsp_accuracy --output=curves.png RUN ...
    python scripts/plot.py --metrics=accuracy pre-trained=RUN1 "random weights=RUN2"

An argument is a run's workdir, or LABEL=DIR.
"""

import pathlib
import sys

from absl import app, flags

from bert_jax import files, startup
from bert_jax.studies import plots

_METRICS = flags.DEFINE_list("metrics", ["mlm_loss", "nsp_accuracy"], "Names as in metrics.jsonl, one panel each.")
_OUTPUT = flags.DEFINE_string("output", "curves.png", "The picture; its ending says the format.")
_SPLIT = flags.DEFINE_enum("split", "validation", ["validation", "train"], "Whose figures.")
startup.require_values(_OUTPUT)


def main(argv: list[str]) -> None:
    if len(argv) < 2:
        raise app.UsageError("name at least one workdir, as DIR or LABEL=DIR")
    runs: dict[str, str] = {}
    for given in argv[1:]:
        label, _, directory = given.rpartition("=")
        label = label or pathlib.Path(directory).resolve().name
        if not directory or given.startswith("="):
            raise app.UsageError(f"{given!r}: name a workdir as DIR or LABEL=DIR")
        if label in runs:
            raise app.UsageError(f"{runs[label]} and {directory} are both called {label!r}: name them LABEL=DIR")
        runs[label] = directory
    output = pathlib.Path(_OUTPUT.value)
    if not output.suffix or output.is_dir():
        raise app.UsageError(
            f"--output={_OUTPUT.value} must be a file whose ending says the format, such as curves.png"
        )
    if not any(_METRICS.value):
        raise app.UsageError("--metrics= is empty: name metrics as in metrics.jsonl")
    try:
        with files.room(output.parent, f"there is no {output.name}: make room and run the same command again"):
            plots.draw(runs, _METRICS.value, str(output), _SPLIT.value)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(_OUTPUT.value)


if __name__ == "__main__":
    startup.run(main)
