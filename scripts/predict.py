"""Asks a trained model: one JSON line out for each line in, from a file or standard input.

A line that cannot be answered (it is empty, is not UTF-8, lacks a field or has one that is not a text) gets a line with
its number and an "error"; the others are answered, and the exit status is 1.

A line is a JSON object with the fields that the run's task reads, or the fields with tabs between them:
  pre-training           text, with a [MASK] to fill in
  classification         text, and perhaps pair: the class and its probabilities; of a regression, the score
  question answering     question, context: the answer, its place in the context in characters, its probability
  tagging                text: each word's tag, and the entities with their places
  multiple choice        context, endings: the one that fits best

With --embeddings it gives vectors instead, of any model: a text's, or each of its tokens', of any --layer.

    echo "the capital of france is [MASK]." | python scripts/predict.py --model=RUN
    echo "a short text" | python scripts/predict.py --model=RUN --embeddings=mean --layer=-2
    printf "Who wrote it?\\tIt was written by Ada." | python scripts/predict.py --model=SQUAD_RUN
"""

import itertools
import os
import sys

from absl import flags

import bert_jax
from bert_jax import definitions, experiment, startup
from bert_jax.inference import predict

_MODEL = flags.DEFINE_string("model", None, "A run's workdir, or published weights.", required=True)
_INPUT = flags.DEFINE_string("input", "-", "A file, a text a line; - is standard input.")
_CONFIG = flags.DEFINE_string(
    "config", None, "The experiment's file, where it defines the run's task itself: it is run."
)
_TOP = flags.DEFINE_integer("top", 5, "How many candidates for a [MASK].", lower_bound=1)
_NULL_THRESHOLD = flags.DEFINE_float(
    "null_threshold",
    None,
    "Odds of no answer above which there is none (SQuAD 2.0); default: those best on dev. A published model always "
    "answers, unless this is given (0 is what `transformers` calls handle_impossible_answer).",
)
_EMBEDDINGS = flags.DEFINE_enum(
    "embeddings", None, predict.VECTORS, "Vectors: the mean over the tokens, that of [CLS], or every token's."
)
_LAYER = flags.DEFINE_integer("layer", -1, "Whose: 0 is the embeddings' output, 1 the first layer, -1 the last.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Texts at a time.", lower_bound=1, upper_bound=100_000)
startup.require_values(_MODEL, _INPUT, _CONFIG)
flags.register_validator(_NULL_THRESHOLD, lambda value: value is None or value == value, "is not a number")


def main(argv: list[str]) -> None:
    del argv
    try:
        if _INPUT.value != "-" and (not os.path.exists(_INPUT.value) or os.path.isdir(_INPUT.value)):
            raise FileNotFoundError(f"there is no file {_INPUT.value}: --input names one, a text a line")
        if _CONFIG.value:
            definitions.defined(_CONFIG.value)
        model = bert_jax.load(_MODEL.value)
        task = model.experiment.task
        if isinstance(task, experiment.UnknownTask) and not (_EMBEDDINGS.value or "masked_lm" in model.params):
            raise task.lacking()
        failed: list[str] = []
        with sys.stdin.buffer if _INPUT.value == "-" else open(_INPUT.value, "rb") as stream:
            lines = predict.numbered(stream)
            while part := list(itertools.islice(lines, _BATCH_SIZE.value)):
                if _EMBEDDINGS.value:
                    found = predict.embeddings(model, part, _EMBEDDINGS.value, _LAYER.value)
                else:
                    found = predict.answers(model, part, _TOP.value, _NULL_THRESHOLD.value)
                try:
                    for answer in found:
                        sys.stdout.buffer.write(f"{answer}\n".encode())
                        sys.stdout.buffer.flush()
                except predict.UnansweredError as error:
                    failed.append(str(error))
        if failed:
            sys.exit("error: lines without an answer: " + "; ".join(failed[:5]) + ("; ..." if len(failed) > 5 else ""))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except (MemoryError, RuntimeError) as error:
        if not startup.out_of_memory(error):
            raise
        sys.exit(f"error: out of memory: {error}. A smaller --batch_size needs less")


if __name__ == "__main__":
    startup.run(main)
