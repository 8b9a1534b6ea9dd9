"""CODAH, SWAG's form and made to mislead: 2,776 rows, of which a fifth is held out. SWAG's recipe.

No number in the paper; chance is 25.

    python -m bert_jax --config=experiments/codah.py --config.init_from=PRETRAINED --data_dir=CODAH --workdir=RUN
"""

import dataclasses

from bert_jax.tasks.choice import Choose
from experiments.swag import EXPERIMENT as SWAG

EXPERIMENT = dataclasses.replace(
    SWAG,
    name="codah",
    task=Choose(
        train="full_data.tsv",
        context="prompt",
        start="",
        columns=("category", "prompt", "ending0", "ending1", "ending2", "ending3", "label"),
    ),
)
