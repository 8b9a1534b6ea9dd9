"""Writes weights.npz: a tiny BERT with random weights and what `transformers` computes with it, for every head.

Needs PyTorch and transformers (4.57.6 made the file that is here):

    python tests/golden/write_weights.py
"""

import os
import pathlib

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
    "type_vocab_size": 2,
}
CLASSES = (
    "BertModel",
    "BertForPreTraining",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
    "BertForMultipleChoice",
)


def main() -> None:
    rng = np.random.default_rng(0)
    found = {
        "tokens": rng.integers(0, 40, (4, 10)),
        "segments": rng.integers(0, 2, (4, 10)),
        "mask": rng.random((4, 10)) < 0.7,
    }
    found["mask"][:, 0] = True
    shared: dict[str, np.ndarray] = {}  # the encoder's and the pooler's weights
    for kind in CLASSES:
        for gelu in ("gelu", "gelu_new"):
            # With PyTorch's own attention kernels left out, the arithmetic is the textbook's.
            labels = 2 if kind == "BertForQuestionAnswering" else 3
            config = transformers.BertConfig(**SIZES, hidden_act=gelu, num_labels=labels, attn_implementation="eager")
            model = getattr(transformers, kind)(config).eval()
            for name, tensor in model.named_parameters():
                key = name if name.startswith("bert.") else f"bert.{name}" if kind == "BertModel" else f"{kind}/{name}"
                weights = shared if key.startswith("bert.") else found
                if key not in weights:
                    around = 1.0 if name.endswith("LayerNorm.weight") else 0.0
                    weights[key] = rng.normal(around, 0.25, tensor.shape).astype(np.float32)
                with torch.no_grad():
                    tensor.copy_(torch.tensor(weights[key]))
            inputs = {name: torch.tensor(found[name]) for name in ("tokens", "segments", "mask")}
            if kind == "BertForMultipleChoice":  # two examples of two choices
                inputs = {name: tensor.reshape(2, 2, -1) for name, tensor in inputs.items()}
            with torch.no_grad():
                outputs = model(
                    inputs["tokens"],
                    inputs["mask"].long(),
                    inputs["segments"],
                    output_hidden_states=kind == "BertModel",
                )
            for name, value in outputs.items():
                value = torch.stack(value) if isinstance(value, tuple) else value
                found[f"{kind}/{gelu}/{name}"] = value.numpy()
    np.savez_compressed(pathlib.Path(__file__).with_name("weights.npz"), **found, **shared)


if __name__ == "__main__":
    main()
