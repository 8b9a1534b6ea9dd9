"""STS-B, how alike two sentences are, 0 to 5 (paper, section 4.1): SST-2's recipe on another task.

Paper, GLUE test, Spearman: BERT-Base 85.8, Large 86.5.

    python -m bert_jax --config=experiments/stsb.py --config.init_from=PRETRAINED --data_dir=GLUE --workdir=RUN
"""

import dataclasses

from bert_jax.tasks.glue import glue
from experiments.sst2 import EXPERIMENT as SST2

EXPERIMENT = dataclasses.replace(SST2, name="stsb", task=glue("stsb"))
