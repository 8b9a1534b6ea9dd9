"""A tiny BERT on two CPU cores, in minutes: what the quickstart trains.

A narrow BERT sits at the unigram loss for a long time; sequences of 16 tokens get it off that plateau within a few
million tokens, and longer ones follow, as the paper's own 512 follow 128. The learning rate suits the size.

    python -m bert_jax --config=experiments/bert_laptop.py --config.task.corpus=CORPUS --workdir=RUN

The vocabulary may have up to 4,096 pieces. With more time, more and longer: --config.phases.1.steps=20000.
"""

from bert_jax import config
from bert_jax.experiment import Experiment
from bert_jax.tasks.pretrain import Pretrain

EXPERIMENT = Experiment(
    name="bert_laptop",
    encoder=config.Encoder(layers=2, hidden=128, heads=2, vocab_size=4096, max_positions=128, scan=False),
    task=Pretrain(dupe_factor=4, heldout=0.01),
    optimizer=config.Optimizer(learning_rate=1e-3, warmup=0.05),
    phases=(
        config.Phase(length=16, batch_size=64, steps=4_000),
        config.Phase(length=64, batch_size=32, steps=4_000),
    ),
    every=config.Every(log=250, evaluate=500, checkpoint=2_000),
)
