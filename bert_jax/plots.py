"""Learning curves of one or more runs, drawn from their metrics.jsonl."""

from __future__ import annotations

import io
import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from bert_jax import experiment, files, metrics
from bert_jax.config import require

# The figure that a metric must be held against, and how its line is called.
BASELINES = {
    "mlm_loss": ("unigram_entropy", "unigram entropy"),
    "nsp_accuracy": ("nsp_majority", "larger class"),
    "accuracy": ("majority", "largest class"),
}
TITLES = {
    "mlm_loss": "masked LM loss (nats)",
    "mlm_accuracy": "masked LM accuracy",
    "nsp_accuracy": "next sentence accuracy",
    "accuracy": "accuracy",
}


def draw(runs: Mapping[str, str], names: Sequence[str], output: str, split: str = "validation") -> None:
    """Writes a picture with a panel for each metric of `names`: a curve for each run that has it, and its baseline.

    Args:
      runs: workdir by label.
      names: metrics, as metrics.jsonl spells them.
      output: where the picture goes; its ending says the format.
      split: "validation" or "train".

    Raises:
      ValueError: where no run has one of the metrics.
    """
    figure, panels = plt.subplots(1, len(names), figsize=(5.2 * len(names), 3.8), squeeze=False, layout="constrained")
    for name, panel in zip(names, panels[0], strict=True):
        drawn = 0
        for label, workdir in runs.items():
            lines = [line for line in metrics.read(workdir, split) if line.get(name) is not None]
            if not lines:
                continue
            drawn += 1
            panel.plot([line["step"] for line in lines], [line[name] for line in lines], marker=".", label=label)
            if drawn == 1:
                _mark_phases(panel, workdir)
            key, text = BASELINES.get(name, ("", ""))
            if drawn == 1 and key in lines[-1]:  # each phase has its own
                steps, values = [line["step"] for line in lines], [line[key] for line in lines]
                label = f"{text}: {values[-1]:.3g}"
                panel.step(steps, values, where="pre", color="grey", linestyle="--", linewidth=1, label=label)
        require(drawn > 0, f"none of {', '.join(runs.values())} has {split} figures named {name!r}")
        panel.set(xlabel="step", ylabel=TITLES.get(name, name))
        panel.grid(alpha=0.3)
        panel.legend(frameon=False)
    figure.suptitle(f"{split} figures", fontsize=10)
    save(figure, output)


def save(figure: plt.Figure, output: str | os.PathLike[str]) -> None:
    """Writes a figure, whole, in the format that the name ends in, and closes it.

    Raises:
      ValueError: at an ending that names no format.
    """
    ending, formats = pathlib.PurePath(output).suffix.removeprefix("."), figure.canvas.get_supported_filetypes()
    require(ending in formats, f"{output} must end in the name of a format: {', '.join(sorted(formats))}")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=130, format=ending)
    plt.close(figure)
    files.write(output, picture.getvalue())


def _mark_phases(panel: plt.Axes, workdir: str) -> None:
    """A dotted line where a phase ends and the sequences get longer."""
    if not (files.path(workdir) / "config.json").exists():
        return
    step = 0
    phases = experiment.read_config(workdir).phases
    for before, after in itertools.pairwise(phases):
        step += before.steps
        if step:
            panel.axvline(step, color="grey", linestyle=":", linewidth=1)
            place = panel.get_xaxis_transform()  # steps across, share of the panel's height upwards
            panel.text(step, 0.98, f" length {after.length}", transform=place, va="top", fontsize=8)
