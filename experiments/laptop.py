"""A base for studies on two CPU cores.

    python scripts/reproduce.py --study=experiments/table5.py --base=experiments/laptop.py \\
        --config.task.corpus=CORPUS --data_dir=DATA --workdir=STUDIES

Four layers, 128 wide, for a cased vocabulary of 4,096 pieces. It begins with sequences of 16 tokens, where a narrow
BERT leaves the unigram plateau within a few million tokens.
"""

from bert_jax import config
from bert_jax.experiment import Experiment
from bert_jax.tasks.pretrain import Pretrain

EXPERIMENT = Experiment(
    name="laptop",
    encoder=config.Encoder(layers=4, hidden=128, heads=2, vocab_size=4096, max_positions=128, scan=False),
    task=Pretrain(dupe_factor=2, heldout=0.005),
    optimizer=config.Optimizer(learning_rate=1e-3, warmup=0.05),
    phases=(
        config.Phase(length=16, batch_size=64, steps=4_000),
        config.Phase(length=64, batch_size=32, steps=2_500),
    ),
    every=config.Every(log=250, evaluate=650, checkpoint=650, keep=10),
)

FINE_TUNING = {
    "": {
        "optimizer.learning_rate": 3e-4,
        "phases.0.length": 64,
        "phases.0.lengths": 4,
        "phases.0.epochs": 0,
        "phases.0.steps": 400,
        "every.evaluate": 0,
    },
    "SQuAD": {"phases.0.length": 128},
    "NER": {"task.document": False},
}
