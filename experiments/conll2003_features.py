"""Named entities of CoNLL-2003 from a frozen encoder: its features and a two-layer BiLSTM (paper, section 5.3).

Paper, Table 7, F1 on dev, BERT-Base, cased, mean of 5 runs; --config.task.features.layers chooses:
concat_last_four 96.1, sum_last_four 95.9, second_to_last 95.6, sum_all 95.5, last 94.9, embeddings 91.0; fine-tuned
(experiments/conll2003.py) 96.4. The paper gives no recipe; this one is ours.

The encoder runs once over the files, and what it says is kept in --cache_dir: of Base 0.93 GB a layer for all three
files (301,418 words x 768 float32), so 3.7 GB here and 12.0 GB for all choices together; --config.task.features.dtype
=float16 halves it. All seeds, and all choices that share layers, read the same.

    python -m bert_jax --config=experiments/conll2003_features.py --config.init_from=PRETRAINED --data_dir=CONLL
        --workdir=RUN
"""

import dataclasses

from bert_jax import config
from bert_jax.tasks.tagging import Tag
from experiments.conll2003 import EXPERIMENT as CONLL2003

EXPERIMENT = dataclasses.replace(
    CONLL2003,
    name="conll2003_features",
    task=Tag(
        train="eng.train",
        dev=("eng.testa", "eng.testb"),
        features=config.Features("concat_last_four"),
        bilstm=config.BiLSTM(),
    ),
    optimizer=config.Optimizer(learning_rate=1e-3, warmup=0.1),
    phases=(config.Phase(length=512, batch_size=32, epochs=10, lengths=4),),
)
