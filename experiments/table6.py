"""Table 6: model size (paper, section 5.2). Held-out perplexity of the masked LM; dev accuracy.

    python scripts/reproduce.py --study=experiments/table6.py --base=experiments/laptop.py \\
        --config.task.corpus=CORPUS --data_dir=DATA --workdir=STUDIES

The six sizes are the paper's where the base is BERT-Base, and keep their proportions where it is another. The paper's
mean is over 5 restarts: --seeds=5.
"""

from bert_jax.studies.study import Column, Row, Study
from experiments.table5 import EXTRA, MNLI, SST2


def size(layers: float | int, width: float | int = 1, heads: float | int = 1):
    """That share of the base's layers and width, by heads as wide as the base's; `heads` divides these anew."""

    def changes(base):
        encoder = base.encoder
        wide = max(1, round(width * encoder.heads))
        return {
            "encoder.layers": max(1, round(layers * encoder.layers)),
            "encoder.hidden": wide * (encoder.hidden // encoder.heads),
            "encoder.heads": max(1, round(heads * wide)),
        }

    return changes


def paper(perplexity: float, mnli: float, mrpc: float, sst2: float) -> dict[str, float]:
    return {"perplexity": perplexity, "MNLI-m": mnli, "MRPC": mrpc, "SST-2": sst2}


PERPLEXITY = Column("perplexity", figure="mlm_perplexity", scale=1)

STUDY = Study(
    name="table6",
    title="Table 6: model size, from the base's L, H, A",
    columns=(
        PERPLEXITY,
        MNLI,
        Column("MRPC", "mrpc.py", folder="glue", figure="accuracy"),
        SST2,
        Column("QNLI", "qnli.py", folder="glue", extra=True),
        *EXTRA,
    ),
    rows=(
        Row("L, H, A", paper=paper(3.99, 84.4, 86.7, 92.9)),
        Row("L/4", size(1 / 4), paper=paper(5.84, 77.9, 79.8, 88.4)),
        Row("L/2, A/4", size(1 / 2, heads=1 / 4), paper=paper(5.24, 80.6, 82.2, 90.7)),
        Row("L/2", size(1 / 2), paper=paper(4.68, 81.9, 84.8, 91.3)),
        Row("4/3 H", size(1, 4 / 3), paper=paper(3.54, 85.7, 86.9, 93.3)),
        Row("2 L, 4/3 H", size(2, 4 / 3), paper=paper(3.23, 86.6, 87.8, 93.7)),
    ),
)
