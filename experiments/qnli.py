"""QNLI, whether a sentence answers a question (paper, section 4.1): SST-2's recipe on another task.

Paper, GLUE test, accuracy: BERT-Base 90.5, Large 92.7; dev (Table 5, most likely the first QNLI split): Base 88.4.

    python -m bert_jax --config=experiments/qnli.py --config.init_from=PRETRAINED --data_dir=GLUE --workdir=RUN
"""

import dataclasses

from bert_jax.tasks.glue import glue
from experiments.sst2 import EXPERIMENT as SST2

EXPERIMENT = dataclasses.replace(SST2, name="qnli", task=glue("qnli"))
