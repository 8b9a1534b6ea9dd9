"""BERT-Large (paper, section 3): 340M parameters, trained as Base is.

Paper: 4 days on 64 TPU chips; MNLI 86.7/85.9, SQuAD 1.1 dev F1 90.9. 42.6B tokens, 7.9e19 FLOPs.

    python -m bert_jax --config=experiments/bert_large.py --config.task.corpus=CORPUS --workdir=RUN
"""

from bert_jax.config import override
from experiments.bert_base import EXPERIMENT as BASE

EXPERIMENT = override(BASE, {"name": "bert_large", "encoder.layers": 24, "encoder.hidden": 1024, "encoder.heads": 16})
