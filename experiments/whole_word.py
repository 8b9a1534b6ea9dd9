"""Whole words against single pieces as what the masked LM chooses (the reference's later models, BERT-Large).

    python scripts/reproduce.py --study=experiments/whole_word.py --base=experiments/laptop.py \\
        --config.task.corpus=CORPUS --data_dir=DATA --workdir=STUDIES
"""

from bert_jax.studies.study import Row, Study
from experiments.table5 import EXTRA, MNLI, SQUAD

STUDY = Study(
    name="whole_word",
    title="Whole-word masking",
    columns=(SQUAD, MNLI, *EXTRA),
    rows=(
        Row("pieces", paper={"SQuAD": 91.0, "MNLI-m": 86.05}),
        Row("whole words", {"task.masking.whole_word": True}, paper={"SQuAD": 92.8, "MNLI-m": 87.07}),
    ),
    base="bert_large.py",
)
