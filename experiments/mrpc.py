"""MRPC, paraphrases in the news (paper, section 4.1): SST-2's recipe on another task.

Paper, GLUE test, F1: BERT-Base 88.9, Large 89.3; dev accuracy (Table 5): Base 86.7. 3,668 rows: seeds differ much.

    python -m bert_jax --config=experiments/mrpc.py --config.init_from=PRETRAINED --data_dir=GLUE --workdir=RUN
"""

import dataclasses

from bert_jax.tasks.glue import glue
from experiments.sst2 import EXPERIMENT as SST2

EXPERIMENT = dataclasses.replace(SST2, name="mrpc", task=glue("mrpc"))
