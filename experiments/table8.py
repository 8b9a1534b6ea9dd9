"""Table 8: what becomes of the positions that the masked LM predicts: [MASK], the same, a random token (appendix C.2).

    python scripts/reproduce.py --study=experiments/table8.py --base=experiments/laptop.py \\
        --config.task.corpus=CORPUS --data_dir=DATA --workdir=STUDIES

MNLI's dev accuracy, and F1 of named entities on dev, fine-tuned and from features of the frozen encoder. The runs
behind this table are not those behind Tables 5 and 7, whose figures for the same model differ by up to one point.
"""

from bert_jax.studies.study import Column, Row, Study
from experiments.table5 import EXTRA, MNLI
from experiments.table7 import features


def mix(mask: float, random: float) -> dict[str, float]:
    """The shares that become [MASK] and a random token; the rest stays as it is."""
    return {"task.masking.mask": mask, "task.masking.random": random}


def paper(mnli: float, tuned: float, features: float) -> dict[str, float]:
    return {"MNLI-m": mnli, "NER": tuned, "NER features": features}


STUDY = Study(
    name="table8",
    title="Table 8: mixes of [MASK] / same / random",
    columns=(
        MNLI,
        Column("NER", "conll2003.py", folder="conll2003"),
        Column("NER features", "conll2003.py", features("concat_last_four"), folder="conll2003"),
        Column("QNLI", "qnli.py", folder="glue", extra=True),
        *EXTRA[1:],
    ),
    rows=(
        Row("80/10/10", paper=paper(84.2, 95.4, 94.9)),
        Row("100/0/0", mix(1.0, 0.0), paper=paper(84.3, 94.9, 94.0)),
        Row("80/0/20", mix(0.8, 0.2), paper=paper(84.1, 95.2, 94.6)),
        Row("80/20/0", mix(0.8, 0.0), paper=paper(84.4, 95.2, 94.7)),
        Row("0/20/80", mix(0.0, 0.8), paper=paper(83.7, 94.8, 94.6)),
        Row("0/0/100", mix(0.0, 1.0), paper=paper(83.6, 94.9, 94.6)),
    ),
)
