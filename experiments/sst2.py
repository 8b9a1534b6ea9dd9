"""SST-2, sentiment of film reviews (paper, section 4.1): 3 epochs at batch 32, learning rate of {5, 4, 3, 2}e-5.

Paper, GLUE test: BERT-Base 93.5, Large 94.9; published miniatures: Tiny 83.2. Dev accuracy is in result.json.

    python -m bert_jax --config=experiments/sst2.py --config.init_from=PRETRAINED --data_dir=GLUE --workdir=RUN

`--config.random_init=true` keeps the encoder's shape and the vocabulary, but not the weights: the control.
`lengths=4` puts sentences of about one length in a batch, which takes half the time for the same expected gradient;
`--config.phases.0.lengths=1` pads all to 128, as the reference does. `--seeds=5` gives mean and spread.
"""

from bert_jax import config
from bert_jax.experiment import Experiment
from bert_jax.tasks.glue import glue

EXPERIMENT = Experiment(
    name="sst2",
    task=glue("sst2"),
    optimizer=config.Optimizer(learning_rate=3e-5, warmup=0.1),
    phases=(config.Phase(length=128, batch_size=32, epochs=3, lengths=4),),
    every=config.Every(log=100, evaluate=500, checkpoint=0),
)
