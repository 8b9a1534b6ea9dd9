"""experiments/notebook.ipynb: runs from top to bottom, learns what it says it learns, and is kept without outputs."""

import json
import pathlib
from typing import Any

import pytest

from tests.conftest import REPOSITORY

CELLS = json.loads((REPOSITORY / "experiments" / "notebook.ipynb").read_text())["cells"]


def test_it_is_kept_without_outputs() -> None:
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.usefixtures("few_devices")
def test_it_runs_from_top_to_bottom(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(tmp_path))
    found: dict[str, Any] = {}
    for cell in CELLS:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), found)
    assert found["result"]["mlm_loss"] < found["result"]["unigram_entropy"] - 0.5, "it reads context"
    assert found["tuned"]["accuracy"] > 0.9
    assert [answer.label for answer in found["answers"]] == ["animal", "tool"]
    assert [line["step"] for line in found["lines"] if line["split"] == "validation"] == [0, 40, 80, 120]
