"""Which library does this sentence of documentation come from? The quickstart's fine-tuning, a minute on two cores.

python scripts/library_sentences.py --output=DATA
python -m bert_jax --config=experiments/quickstart_libraries.py --config.init_from=RUN --data_dir=DATA --workdir=RUN2
"""

from bert_jax import config
from bert_jax.experiment import Experiment
from bert_jax.tasks.classify import Classify
from bert_jax.tasks.quickstart import LIBRARIES

EXPERIMENT = Experiment(
    name="quickstart_libraries",
    task=Classify(train="train.tsv", dev=("dev.tsv",), labels=LIBRARIES),
    optimizer=config.Optimizer(learning_rate=3e-4, warmup=0.1),
    phases=(config.Phase(length=48, batch_size=32, epochs=4),),
    every=config.Every(log=50, evaluate=50, checkpoint=0),
)
