"""BERT-Medium: 8 layers, 512 wide, 41.7M parameters, trained as Base is. GLUE test score as published: 73.5."""

from experiments.miniature import miniature

EXPERIMENT = miniature(layers=8, hidden=512, name="bert_medium")
