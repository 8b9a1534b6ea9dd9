"""The paper's grid of fine-tuning (appendix A.3): 18 points; the best on dev counts.

python -m bert_jax --config=experiments/mrpc.py --grid=experiments/grids/paper.py --seeds=3 --workdir=SWEEP ...
"""

GRID = {
    "phases.0.batch_size": (16, 32),
    "optimizer.learning_rate": (5e-5, 3e-5, 2e-5),
    "phases.0.epochs": (2, 3, 4),
}
