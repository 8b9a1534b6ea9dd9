"""The 24 miniatures (Turc et al. 2019): L in {2, 4, 6, 8, 10, 12} x H in {128, 256, 512, 768}, a head for each 64.

This file is the smallest; bert_tiny.py and its neighbours name the four best known. Any of them:

    python -m bert_jax --config=experiments/miniature.py --config.encoder.layers=6 --config.encoder.hidden=256 \\
        --config.encoder.heads=4 --config.task.corpus=CORPUS --workdir=RUN
"""

from bert_jax.config import override
from bert_jax.experiment import Experiment
from experiments.bert_base import EXPERIMENT as BASE

LAYERS = (2, 4, 6, 8, 10, 12)
HIDDEN = (128, 256, 512, 768)


def miniature(layers: int, hidden: int, name: str = "") -> Experiment:
    """Base's recipe at another size."""
    size = {"encoder.layers": layers, "encoder.hidden": hidden, "encoder.heads": hidden // 64}
    return override(BASE, {"name": name or f"bert_{layers}_{hidden}", **size})


EXPERIMENT = miniature(layers=2, hidden=128)
