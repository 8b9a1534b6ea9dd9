"""BERT-Base (paper, section 3 and appendix A.2): 110M parameters, 900k steps at length 128, then 100k at 512.

Paper: 4 days on 16 TPU chips; MNLI 84.6/83.4, SQuAD 1.1 dev F1 88.5. Batch 256 sequences, Adam at 1e-4, 10k steps of
warm-up: 42.6B tokens, 2.2e19 FLOPs. bfloat16 activations are this file's one departure from the original's float32.

    python -m bert_jax --config=experiments/bert_base.py --config.task.corpus=CORPUS --workdir=RUN
"""

from bert_jax import config
from bert_jax.experiment import Experiment
from bert_jax.tasks.pretrain import Pretrain

EXPERIMENT = Experiment(
    name="bert_base",
    encoder=config.Encoder(layers=12, hidden=768, heads=12, dtype="bfloat16"),
    task=Pretrain(),
    optimizer=config.Optimizer(learning_rate=1e-4, warmup=10_000),
    phases=(
        config.Phase(length=128, batch_size=256, steps=900_000),
        config.Phase(length=512, batch_size=256, steps=100_000),
    ),
)
