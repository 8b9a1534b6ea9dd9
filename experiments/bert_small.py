"""BERT-Small: 4 layers, 512 wide, 29.1M parameters, trained as Base is. GLUE test score as published: 71.2."""

from experiments.miniature import miniature

EXPERIMENT = miniature(layers=4, hidden=512, name="bert_small")
