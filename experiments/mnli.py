"""MNLI, entailment, matched and mismatched (paper, section 4.1): SST-2's recipe on another task.

Paper, GLUE test, accuracy: BERT-Base 84.6/83.4, Large 86.7/85.9; dev, matched (Table 5): Base 84.4.

    python -m bert_jax --config=experiments/mnli.py --config.init_from=PRETRAINED --data_dir=GLUE --workdir=RUN
"""

import dataclasses

from bert_jax.tasks.glue import glue
from experiments.sst2 import EXPERIMENT as SST2

EXPERIMENT = dataclasses.replace(SST2, name="mnli", task=glue("mnli"))
