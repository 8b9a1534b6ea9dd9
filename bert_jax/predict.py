"""Lines in, JSON lines out: what `scripts/predict.py` asks of a model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from bert_jax.config import require
from bert_jax.model import Model


def parse(number: int, line: str) -> str | tuple[str, str]:
    """A text or a pair from an input line: plain, "text<tab>pair", or a JSON object with "text" and perhaps "pair".

    Raises:
      ValueError: that names the line.
    """
    line = line.rstrip("\n")
    require(line.strip() != "", f"line {number} is empty: one text a line")
    if line.startswith("{"):
        try:
            found: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}: no JSON object: {error}") from None
        require(isinstance(found.get("text"), str), f'line {number}: a JSON object needs a "text": {line[:80]}')
        return (found["text"], found["pair"]) if "pair" in found else found["text"]
    text, tab, pair = line.partition("\t")
    return (text, pair) if tab else text


def answers(model: Model, lines: Sequence[tuple[int, str]], top: int) -> Iterator[str]:
    """A JSON line for each numbered input line: fillings of its [MASK], or its class.

    Raises:
      ValueError: that names the line that cannot be answered, or says what the model lacks.
    """
    texts = [parse(number, line) for number, line in lines]
    if "classifier" in model.params:
        for text, answer in zip(texts, model.classify(texts, batch_size=len(texts)), strict=True):
            yield _json(text, label=answer.label, probabilities=answer.probabilities)
        return
    for (number, _), text in zip(lines, texts, strict=True):
        require(isinstance(text, str), f"line {number}: a [MASK] is filled in one text, not in a pair")
        assert isinstance(text, str)
        try:
            yield _json(text, fill=[one._asdict() for one in model.fill_mask(text, top)])
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None


def _json(text: str | tuple[str, str], **answer: Any) -> str:
    return json.dumps({"text": text, **answer}, ensure_ascii=False)
