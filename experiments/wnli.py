"""WNLI, what a pronoun stands for (paper, section 4.1): SST-2's recipe on another task.

The paper leaves it out: dev and train contradict each other, and the larger class (65.1 on test) is hard to beat.

    python -m bert_jax --config=experiments/wnli.py --config.init_from=PRETRAINED --data_dir=GLUE --workdir=RUN
"""

import dataclasses

from bert_jax.tasks.glue import glue
from experiments.sst2 import EXPERIMENT as SST2

EXPERIMENT = dataclasses.replace(SST2, name="wnli", task=glue("wnli"))
