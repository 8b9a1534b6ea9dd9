"""Scores a trained or published model on labelled files, without training.

--config is an experiment whose task names the files and their columns, as for fine-tuning; any of its fields is a flag.
Without it, a run's own task is scored. The figures are those of a run's evaluation; --output takes them, with what the
leaderboards and the reference's scripts take. Classes are matched by their names.

    python scripts/evaluate.py --model=RUN --data_dir=glue
    python scripts/evaluate.py --model=RUN --config.task.dev=my/reviews.tsv
    python scripts/evaluate.py --model=published-sst2 --config=experiments/sst2.py --data_dir=glue --output=scores
"""

import json
import os
import sys

from absl import flags

from bert_jax import startup
from bert_jax.config import override, split_flags

_MODEL = flags.DEFINE_string("model", None, "A run's workdir, or published weights with a head.", required=True)
_CONFIG = flags.DEFINE_string("config", None, "The experiment: a Python file that defines EXPERIMENT.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir", os.environ.get("BERT_JAX_DATA", ""), "Where the task's files lie; default: $BERT_JAX_DATA."
)
_CACHE_DIR = flags.DEFINE_string("cache_dir", "", "What runs share, and may be deleted.")
_OUTPUT = flags.DEFINE_string("output", None, "A directory for result.json and predictions/.")
startup.require_values(_MODEL, _CONFIG, _OUTPUT)


def main(argv: list[str], changes: dict[str, str] | None = None) -> None:
    del argv
    from bert_jax import experiment
    from bert_jax.inference import evaluate
    from bert_jax.weights import pretrained  # after the flags: --help needs no JAX

    startup.keep_programs(_CACHE_DIR.value)
    where = {"data_dir": _DATA_DIR.value, "cache_dir": _CACHE_DIR.value, "output": _OUTPUT.value or ""}
    try:
        exp = experiment.load(_CONFIG.value) if _CONFIG.value else pretrained.open(_MODEL.value).experiment
        print(json.dumps(evaluate.evaluate(_MODEL.value, override(exp, changes or {}), **where), indent=1))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except (MemoryError, RuntimeError) as error:
        if not startup.out_of_memory(error):
            raise
        sys.exit(f"error: out of memory: {error}. A smaller --config.phases.0.batch_size needs less")


if __name__ == "__main__":
    try:
        arguments, overrides = split_flags(sys.argv)
    except ValueError as problem:
        sys.exit(f"error: {problem}")
    startup.run(lambda argv: main(argv, overrides), argv=arguments)
