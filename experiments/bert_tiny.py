"""BERT-Tiny: 2 layers, 128 wide, 4.4M parameters, trained as Base is. GLUE test score as published: 64.2."""

from experiments.miniature import miniature

EXPERIMENT = miniature(layers=2, hidden=128, name="bert_tiny")
