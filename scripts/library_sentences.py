"""Writes a small classification set from the machine's own documentation: which library is this sentence from?

    python scripts/library_sentences.py --output=DIR

experiments/quickstart_libraries.py trains on what it writes.
"""

import sys

from absl import flags

from bert_jax import startup
from bert_jax.tasks import quickstart

_OUTPUT = flags.DEFINE_string("output", None, "The folder for train.tsv and dev.tsv.", required=True)
startup.require_values(_OUTPUT)


def main(argv: list[str]) -> None:
    del argv
    try:
        quickstart.write(_OUTPUT.value)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    startup.run(main)
