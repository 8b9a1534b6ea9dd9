"""RTE, entailment (paper, section 4.1): SST-2's recipe on another task.

Paper, GLUE test, accuracy: BERT-Base 66.4, Large 70.1. 2,490 rows: seeds differ much.

    python -m bert_jax --config=experiments/rte.py --config.init_from=PRETRAINED --data_dir=GLUE --workdir=RUN
"""

import dataclasses

from bert_jax.tasks.glue import glue
from experiments.sst2 import EXPERIMENT as SST2

EXPERIMENT = dataclasses.replace(SST2, name="rte", task=glue("rte"))
