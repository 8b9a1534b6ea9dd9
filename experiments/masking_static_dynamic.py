"""Static masks, ten patterns as the paper's, against fresh ones at each visit (Liu et al. 2019, Table 1).

    python scripts/reproduce.py --study=experiments/masking_static_dynamic.py --base=experiments/laptop.py \\
        --config.task.corpus=CORPUS --data_dir=DATA --workdir=STUDIES

Their figures are the medians of 5 runs of BERT-Base: SQuAD 2.0 by F1, the others by accuracy. Masks differ from the
second visit of an example on: the phases must be longer than `dupe_factor` passes over the corpus.
"""

from bert_jax.studies.study import Column, Row, Study
from experiments.table5 import EXTRA, MNLI, SST2

STUDY = Study(
    name="masking_static_dynamic",
    title="Static and dynamic masking",
    columns=(
        Column("SQuAD 2.0", "squad2.py", {"predict": False}, folder="squad", figure="best_f1"),
        MNLI,
        SST2,
        *EXTRA,
    ),
    rows=(
        Row("static", paper={"SQuAD 2.0": 78.3, "MNLI-m": 84.3, "SST-2": 92.5}),
        Row("dynamic", {"task.masking.dynamic": True}, paper={"SQuAD 2.0": 78.7, "MNLI-m": 84.0, "SST-2": 92.9}),
    ),
)
