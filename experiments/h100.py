"""A base for studies on one GPU of the H100's kind: BERT-Small (4 x 512), bfloat16, a few minutes a pre-training.

    scripts/study_on_gpu texts/ DATA STUDIES     # vocabulary, corpus and Table 5 in one go
    python scripts/reproduce.py --study=experiments/table5.py --base=experiments/h100.py \\
        --config.task.corpus=CORPUS --data_dir=DATA --workdir=STUDIES

For a vocabulary of 30,522 pieces. 5,000 steps of 1,024 sequences of 128 tokens: 655M tokens, 5.2e16 FLOPs; at 25% of
the chip's peak, three and a half minutes. That is a calculation: it was not run on such a chip yet.
"""

from bert_jax import config
from bert_jax.experiment import Experiment
from bert_jax.tasks.pretrain import Pretrain

EXPERIMENT = Experiment(
    name="h100",
    encoder=config.Encoder(layers=4, hidden=512, heads=8, dtype="bfloat16", scan=False),
    task=Pretrain(),
    optimizer=config.Optimizer(learning_rate=1e-3, warmup=0.1),
    phases=(config.Phase(length=128, batch_size=1024, steps=5_000),),
    every=config.Every(log=100, evaluate=500, checkpoint=500, keep=10),
)

FINE_TUNING = {
    "": {"optimizer.learning_rate": 1e-4, "every.evaluate": 0},
    "conll2003": {"phases.0.length": 128},
}
