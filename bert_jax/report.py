"""A study's results for people: table.md, table.json, table.png and a report.html that needs no other file."""

from __future__ import annotations

import base64
import html
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from bert_jax import chips, config, files, metrics, plots
from bert_jax.results import SIGNIFICANT, Result, failures
from bert_jax.study import Base, Run, Study, commands, runs

LEGEND = (
    "mean ± standard deviation over the runs; ≈: no difference from the first row (of a figure: from its first line) "
    f"that the seeds can tell (paired t-test, p ≥ {SIGNIFICANT:g}), *: one that they can, ?: too few seeds to say; in "
    "brackets the paper's figure."
)
FAILURES = (
    "What failed in its training is tried again by the same command, from its last good checkpoint. The usual cure is "
    "a lower learning rate, or a longer warmup."
)


def write(
    study: Study, base: Base, results: Sequence[Result], folder: str | os.PathLike[str], data_dir: str = ""
) -> None:
    """Writes all files anew into `folder`, from the results that are there."""
    home = files.path(folder)
    files.write_json(home / "table.json", to_dict(study, base, results, data_dir))
    files.write(home / "table.md", markdown(study, base, results, data_dir))
    pictures = {}
    if any(result.n for result in results):
        draw(study, results, home / "table.png")
        pictures["The table"] = home / "table.png"
    curves = {label: (run, _figures(run)) for label, run in _pretrainings(results).items()}
    for name, loss in (("masked LM", "mlm_loss"), ("left-to-right LM", "lm_loss")):
        there = {label: run.workdir for label, (run, figures) in curves.items() if loss in figures}
        if there:
            picture = home / f"{loss}.png"
            paired = any("nsp_accuracy" in curves[label][1] for label in there)
            plots.draw(there, [loss, *["nsp_accuracy"] * paired], str(picture))
            pictures[f"Pre-training, {name}, held-out text"] = picture
    files.write(home / "report.html", page(study, base, results, pictures, data_dir))


def to_dict(study: Study, base: Base, results: Sequence[Result], data_dir: str = "") -> dict[str, Any]:
    """The table as plain JSON values: each cell with its figures by seed, its test, and its runs."""
    return {
        "study": study.name,
        "title": study.title,
        "base": base.file,
        "base_changes": {name: config.to_dict(value) for name, value in base.changes.items()},
        "tuning": {name: config.to_dict(value) for name, value in base.tuning.items()},
        "seeds": study.seeds,
        "pretraining_seeds": study.pretraining_seeds,
        "cells": [
            {
                "row": one.row.name,
                "column": one.column.name,
                "mean": _number(one.mean),
                "sd": one.deviation,
                "n": one.n,
                "of": len(one.cell.runs),
                "paper": one.paper,
                "values": {f"{p},{s}": value for (p, s), value in one.values.items()},
                "collapsed": [f"{p},{s}" for p, s in one.collapsed],
                "failed": {f"{p},{s}": why for (p, s), why in one.failed.items()},
                "against_first_row": None
                if one.against is None
                else {
                    "difference": one.against.difference,
                    "p": _number(one.against.p),
                    "pairs": one.against.pairs,
                    "over": one.against.over,
                    "noise": one.against.noise,
                },
                "runs": [run.workdir for run in one.cell.runs.values()],
            }
            for one in results
        ],
        "runs": {
            run.workdir: {
                "kind": run.kind,
                "state": run.state(),
                **({"failed": why} if (why := run.failure()) else {}),
                "command": run.command(data_dir),
                "config": config.to_dict(run.experiment),
                **cost(run),
            }
            for run in runs([one.cell for one in results])
        },
    }


def cost(run: Run) -> dict[str, Any]:
    """What a run took: steps, tokens, FLOPs, seconds in steps and device; of these, tokens a second and MFU.

    Nothing of one that is not done; what is not known (the peak of a CPU) is left out.
    """
    result = run.result() or {}
    found: dict[str, Any] = {
        name: result[name] for name in ("step", "tokens", "flops", "seconds", "device") if name in result
    }
    if found.get("seconds"):
        found["tokens_per_second"] = found["tokens"] / found["seconds"]
        count, _, kind = found["device"].partition(" x ")
        chip = chips.find(kind)
        if chip:
            found["mfu"] = found["flops"] / found["seconds"] / (int(count) * chip.flops)
    return found


def text(one: Result) -> str:
    """A cell: "84.1 ± 0.3 ≈ [84.4]"; "84.1 ? (1 of 3, 1 failed)", where another is not run yet."""
    paper = f" [{one.paper:g}]" if one.paper is not None else ""
    failed = f"{len(one.failed)} failed" if one.failed else ""
    if not one.n:
        return f"-{f' ({failed})' if failed else ''}{paper}"
    mark = "" if one.against is None else " ?" if math.isnan(one.against.p) else " ≈" if one.against.noise else " *"
    spread = f" ± {one.deviation:.{_digits(one)}f}" if one.n > 1 else ""
    missing = f"{one.n} of {len(one.cell.runs)}{', ' if failed else ''}{failed}"
    missing = f" ({missing})" if one.n < len(one.cell.runs) else ""
    collapsed = f", {len(one.collapsed)} collapsed" if one.collapsed else ""
    return f"{one.mean:.{_digits(one)}f}{spread}{mark}{missing}{collapsed}{paper}"


def _digits(one: Result) -> int:
    return 1 if one.column.scale == 100 else 2


def markdown(study: Study, base: Base, results: Sequence[Result], data_dir: str = "") -> str:
    """The table with its legend, what the runs cost, and the command of each."""
    columns = [column.name for column in study.columns]
    lines = [f"# {study.title}", "", _made(study, base), ""]
    lines += [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, cells in _rows(results):
        lines.append(f"| {name} | {' | '.join(text(one) for one in cells)} |")
    largest = _largest(results, columns)
    if any(largest):
        lines.append(f"| always the largest class | {' | '.join(largest)} |")
    lines += ["", LEGEND, ""]
    broken = failures(results)
    if broken:
        lines += ["## Runs that failed", "", FAILURES, ""]
        lines += [f"- {workdir}: {why}" for workdir, why in broken.items()] + [""]
    lines += ["## What the runs took", ""]
    lines += ["| run | state | step | tokens | FLOPs | seconds in steps | tokens/s | MFU | device |", "|---" * 9 + "|"]
    everything = runs([one.cell for one in results])
    for run in everything:
        took = cost(run)
        figures = [f"{took[name]:,}" if name in took else "-" for name in ("step", "tokens")]
        figures += [f"{took['flops']:.3g}" if took.get("flops") else "-"]
        figures += [f"{took[name]:,.0f}" if name in took else "-" for name in ("seconds", "tokens_per_second")]
        figures += [f"{took['mfu']:.1%}" if took.get("mfu") else "-", str(took.get("device", "-"))]
        lines.append(f"| {run.name} | {run.state()} | {' | '.join(figures)} |")
    lines += ["", "## Each run by itself", ""]
    lines += [f"    {line}" for line in commands(everything, data_dir)]
    return "\n".join(lines) + "\n"


def _made(study: Study, base: Base) -> str:
    """What the runs begin with, and how many seeds stand behind what the table says."""
    given = [
        f"{kind} with {', '.join(f'{name}={config.spelled(value)}' for name, value in changes.items())}"
        for kind, changes in (("pre-trained", base.changes), ("fine-tuned", base.tuning))
        if changes
    ]
    lone = " The tests are over the latter, and speak of these very pre-trainings." * (study.pretraining_seeds == 1)
    return (
        f"Base: {'; '.join([base.file, *given])}. "
        f"Seeds: {study.pretraining_seeds} of pre-training, {study.seeds} of fine-tuning.{lone}"
    )


def _rows(results: Sequence[Result]) -> Iterator[tuple[str, list[Result]]]:
    for name in dict.fromkeys(one.row.name for one in results):
        yield name, [one for one in results if one.row.name == name]


def _largest(results: Sequence[Result], columns: Sequence[str]) -> list[str]:
    """What always naming the largest class scores, by column, where the column's figure is an accuracy."""
    found = dict.fromkeys(columns, "")
    for one in results:
        for run in one.cell.runs.values():
            result = run.result() or {}
            if result.get("metric") == "accuracy" and "majority" in result and not one.column.figure:
                found[one.column.name] = f"{100 * result['majority']:.1f}"
    return list(found.values())


def draw(study: Study, results: Sequence[Result], output: str | os.PathLike[str]) -> None:
    """A panel for each column, our figures above and the paper's below: points with their spread, or lines."""
    columns = list(study.columns)
    paper = any(one.paper is not None for one in results)
    lines = any(row.line for row in study.rows)
    names = [row.name for row in study.rows]
    size = (max(3.2, 0.5 * len(names) + 1.8) * len(columns), 6.2 if paper else 3.8)
    figure, panels = plt.subplots(1 + paper, len(columns), figsize=size, squeeze=False, layout="constrained")
    for place, column in enumerate(columns):
        cells = [one for one in results if one.column is column]
        ours, theirs = panels[0][place], panels[1][place] if paper else None
        if lines:
            _draw_lines(ours, theirs, cells)
        else:
            _draw_points(ours, theirs, cells)
        ours.set_title(column.name, fontsize=10)
        for panel in (ours, theirs):
            if panel is not None:
                panel.grid(alpha=0.3, axis="y")
        if theirs is not None and not any(one.paper is not None for one in cells):
            theirs.set_yticks([])
            theirs.text(0.5, 0.5, "not in the paper", transform=theirs.transAxes, ha="center", color="tab:grey")
        if place == 0:
            ours.set_ylabel("ours")
            if theirs is not None:
                theirs.set_ylabel("the paper")
    figure.suptitle(study.title, fontsize=11)
    plots.save(figure, output)


def _draw_points(ours: plt.Axes, theirs: plt.Axes | None, cells: Sequence[Result]) -> None:
    for place, one in enumerate(cells):
        ours.scatter([place] * one.n, list(one.values.values()), s=14, color="tab:blue", alpha=0.45, linewidths=0)
        if one.n:
            ours.errorbar(place, one.mean, one.deviation, fmt="o", color="tab:blue", capsize=3)
        if theirs is not None and one.paper is not None:
            theirs.plot(place, one.paper, "D", color="tab:grey", markersize=5)
    lowest = theirs or ours
    for panel in (ours, theirs):
        if panel is not None:
            panel.set_xlim(-0.5, len(cells) - 0.5)
            panel.set_xticks(range(len(cells)), [""] * len(cells))
    lowest.set_xticks(range(len(cells)), [one.row.name for one in cells], rotation=40, ha="right", fontsize=8)


def _draw_lines(ours: plt.Axes, theirs: plt.Axes | None, cells: Sequence[Result]) -> None:
    for line in dict.fromkeys(one.row.line for one in cells):
        points = [one for one in cells if one.row.line == line]
        done = [one for one in points if one.n]
        if done:
            values = ([one.row.at for one in done], [one.mean for one in done], [one.deviation for one in done])
            ours.errorbar(*values, fmt="o-", capsize=3, label=line)
        known = [(one.row.at, one.paper) for one in points if one.paper is not None]
        if theirs is not None and known:
            theirs.plot(*zip(*known, strict=True), "D-", markersize=5, label=line)
    for panel in (ours, theirs):
        if panel is not None:
            panel.set_xlim(0, 1.05)
            if panel.get_legend_handles_labels()[0]:
                panel.legend(frameon=False, fontsize=8)
    (theirs or ours).set_xlabel("share of the pre-training's steps")


def _pretrainings(results: Sequence[Result]) -> dict[str, Run]:
    """The pre-trainings, by the first row that stands on each, and the seed where there are several."""
    several = len({seeds[0] for one in results for seeds in one.cell.runs}) > 1
    found: dict[str, tuple[str, Run]] = {}
    for one in results:
        for seeds, run in one.cell.runs.items():
            start = run.after or run
            label = f"{one.row.name}, seed {seeds[0]}" if several else one.row.name
            if start.kind == "pre-training":
                found.setdefault(start.workdir, (label, start))
    return dict(found.values())


def _figures(run: Run) -> set[str]:
    """What there are validation figures of."""
    return {name for line in metrics.read(run.workdir, "validation") for name in line if line[name] is not None}


_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 78em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 }
th, td { border: 1px solid #ccc; padding: .35em .7em; text-align: left; vertical-align: top }
th { background: #f3f3f3 }
img { max-width: 100% }
pre { background: #f6f6f6; padding: .6em; overflow-x: auto; font-size: 12px }
summary { cursor: pointer }
"""


def page(study: Study, base: Base, results: Sequence[Result], pictures: Mapping[str, Any], data_dir: str = "") -> str:
    """The report: each cell opens to its seeds, test, configs, commands and cost."""
    columns = [column.name for column in study.columns]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *columns))
    body = "".join(
        f"<tr><th>{html.escape(name)}</th>{''.join(_cell(one, data_dir) for one in cells)}</tr>"
        for name, cells in _rows(results)
    )
    largest = _largest(results, columns)
    if any(largest):
        body += f"<tr><td>always the largest class</td>{''.join(f'<td>{one}</td>' for one in largest)}</tr>"
    images = "".join(
        f'<h2>{html.escape(name)}</h2><img alt="{html.escape(name)}" src="data:image/png;base64,'
        f'{base64.b64encode(path.read_bytes()).decode()}">'
        for name, path in pictures.items()
    )
    before = "".join(_details(run, data_dir) for run in _pretrainings(results).values())
    lost = "".join(f"<li>{html.escape(run)}: {html.escape(why)}</li>" for run, why in failures(results).items())
    lost = f"<h2>Runs that failed</h2><p>{html.escape(FAILURES)}</p><ul>{lost}</ul>" if lost else ""
    title = html.escape(study.title)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>{title}</h1><p>{html.escape(_made(study, base))} Written "
        f"{time.strftime('%Y-%m-%d %H:%M')}.</p><table><tr>{head}</tr>{body}</table><p>{html.escape(LEGEND)}</p>{lost}"
        f"{images}<h2>Pre-trainings</h2>{before or '<p>None: the base is weights that were there.</p>'}</html>\n"
    )


def _cell(one: Result, data_dir: str) -> str:
    lines = [
        f"seeds {p}, {s}: {value:.{_digits(one) + 1}f}{' (collapsed)' * ((p, s) in one.collapsed)}"
        for (p, s), value in one.values.items()
    ]
    if one.against is not None:
        test = one.against
        chance = "too few pairs for a test" if math.isnan(test.p) else f"p = {test.p:.3g}"
        lines.append(f"less the first row: {test.difference:+.2f}; {chance}; {test.pairs} pairs over {test.over}")
    lines += [f"seeds {p}, {s}: failed: {why}" for (p, s), why in one.failed.items()]
    said = "".join(f"<div>{html.escape(line)}</div>" for line in lines)
    inner = "".join(_details(run, data_dir) for run in one.cell.runs.values())
    return f"<td>{html.escape(text(one))}<details><summary>more</summary>{said}{inner}</details></td>"


def _details(run: Run, data_dir: str) -> str:
    took = ", ".join(f"{k} {v:,.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in cost(run).items())
    values = json.dumps(config.to_dict(run.experiment), indent=1)
    return (
        f"<details><summary>{html.escape(run.name)}: {html.escape(took or run.state())}</summary>"
        f"<pre>{html.escape(run.command(data_dir))}</pre><pre>{html.escape(values)}</pre></details>"
    )


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
