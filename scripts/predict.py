"""Asks a trained model: one JSON line out for each line in, from a file or standard input.

A line is a JSON object with the fields that the run's task reads, or the fields with tabs between them:
  pre-training           text, with a [MASK] to fill in
  classification         text, and perhaps pair: the class and its probabilities; of a regression, the score
  question answering     question, context: the answer, its place in the context in characters, its probability
  tagging                text: each word's tag, and the entities with their places
  multiple choice        context, endings: the one that fits best

    echo "the capital of france is [MASK]." | python scripts/predict.py --model=RUN
    printf "Who wrote it?\\tIt was written by Ada." | python scripts/predict.py --model=SQUAD_RUN
"""

import itertools
import sys

from absl import app, flags

import bert_jax
from bert_jax import predict

_MODEL = flags.DEFINE_string("model", None, "A run's workdir.", required=True)
_INPUT = flags.DEFINE_string("input", "-", "A file, a text a line; - is standard input.")
_TOP = flags.DEFINE_integer("top", 5, "How many candidates for a [MASK].")
_NULL_THRESHOLD = flags.DEFINE_float("null_threshold", 0.0, "Odds of no answer above which there is none (SQuAD 2.0).")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Texts at a time.")


def main(argv: list[str]) -> None:
    del argv
    try:
        model = bert_jax.load(_MODEL.value)
        with sys.stdin if _INPUT.value == "-" else open(_INPUT.value, encoding="utf-8") as lines:
            numbered = enumerate(lines, start=1)
            while part := list(itertools.islice(numbered, _BATCH_SIZE.value)):
                for answer in predict.answers(model, part, _TOP.value, _NULL_THRESHOLD.value):
                    print(answer, flush=True)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main)
