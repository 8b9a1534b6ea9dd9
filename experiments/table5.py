"""Table 5: which pre-training task does what (paper, section 5.1). Dev figures; SQuAD's is F1, the others accuracy.

    python scripts/reproduce.py --study=experiments/table5.py --base=experiments/laptop.py \\
        --config.task.corpus=CORPUS --data_dir=DATA --workdir=STUDIES

Row "No NSP" leaves out the loss alone; "No NSP, one document" is the other reading, without pairs of segments. Of the
left-to-right rows the last token classifies, which alone has seen all; the paper does not say which one did.
"""

from bert_jax.studies.study import Column, Row, Study

NO_NSP = {"task.next_sentence": False}
LEFT_TO_RIGHT = {
    **NO_NSP,
    "task.objective": "left_to_right",
    "encoder.direction": "left_to_right",
    "encoder.classify_from": "last",
}
MNLI = Column("MNLI-m", "mnli.py", {"task.dev": ("MNLI/dev_matched.tsv",)}, folder="glue")
QNLI = Column("QNLI", "qnli.py", folder="glue")
SST2 = Column("SST-2", "sst2.py", folder="glue")
SQUAD = Column("SQuAD", "squad.py", {"predict": False}, folder="squad", figure="f1")
EXTRA = (  # with enough examples for small models to differ by
    Column("NER", "conll2003.py", folder="conll2003", extra=True),
    Column("POS", "pos.py", folder="ud_ewt", extra=True),
)


def on_top(base):
    """Two layers, as wide as the encoder."""
    return {"task.bilstm.layers": 2, "task.bilstm.width": base.encoder.hidden}


STUDY = Study(
    name="table5",
    title="Table 5: pre-training tasks",
    columns=(MNLI, QNLI, Column("MRPC", "mrpc.py", folder="glue", figure="accuracy"), SST2, SQUAD, *EXTRA),
    rows=(
        Row("BERT", paper={"MNLI-m": 84.4, "QNLI": 88.4, "MRPC": 86.7, "SST-2": 92.7, "SQuAD": 88.5}),
        Row("No NSP", NO_NSP, paper={"MNLI-m": 83.9, "QNLI": 84.9, "MRPC": 86.5, "SST-2": 92.6, "SQuAD": 87.9}),
        Row(
            "LTR & No NSP",
            LEFT_TO_RIGHT,
            paper={"MNLI-m": 82.1, "QNLI": 84.3, "MRPC": 77.5, "SST-2": 92.1, "SQuAD": 77.8},
        ),
        Row(
            "+ BiLSTM",
            LEFT_TO_RIGHT,
            on_top,
            paper={"MNLI-m": 82.1, "QNLI": 84.1, "MRPC": 75.7, "SST-2": 91.6, "SQuAD": 84.9},
        ),
        Row("No NSP, one document", {**NO_NSP, "task.input_format": "doc_sentences"}, extra=True),
    ),
)
