"""Converts weights: a run's workdir, a Hugging Face directory or a TF1 checkpoint, into another of them.

    python scripts/convert.py RUN model                 # a run, for `transformers`
    python scripts/convert.py bert-base-uncased run     # published weights, as a workdir
    python scripts/convert.py --to=tf1 RUN checkpoint   # for Google's code (needs TensorFlow: pip install '.[tf]')

What SOURCE is, it sees by itself. Without --to, a workdir becomes a Hugging Face directory, anything else a workdir.
"""

import sys
import typing

from absl import app, flags

from bert_jax import startup
from bert_jax.weights import convert

_TO = flags.DEFINE_enum("to", None, typing.get_args(convert.Form), "What DESTINATION shall be.")


def main(argv: list[str]) -> None:
    if len(argv) != 3 or not all(argument.strip() for argument in argv):
        raise app.UsageError("usage: convert.py [--to=huggingface|tf1|workdir] SOURCE DESTINATION")
    try:
        form = convert.convert(argv[1], argv[2], _TO.value)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{argv[2]}: {form}")


if __name__ == "__main__":
    startup.run(main)
