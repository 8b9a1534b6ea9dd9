"""What the paper chose from for its GLUE results (section 4.1): four learning rates, at batch 32 and 3 epochs."""

GRID = {"optimizer.learning_rate": (5e-5, 4e-5, 3e-5, 2e-5)}
