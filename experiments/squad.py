"""SQuAD 1.1 (paper, section 4.2): 3 epochs at batch 32, learning rate 5e-5, length 384 with a stride of 128.

Paper, Table 2, dev EM/F1: BERT-Base 80.8/88.5, Large 84.1/90.9. `exact`, `f1` are in result.json, the predictions in
RUN/predictions, as the reference writes them. Any file of the same form will do, in any language.

    python -m bert_jax --config=experiments/squad.py --config.init_from=PRETRAINED --data_dir=SQUAD --workdir=RUN
"""

from bert_jax import config
from bert_jax.experiment import Experiment
from bert_jax.tasks.squad import Squad

EXPERIMENT = Experiment(
    name="squad",
    task=Squad(train="train-v1.1.json", dev="dev-v1.1.json"),
    optimizer=config.Optimizer(learning_rate=5e-5, warmup=0.1),
    phases=(config.Phase(length=384, batch_size=32, epochs=3, lengths=4),),
    every=config.Every(log=100, evaluate=0, checkpoint=1000),
    predict=True,
)
