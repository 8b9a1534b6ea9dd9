"""SWAG, which of four sentences follows (paper, section 4.4): 3 epochs at batch 16, learning rate 2e-5.

Paper, Table 4, dev accuracy: BERT-Base 81.6, Large 86.6.

    python -m bert_jax --config=experiments/swag.py --config.init_from=PRETRAINED --data_dir=SWAG --workdir=RUN
"""

from bert_jax import config
from bert_jax.experiment import Experiment
from bert_jax.tasks.choice import Choose

EXPERIMENT = Experiment(
    name="swag",
    task=Choose(train="train.csv", dev="val.csv"),
    optimizer=config.Optimizer(learning_rate=2e-5, warmup=0.1),
    phases=(config.Phase(length=128, batch_size=16, epochs=3, lengths=4),),
    every=config.Every(log=100, evaluate=1000, checkpoint=0),
)
