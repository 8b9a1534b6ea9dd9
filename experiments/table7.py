"""Table 7: named entities by fine-tuning, and from the features of a frozen encoder (paper, section 5.3). F1.

    python scripts/reproduce.py --study=experiments/table7.py --base=PRETRAINED --data_dir=DATA --workdir=STUDIES

The paper's figures are those of cased BERT-Base, the mean of 5 runs; it gives the features' on dev alone. The base may
be a file, which is pre-trained first, or a directory of weights with four layers or more.
"""

from bert_jax.studies.study import Column, Row, Study


def features(layers: str):
    """The encoder frozen, and a BiLSTM as wide as it on those of its layers; the recipe of conll2003_features.py."""

    def changes(base):
        return {
            "task.features.layers": layers,
            "task.bilstm.width": base.encoder.hidden,
            "optimizer.learning_rate": 1e-3,
            "phases.0.steps": 0,
            "phases.0.epochs": 10,
        }

    return changes


STUDY = Study(
    name="table7",
    title="Table 7: fine-tuned, and feature-based (CoNLL-2003)",
    columns=(
        Column("NER dev", "conll2003.py", folder="conll2003"),
        Column("NER test", "conll2003.py", folder="conll2003", figure="f1_eng.testb"),
    ),
    rows=(
        Row("fine-tuned", paper={"NER dev": 96.4, "NER test": 92.4}),
        Row("embeddings", fine_tuning=features("embeddings"), paper={"NER dev": 91.0}),
        Row("second to last", fine_tuning=features("second_to_last"), paper={"NER dev": 95.6}),
        Row("last", fine_tuning=features("last"), paper={"NER dev": 94.9}),
        Row("weighted sum of last four", fine_tuning=features("sum_last_four"), paper={"NER dev": 95.9}),
        Row("concat of last four", fine_tuning=features("concat_last_four"), paper={"NER dev": 96.1}),
        Row("weighted sum of all", fine_tuning=features("sum_all"), paper={"NER dev": 95.5}),
    ),
)
