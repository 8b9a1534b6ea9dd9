"""CoLA, whether a sentence is grammatical (paper, section 4.1): SST-2's recipe on another task.

Paper, GLUE test, Matthews' correlation: BERT-Base 52.1, Large 60.5.

    python -m bert_jax --config=experiments/cola.py --config.init_from=PRETRAINED --data_dir=GLUE --workdir=RUN
"""

import dataclasses

from bert_jax.tasks.glue import glue
from experiments.sst2 import EXPERIMENT as SST2

EXPERIMENT = dataclasses.replace(SST2, name="cola", task=glue("cola"))
