"""SQuAD 2.0, where a question may have no answer (paper, section 4.3): 2 epochs at batch 48, learning rate 5e-5.

Paper, Table 3, dev EM/F1, threshold for no answer tuned on dev: BERT-Large 78.7/81.9. `best_exact` and `best_f1` are
in result.json, with the threshold.

    python -m bert_jax --config=experiments/squad2.py --config.init_from=PRETRAINED --data_dir=SQUAD --workdir=RUN
"""

import dataclasses

from bert_jax import config
from bert_jax.tasks.squad import Squad
from experiments.squad import EXPERIMENT as SQUAD

EXPERIMENT = dataclasses.replace(
    SQUAD,
    name="squad2",
    task=Squad(train="train-v2.0.json", dev="dev-v2.0.json", unanswerable=True),
    phases=(config.Phase(length=384, batch_size=48, epochs=2, lengths=4),),
)
