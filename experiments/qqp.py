"""QQP, whether two questions ask the same (paper, section 4.1): SST-2's recipe on another task.

Paper, GLUE test, F1: BERT-Base 71.2, Large 72.1.

    python -m bert_jax --config=experiments/qqp.py --config.init_from=PRETRAINED --data_dir=GLUE --workdir=RUN
"""

import dataclasses

from bert_jax.tasks.glue import glue
from experiments.sst2 import EXPERIMENT as SST2

EXPERIMENT = dataclasses.replace(SST2, name="qqp", task=glue("qqp"))
