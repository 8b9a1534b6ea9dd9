"""SNLI, entailment, from its official JSON lines; rows on which its annotators did not agree ("-") are left out.

Not in the BERT paper. SST-2's recipe, as MNLI's.

    python -m bert_jax --config=experiments/snli.py --config.init_from=PRETRAINED --data_dir=SNLI --workdir=RUN
"""

import dataclasses

from bert_jax.tasks.classify import Classify
from experiments.sst2 import EXPERIMENT as SST2

EXPERIMENT = dataclasses.replace(
    SST2,
    name="snli",
    task=Classify(
        train="snli_1.0_train.jsonl",
        dev=("snli_1.0_dev.jsonl", "snli_1.0_test.jsonl"),
        text=("sentence1", "sentence2"),
        label="gold_label",
        labels=("contradiction", "entailment", "neutral"),
        unlabelled=("-",),
    ),
)
