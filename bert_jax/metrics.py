"""What a run says while it goes: metrics.jsonl, TensorBoard events, a live line."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from typing import Any

import rich.console
import rich.progress
import tensorboardX
from etils import epath


class Writer:
    """Appends to the workdir's metrics.jsonl ("step", "split", then names and numbers) and TensorBoard events.

    Lines past `step`, the step that a run resumes at, are dropped: they are about to be written again.
    """

    def __init__(self, workdir: str, step: int = -1) -> None:
        epath.Path(workdir).mkdir(parents=True, exist_ok=True)
        self._path = epath.Path(workdir) / "metrics.jsonl"
        kept = [line for line in read(workdir) if line["step"] <= step]
        self._path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._local = "://" not in str(workdir)
        self._events = tensorboardX.SummaryWriter(
            str(epath.Path(workdir) / "tensorboard"), purge_step=step + 1 if step >= 0 else None, write_to_disk=True
        )

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        line = json.dumps({"step": step, "split": split, **{k: _rounded(v) for k, v in values.items()}}) + "\n"
        if self._local:
            with self._path.open("a") as file:
                file.write(line)
        else:  # object stores do not append
            self._path.write_text(self._path.read_text() + line)
        for name, value in values.items():
            self._events.add_scalar(f"{split}/{name}", value, step)
        self._events.flush()

    def close(self) -> None:
        self._events.close()


def read(workdir: str, split: str | None = None) -> list[dict[str, Any]]:
    """The lines of a workdir's metrics.jsonl, of one split or of all; a last line cut short by a kill is left out."""
    path = epath.Path(workdir) / "metrics.jsonl"
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if split in (None, line["split"]):
            lines.append(line)
    return lines


def _rounded(value: float) -> float | None:
    """Seven digits are what float32 holds; JSON has no NaN."""
    return float(f"{value:.7g}") if math.isfinite(value) else None


class Progress:
    """A live line on a terminal, a plain line at each log elsewhere: step, loss, tokens/s, time left. Use in `with`."""

    def __init__(self, total: int, start: int, quiet: bool = False) -> None:
        self._console = rich.console.Console(stderr=True, soft_wrap=True, highlight=False, quiet=quiet)
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("step {task.completed}/{task.total}"),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.TextColumn("{task.fields[text]}"),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("left"),
            rich.progress.TimeRemainingColumn(compact=False, elapsed_when_finished=False),
            console=self._console,
            disable=quiet or not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("", total=total, completed=start, text="compiling")
        self._total, self._start, self._began = total, start, time.monotonic()

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def advance(self, step: int) -> None:
        self._bar.update(self._task, completed=step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the newest figures."""
        text = "  ".join(f"{name} {_short(value)}" for name, value in values.items())
        self._bar.update(self._task, completed=step, text=text)
        if not sys.stderr.isatty():
            left = (time.monotonic() - self._began) / max(1, step - self._start) * (self._total - step)
            self.say(f"step {step}/{self._total}  {text}  left {left // 60:.0f}:{left % 60:02.0f}")

    def say(self, text: str) -> None:
        """A line of its own, above the live one."""
        self._console.print(text, markup=False)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
