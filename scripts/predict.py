"""Asks a trained model: one JSON line out for each line in, from a file or standard input.

A pre-training run fills in [MASK]; a fine-tuned classifier gives the class and its probabilities. A line is a text, a
pair of texts with a tab between them, or a JSON object {"text": ..., "pair": ...}.

    echo "the capital of france is [MASK]." | python scripts/predict.py --model=RUN
"""

import itertools
import sys

from absl import app, flags

import bert_jax
from bert_jax import predict

_MODEL = flags.DEFINE_string("model", None, "A run's workdir.", required=True)
_INPUT = flags.DEFINE_string("input", "-", "A file, a text a line; - is standard input.")
_TOP = flags.DEFINE_integer("top", 5, "How many candidates for a [MASK].")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Texts at a time.")


def main(argv: list[str]) -> None:
    del argv
    try:
        model = bert_jax.load(_MODEL.value)
        with sys.stdin if _INPUT.value == "-" else open(_INPUT.value, encoding="utf-8") as lines:
            numbered = enumerate(lines, start=1)
            while part := list(itertools.islice(numbered, _BATCH_SIZE.value)):
                for answer in predict.answers(model, part, _TOP.value):
                    print(answer, flush=True)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main)
