"""Figure 5: how long to pre-train, masked or from left to right (appendix C.1); fine-tuned after each fifth of it.

    python scripts/reproduce.py --study=experiments/figure5.py --base=experiments/laptop.py \\
        --config.task.corpus=CORPUS --data_dir=DATA --workdir=STUDIES

The paper's lines, MNLI dev accuracy from 200k to 1M steps, are drawn and not printed: BERT-Base gains about 1.0 from
500k to 1M, and the left-to-right model leads for the first steps only.
"""

from bert_jax.studies.study import Column, Row, Study
from experiments.table5 import EXTRA, LEFT_TO_RIGHT, MNLI

POINTS = (0.2, 0.4, 0.6, 0.8, 1.0)

STUDY = Study(
    name="figure5",
    title="Figure 5: pre-training steps",
    columns=(
        MNLI,
        Column("QNLI", "qnli.py", folder="glue", extra=True),
        Column("SST-2", "sst2.py", folder="glue", extra=True),
        *EXTRA,
    ),
    rows=(
        *(Row(f"MLM, {at:.0%}", at=at, line="masked LM") for at in POINTS),
        *(Row(f"LTR, {at:.0%}", LEFT_TO_RIGHT, at=at, line="left to right") for at in POINTS),
    ),
    checkpoints=10,
)
