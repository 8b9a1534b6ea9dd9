"""A JAX/Flax laboratory for BERT: pre-training, fine-tuning and the paper's ablations."""
