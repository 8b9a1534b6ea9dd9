"""A base for studies on two CPU cores: four layers, 128 wide, for a cased vocabulary of 2,048 pieces.

    python scripts/reproduce.py --study=experiments/table5.py --base=experiments/laptop.py \\
        --config.task.corpus=CORPUS --data_dir=DATA --workdir=STUDIES

9.2M tokens, 4.7e13 FLOPs. With 4,000 of its 6,000 steps and half of the fine-tunings' (experiments/results), a row of
three columns and three seeds took 18 minutes on one core; two workers make two rows at a time.

A narrow BERT sits at the unigram loss for many million tokens, and what it learns there no task can tell from nothing.
What brings it off within one million, tried on Wikipedia and books with two layers, are departures from the paper, the
same in every row:

- it begins with 16 tokens, as the paper's 512 follow 128, and there without pairs (`shortest_pair`);
- initial weights of 0.05, which at this width make attention as sharp as 0.02 does at Base's;
- 40% of the tokens are predicted, and Adam forgets faster (b2 0.98);
- no dropout, as no text is seen twice.

The first two alone, at 15%, had not left it after three million tokens, nor had pairs, a doubled learning rate, which
is worse, or batches of 16.
"""

from bert_jax import config
from bert_jax.experiment import Experiment
from bert_jax.tasks.pretrain import Pretrain

EXPERIMENT = Experiment(
    name="laptop",
    encoder=config.Encoder(
        layers=4,
        hidden=128,
        heads=2,
        vocab_size=2048,
        max_positions=128,
        dropout=0.0,
        attention_dropout=0.0,
        init_stddev=0.05,
        scan=False,
    ),
    task=Pretrain(dupe_factor=2, heldout=0.005, masking=config.Masking(rate=0.4), shortest_pair=32),
    optimizer=config.Optimizer(learning_rate=1e-3, warmup=0.03, b2=0.98),
    phases=(
        config.Phase(length=16, batch_size=64, steps=3_000),
        config.Phase(length=64, batch_size=32, steps=3_000),
    ),
    every=config.Every(log=200, evaluate=600, checkpoint=600, keep=10),
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
    "squad": {"phases.0.length": 128},
    "conll2003": {"task.document": False},
}
