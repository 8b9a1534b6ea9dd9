"""AX, GLUE's diagnostic set (paper, section 4.1): the predictions that an MNLI model makes for it.

Scored on the server alone, by Matthews' correlation. `--config.predict=true` writes RUN/predictions/AX.tsv.

    python -m bert_jax --config=experiments/ax.py --config.init_from=PRETRAINED --data_dir=GLUE --workdir=RUN
"""

import dataclasses

from bert_jax.tasks.glue import glue
from experiments.sst2 import EXPERIMENT as SST2

EXPERIMENT = dataclasses.replace(SST2, name="ax", task=glue("ax"))
