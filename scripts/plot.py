"""Draws the learning curves of runs: a panel for each metric, a curve for each run, the baseline beside it.

python scripts/plot.py --metrics=mlm_loss,nsp_accuracy --output=curves.png RUN ...
python scripts/plot.py --metrics=accuracy pre-trained=RUN1 "random weights=RUN2"
"""

import sys

from absl import app, flags

from bert_jax import plots, startup

_METRICS = flags.DEFINE_list("metrics", ["mlm_loss", "nsp_accuracy"], "Names as in metrics.jsonl, one panel each.")
_OUTPUT = flags.DEFINE_string("output", "curves.png", "The picture; its ending says the format.")
_SPLIT = flags.DEFINE_enum("split", "validation", ["validation", "train"], "Whose figures.")
startup.require_values(_OUTPUT)


def main(argv: list[str]) -> None:
    if len(argv) < 2:
        raise app.UsageError("name at least one workdir, as DIR or LABEL=DIR")
    runs = dict(one.split("=", 1) if "=" in one else (one.rstrip("/").split("/")[-1], one) for one in argv[1:])
    try:
        plots.draw(runs, _METRICS.value, _OUTPUT.value, _SPLIT.value)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(_OUTPUT.value)


if __name__ == "__main__":
    app.run(main)
