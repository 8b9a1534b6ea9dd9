"""BERT-Mini: 4 layers, 256 wide, 11.3M parameters, trained as Base is. GLUE test score as published: 65.8."""

from experiments.miniature import miniature

EXPERIMENT = miniature(layers=4, hidden=256, name="bert_mini")
