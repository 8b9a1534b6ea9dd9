"""Named entities of CoNLL-2003 (paper, section 5.3): a cased model, with the document around each sentence.

Paper, Table 7, F1 dev/test, mean of 5 runs: BERT-Base 96.4/92.4, Large 96.6/92.8. The paper gives no recipe; this is in
the grid of its appendix A.3. `--config.task.document=false` feeds one sentence at a time: no 92.4 comes of that.

    python -m bert_jax --config=experiments/conll2003.py --config.init_from=PRETRAINED --data_dir=CONLL --workdir=RUN
"""

from bert_jax import config
from bert_jax.experiment import Experiment
from bert_jax.tasks.tagging import Tag

EXPERIMENT = Experiment(
    name="conll2003",
    task=Tag(train="eng.train", dev=("eng.testa", "eng.testb")),
    optimizer=config.Optimizer(learning_rate=5e-5, warmup=0.1),
    phases=(config.Phase(length=512, batch_size=32, epochs=3),),
    every=config.Every(log=100, evaluate=0, checkpoint=0),
)
