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

from bert_jax import experiment, files
from bert_jax.config import require
from bert_jax.training import metrics

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
      ValueError: where no run has one of the metrics, or a workdir holds none.
    """
    for workdir in runs.values():
        there = files.remote(workdir) or (files.path(workdir) / "metrics.jsonl").exists()
        require(there, f"{workdir} is not a run's workdir: it has no metrics.jsonl")
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


def draw_groups(groups: Mapping[str, Mapping[str, Sequence[str]]], output: str) -> None:
    """Writes a picture of training losses: a panel for each group, in it a colour for each label and a line for each of
    its runs; and, of groups that were evaluated more than once, a panel of the task's metric on validation data.

    Args:
      groups: workdirs by label, by group.
      output: where the picture goes.
    """
    panels = [(name, "train", "loss", runs) for name, runs in groups.items()]
    for name, runs in groups.items():
        each = [workdir for workdirs in runs.values() for workdir in workdirs]
        metric = next((experiment.read_config(w).task.metric for w in each if _recorded(w)), "")
        scored = [sum(line.get(metric) is not None for line in metrics.read(w, "validation")) for w in each]
        if metric and max(scored) > 1:
            panels.append((name, "validation", metric, runs))
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure, grid = plt.subplots(down, across, figsize=(3.7 * across, 3.2 * down), squeeze=False, layout="constrained")
    colors = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    for panel, (name, split, metric, runs) in zip(grid.flat, panels, strict=False):
        for (label, workdirs), color in zip(runs.items(), itertools.cycle(colors), strict=False):
            for number, workdir in enumerate(workdirs):
                lines = [line for line in metrics.read(workdir, split) if line.get(metric) is not None]
                points = [line["step"] for line in lines], [line[metric] for line in lines]
                panel.plot(*points, color=color, alpha=0.7, linewidth=1, label=label if number == 0 else None)
        said = f"training {metric}" if split == "train" else TITLES.get(metric, metric)
        panel.set(xlabel="step", ylabel=said)
        panel.set_title(name, fontsize=10)
        panel.grid(alpha=0.3)
    grid.flat[0].legend(frameon=False, fontsize=8)
    for panel in grid.flat[len(panels) :]:
        panel.remove()
    save(figure, output)


def _recorded(workdir: str) -> bool:
    return (files.path(workdir) / "config.json").exists()


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
    if not _recorded(workdir):
        return
    step = 0
    phases = experiment.read_config(workdir).phases
    for before, after in itertools.pairwise(phases):
        step += before.steps
        if step:
            panel.axvline(step, color="grey", linestyle=":", linewidth=1)
            place = panel.get_xaxis_transform()  # steps across, share of the panel's height upwards
            panel.text(step, 0.98, f" length {after.length}", transform=place, va="top", fontsize=8)
