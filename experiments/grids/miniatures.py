"""What the published miniatures' GLUE results were chosen from: 20 points, each of 4 epochs (Turc et al., 2019)."""

GRID = {
    "phases.0.epochs": (4,),
    "phases.0.batch_size": (8, 16, 32, 64, 128),
    "optimizer.learning_rate": (3e-4, 1e-4, 5e-5, 3e-5),
}
