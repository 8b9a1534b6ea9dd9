"""Parts of speech, the 17 of Universal Dependencies, from a CoNLL-U treebank: the recipe of named entities.

No number in the paper.

    python -m bert_jax --config=experiments/pos.py --config.init_from=PRETRAINED --data_dir=UD --workdir=RUN
"""

import dataclasses

from bert_jax import config
from bert_jax.tasks.tagging import UPOS, Tag
from experiments.conll2003 import EXPERIMENT as CONLL2003

EXPERIMENT = dataclasses.replace(
    CONLL2003,
    name="pos",
    task=Tag(
        train="en_ewt-ud-train.conllu",
        dev=("en_ewt-ud-dev.conllu", "en_ewt-ud-test.conllu"),
        labels=UPOS,
        word=2,
        scheme="as is",
        document=False,
        metrics=("accuracy",),
    ),
    phases=(config.Phase(length=128, batch_size=32, epochs=3, lengths=4),),
)
