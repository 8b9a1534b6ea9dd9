"""Which answers of a file in SQuAD's form a model of tokens cannot give exactly, and why; one JSON line each.

    python scripts/check_answers.py --input=dev-v1.1.json --vocab=vocab.txt

They are not at their offset (task.misplaced says what becomes of them), begin or end with what is invisible, or within
a token.
"""

import collections
import json
import sys

from absl import app, flags

from bert_jax import startup
from bert_jax.tasks import windows
from bert_jax.text import tokenizer

_INPUT = flags.DEFINE_string("input", None, "A file in SQuAD's form.", required=True)
_VOCAB = flags.DEFINE_string("vocab", None, "vocab.txt, a SentencePiece model, or a directory with one.", required=True)
startup.require_values(_INPUT, _VOCAB)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}? Every argument is a flag; --help lists them")
    for name in ("input", "vocab"):
        if not flags.FLAGS[name].value:
            raise app.UsageError(f"--{name}= is empty: name a file")
    try:
        questions = list(windows.read(_INPUT.value))
        found = list(windows.misfits(questions, tokenizer.load(_VOCAB.value)))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    for one in found:
        print(json.dumps(one._asdict(), ensure_ascii=False))
    counts = collections.Counter(one.reason for one in found)
    reasons = "".join(f", {count} {reason}" for reason, count in counts.most_common())
    exact = sum(len(set(one.answers)) for one in questions) - len(found)
    print(f"{len(questions):,} questions: {exact:,} answers exact{reasons}", file=sys.stderr)


if __name__ == "__main__":
    startup.run(main)
