"""A study's results for people: table.md, table.json, table.png and a report.html that needs no other file."""

from __future__ import annotations

import base64
import collections
import html
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from bert_jax import chips, config, experiment, files, provenance
from bert_jax.studies import plots
from bert_jax.studies.results import SIGNIFICANT, Result, failures, largest_class
from bert_jax.studies.study import Base, Run, Study, column_changes, commands, row_changes, runs
from bert_jax.training import metrics

CAPTION = (
    "Small points are runs, large ones their means, bars the standard deviation. Where the paper has figures, its "
    "differences from the first row stand beside ours, whose bars are then the standard deviation of the seeds' pairs."
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
    pictures: dict[str, tuple[str, Any]] = {}  # by title, with a sentence on what is seen
    if any(result.n for result in results):
        draw(study, results, home / "table.png")
        pictures["The table, drawn"] = CAPTION, home / "table.png"
    curves = {label: (run, _figures(run)) for label, run in _pretrainings(results).items()}
    for name, loss in (("masked LM", "mlm_loss"), ("left-to-right LM", "lm_loss")):
        there = {label: run.workdir for label, (run, figures) in curves.items() if loss in figures}
        if there:
            picture = home / f"{loss}.png"
            paired = any("nsp_accuracy" in curves[label][1] for label in there)
            plots.draw(there, [loss, *["nsp_accuracy"] * paired], str(picture))
            pictures[f"Pre-training, {name}"] = "On held-out text; dashed: what knows no context.", picture
    tuned = _fine_tunings(results)
    if tuned:
        plots.draw_groups(tuned, str(home / "fine_tuning.png"))
        caption = "A colour for each row, a line for each seed."
        pictures["Fine-tuning"] = caption, home / "fine_tuning.png"
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
        "written": provenance.now(),
        "rows": {row.name: row_changes(row, base) for row in study.rows},
        "columns": {column.name: column_changes(column, base) for column in study.columns},
        "cells": [
            {
                "row": one.row.name,
                "column": one.column.name,
                "mean": _number(one.mean),
                "sd": one.deviation,
                "n": one.n,
                "of": len(one.cell.runs),
                "missing": one.missing,
                "largest_class": largest_class(one),
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
                **origin(run),
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


def origin(run: Run) -> dict[str, Any]:
    """By which versions a run began and ended, and on which data, as far as it says: see `provenance.now`."""
    found = run.result() or {}
    if not found and (files.path(run.workdir) / "config.json").exists():
        found = {"began": experiment.began(run.workdir)}
    return {name: found[name] for name in ("began", "ended", "data") if found.get(name)}


def progress(results: Sequence[Result]) -> str:
    """How many runs are done, what they took and on what, in two sentences."""
    everything = runs([one.cell for one in results])
    states = collections.Counter[str](run.state() for run in everything)
    counts = [f"{states['done']} of {len(everything)} runs are done"]
    counts += [f"{states[state]} {word}" for state, word in _STATES.items() if states[state]]
    took = [cost(run) for run in everything]
    operations, seconds = (sum(one.get(name, 0.0) for one in took) for name in ("flops", "seconds"))
    devices = dict.fromkeys(str(one["device"]) for one in took if "device" in one)
    said = f"{', '.join(counts)}."
    if devices:
        said += f" They took {operations:.3g} FLOPs and {seconds / 3600:,.2f} hours in steps, on {', '.join(devices)}."
    return said


_STATES = {"failed": "failed", "begun": "begun", "to run": "not yet run"}


def text(one: Result) -> str:
    """A cell: "84.1 ± 0.3 ≈ [84.4]"; "84.1 ? (1 of 3; 1 failed, 1 not yet run)"; "not yet run"."""
    value, notes, paper = _parts(one)
    inner = f" ({'; '.join(notes)})" if notes else ""
    return f"{value}{inner}{f' {paper}' if paper else ''}"


def _parts(one: Result) -> tuple[str, list[str], str]:
    """A cell's figure with its mark, what is to be said of its runs, and the paper's figure."""
    paper = f"[{one.paper:g}]" if one.paper is not None else ""
    absent = ", ".join(f"{count} {why}" for why, count in one.missing.items())
    if not one.n:
        return next(iter(one.missing)) if len(one.missing) == 1 else absent or "-", [], paper
    mark = "" if one.against is None else " ?" if math.isnan(one.against.p) else " ≈" if one.against.noise else " *"
    spread = f" ± {one.deviation:.{_digits(one)}f}" if one.n > 1 else ""
    notes = [f"{one.n} of {len(one.cell.runs)}", absent] if absent else []
    notes += [f"{len(one.collapsed)} collapsed"] * bool(one.collapsed)
    return f"{one.mean:.{_digits(one)}f}{spread}{mark}", notes, paper


def _digits(one: Result) -> int:
    return 1 if one.column.scale == 100 else 2


def markdown(study: Study, base: Base, results: Sequence[Result], data_dir: str = "") -> str:
    """The table with its legend, what the runs cost, and the command of each."""
    columns = [column.name for column in study.columns]
    lines = [f"# {study.title}", "", _made(study, base), "", progress(results), ""]
    lines += [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, cells in _rows(results):
        lines.append(f"| {name} | {' | '.join(text(one) for one in cells)} |")
    largest = _largest(results, columns)
    if any(largest):
        lines.append(f"| always the largest class | {' | '.join(largest)} |")
    lines += ["", *(f"- {line}" for line in legend(study, results)), "", provenance.written(), ""]
    lines += ["## What rows and columns are", ""]
    given = {row.name: row_changes(row, base) for row in study.rows}
    given |= {column.name: column_changes(column, base) for column in study.columns}
    lines += [f"- {name}: {_listed(changes)}" for name, changes in given.items()] + [""]
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


def _listed(changes: Sequence[str]) -> str:
    return "; ".join(changes) or "the base as it is"


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


def legend(study: Study, results: Sequence[Result]) -> list[str]:
    """What the table's marks mean, of those that it has: a sentence each."""
    states = {run.state() for one in results for run in one.cell.runs.values()}
    lines = ["A cell is the mean over its runs and, where there are several, ± their standard deviation."]
    if any(one.paper is not None for one in results):
        lines.append("In [brackets] stands the paper's figure.")
    if len(study.rows) > 1:
        lines.append(
            "≈ says that the seeds cannot tell this row from the first one (paired t-test, p ≥ "
            f"{SIGNIFICANT:g}), * that they can, and ? that there are too few seeds for a test."
        )
    if any(row.line for row in study.rows):
        lines.append("A point is compared with the first line's point at the same share of the pre-training.")
    if "begun" in states:
        lines.append("A run that has begun is under way or was cut off; the same command goes on with it.")
    if any(one.collapsed for one in results):
        lines.append("A collapsed run gives the same answer to everything.")
    if any(largest_class(one) for one in results):
        lines.append("The last row is the score of always answering with the largest class.")
    return lines


def _largest(results: Sequence[Result], columns: Sequence[str]) -> list[str]:
    """What always naming the largest class scores, by column."""
    found = dict.fromkeys(columns, "")
    for one in results:
        found[one.column.name] = found[one.column.name] or largest_class(one)
    return list(found.values())


def draw(study: Study, results: Sequence[Result], output: str | os.PathLike[str]) -> None:
    """A panel for each column: our figures, as points with their spread, or lines.

    Then, for each column that the paper has figures of, a panel of differences from the first row (of a figure, from
    its first line): ours and the paper's on one scale.
    """
    lines = any(row.line for row in study.rows)
    by_column = {column.name: [one for one in results if one.column is column] for column in study.columns}
    paper = {name: found for name, cells in by_column.items() if len(found := _differences(cells)) > 1}
    width = 3.6 if lines else max(3.2, 0.5 * len(study.rows) + 1.8)
    across = max(1, min(len(by_column), int(11 // width)))
    heights = [-(-len(panels) // across) for panels in (by_column, paper)]
    figure, grid = plt.subplots(
        sum(heights), across, figsize=(width * across, 3.6 * sum(heights)), squeeze=False, layout="constrained"
    )
    panels = [*grid[: heights[0]].flat], [*grid[heights[0] :].flat]
    for panel, (name, cells) in zip(panels[0], by_column.items(), strict=False):
        (_draw_lines if lines else _draw_points)(panel, cells)
        if not any(one.n for one in cells):
            panel.set_yticks([])
            panel.text(0.5, 0.5, "no figures yet", transform=panel.transAxes, ha="center", color="dimgrey")
        panel.set_title(name, fontsize=10)
    for panel, (name, found) in zip(panels[1], paper.items(), strict=False):
        _draw_differences(panel, found, lines)
        panel.set_title(f"{name}, less the first {'line' if lines else 'row'}", fontsize=10)
    for panel in [*panels[0][len(by_column) :], *panels[1][len(paper) :]]:
        panel.remove()
    for panel in figure.axes:
        panel.grid(alpha=0.3, axis="y")
    figure.suptitle(study.title, fontsize=11)
    plots.save(figure, output)


def _differences(cells: Sequence[Result]) -> list[tuple[Result, float]]:
    """The cells of a column that the paper has, each with what it is there less the first row's at the same point."""
    first: dict[float, float] = {}
    known = [(one, first.setdefault(one.row.at, one.paper)) for one in cells if one.paper is not None]
    return [(one, one.paper - start) for one, start in known if one.paper is not None]


def _draw_points(panel: plt.Axes, cells: Sequence[Result]) -> None:
    for place, one in enumerate(cells):
        panel.scatter([place] * one.n, list(one.values.values()), s=14, color="tab:blue", alpha=0.45, linewidths=0)
        if one.n:
            panel.errorbar(place, one.mean, one.deviation, fmt="o", color="tab:blue", capsize=3)
    _name_rows(panel, cells)


def _name_rows(panel: plt.Axes, cells: Sequence[Result]) -> None:
    panel.set_xlim(-0.5, len(cells) - 0.5)
    panel.set_xticks(range(len(cells)), [one.row.name for one in cells], rotation=40, ha="right", fontsize=8)


def _draw_lines(panel: plt.Axes, cells: Sequence[Result]) -> None:
    for line in dict.fromkeys(one.row.line for one in cells):
        done = [one for one in cells if one.row.line == line and one.n]
        if done:
            values = ([one.row.at for one in done], [one.mean for one in done], [one.deviation for one in done])
            panel.errorbar(*values, fmt="o-", capsize=3, label=line)
    _share_of_steps(panel)


def _share_of_steps(panel: plt.Axes) -> None:
    panel.set_xlim(0, 1.05)
    panel.set_xlabel("share of the pre-training's steps")
    if panel.get_legend_handles_labels()[0]:
        panel.legend(frameon=False, fontsize=8)


def _draw_differences(panel: plt.Axes, known: Sequence[tuple[Result, float]], lines: bool) -> None:
    """Ours with the spread of the seeds' differences, and the paper's."""
    panel.axhline(0, color="grey", linewidth=1)
    names = dict.fromkeys(one.row.line for one, _ in known)
    for line, color in zip(names, plt.rcParams["axes.prop_cycle"].by_key()["color"] * len(names), strict=False):
        points = [
            (one.row.at if lines else place, one.against, paper)
            for place, (one, paper) in enumerate(known)
            if one.row.line == line
        ]
        of = f"{line}, " if lines else ""
        places = [at for at, test, _ in points if test]
        tests = [test for _, test, _ in points if test]
        if tests:
            values = [test.difference for test in tests], [test.deviation for test in tests]
            panel.errorbar(places, *values, fmt="o", color=color, capsize=3, label=f"{of}ours")
        theirs = [at for at, *_ in points], [paper for *_, paper in points]
        panel.plot(*theirs, "D", color="dimgrey", markersize=5, label=f"{of}the paper's")
    if lines:
        _share_of_steps(panel)
    else:
        _name_rows(panel, [one for one, _ in known])
        panel.legend(frameon=False, fontsize=8)


def _fine_tunings(results: Sequence[Result]) -> dict[str, dict[str, list[str]]]:
    """The workdirs of fine-tunings that have begun, by column and row."""
    found: dict[str, dict[str, list[str]]] = {}
    for one in results:
        begun = [run.workdir for run in one.cell.runs.values() if run.kind == "fine-tuning" and _figures(run, "train")]
        if begun:
            found.setdefault(one.column.name, {})[one.row.name] = begun
    return found


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


def _figures(run: Run, split: str = "validation") -> set[str]:
    """What there are figures of."""
    return {name for line in metrics.read(run.workdir, split) for name in line if line[name] is not None}


_STYLE = """
:root { color-scheme: light }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 76em; padding: 0 1em; color: #1d1d1f;
  background: #fff }
h1 { font-size: 1.5em; line-height: 1.25 }
h2 { font-size: 1.15em; margin-top: 2em }
table { border-collapse: collapse; margin: 1em 0; max-width: 100% }
th, td { border: 1px solid #c4c4c8; padding: .35em .6em; text-align: left; vertical-align: top;
  overflow-wrap: anywhere; font-variant-numeric: tabular-nums }
th { background: #f1f1f4; font-weight: 600; overflow-wrap: break-word }
td a { color: inherit; text-decoration: underline dotted #77777d; text-underline-offset: .25em }
td a:hover { color: #0047ab }
small { color: #4a4a50; font-weight: 400; font-size: .8em; display: block }
.absent { color: #55555c } .failed { color: #a40000 }
.wide { overflow-x: auto }
img { max-width: 100%; height: auto }
pre { background: #f4f4f6; padding: .6em; font-size: 12px; white-space: pre-wrap; overflow-wrap: anywhere }
details { margin: .3em 0; padding-left: .2em } details details { margin-left: 1em }
summary { cursor: pointer; overflow-wrap: anywhere } :target { outline: 2px solid #0047ab; outline-offset: 4px }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1em 1em; margin: .5em 0 .5em 1em }
dd { margin: 0; overflow-wrap: anywhere } li { overflow-wrap: anywhere }
@media (max-width: 60em) { body { font-size: 14px } th, td { padding: .3em .4em; font-size: 13px } }
"""


def page(
    study: Study,
    base: Base,
    results: Sequence[Result],
    pictures: Mapping[str, tuple[str, Any]],
    data_dir: str = "",
) -> str:
    """The report, with pictures: by title, a sentence and a file.

    A cell leads to its seeds, test, configs, commands and cost, which open below the table.
    """
    columns = [column.name for column in study.columns]
    numbers = {id(one): f"cell{number}" for number, one in enumerate(results)}
    head = "".join(f"<th>{_named(column.name, column_changes(column, base))}</th>" for column in study.columns)
    given = {row.name: row_changes(row, base) or ["the base as it is"] for row in study.rows}
    body = "".join(
        f"<tr><th>{_named(name, given.get(name, []))}</th>{''.join(_cell(one, numbers[id(one)]) for one in cells)}</tr>"
        for name, cells in _rows(results)
    )
    largest = _largest(results, columns)
    if any(largest):
        body += f"<tr><th>always the largest class</th>{''.join(f'<td>{one}</td>' for one in largest)}</tr>"
    explained = "".join(f"<li>{html.escape(line)}</li>" for line in legend(study, results))
    images = "".join(_image(name, *picture) for name, picture in pictures.items())
    each = "".join(_behind(one, numbers[id(one)], data_dir) for one in results)
    before = "".join(_details(run, data_dir) for run in _pretrainings(results).values())
    lost = "".join(f"<li>{html.escape(run)}: {html.escape(why)}</li>" for run, why in failures(results).items())
    lost = f"<h2>Runs that failed</h2><p>{html.escape(FAILURES)}</p><ul>{lost}</ul>" if lost else ""
    title, made, done = (html.escape(said) for said in (study.title, _made(study, base), progress(results)))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1><p>{made}</p><p>{done}</p>"
        f'<div class="wide"><table><tr><th></th>{head}</tr>{body}</table></div><ul>'
        f"{explained}</ul>{lost}{images}"
        f"<h2>Behind each cell</h2><p>Its seeds, its test, and its runs with commands, configs and costs.</p>{each}"
        f"<h2>Pre-trainings</h2>{before or '<p>None: the base is weights that were there.</p>'}"
        f"<p><small>{html.escape(provenance.written())}</small></p></html>\n"
    )


def _image(name: str, caption: str, path: Any) -> str:
    title, content = html.escape(name), base64.b64encode(path.read_bytes()).decode()
    return f'<h2>{title}</h2><p>{html.escape(caption)}</p><img alt="{title}" src="data:image/png;base64,{content}">'


def _named(name: str, lines: Sequence[str]) -> str:
    """A row's or a column's name, with what it is."""
    return _breakable(name) + "".join(f"<small>{_breakable(line)}</small>" for line in lines)


def _breakable(text: str) -> str:
    """As HTML; long names of fields and files may be broken at their parts."""
    return re.sub(r"([._/=]|\w(?=\())", r"\1<wbr>", html.escape(text))


def _cell(one: Result, number: str) -> str:
    kind = "" if one.n else ' class="failed"' if one.failed else ' class="absent"'
    value, notes, paper = _parts(one)
    below = "".join(f"<small>{html.escape(line)}</small>" for line in [*notes, paper] if line)
    return f'<td{kind}><a href="#{number}">{_together(value)}</a>{below}</td>'


def _together(value: str) -> str:
    """A cell's figure as HTML: a spread and a mark stay in one line."""
    return re.sub("(?<=±) | (?=[≈*?])", "&nbsp;", html.escape(value))


def _behind(one: Result, number: str, data_dir: str) -> str:
    """What stands behind a cell. The mark is inside, so that a browser opens the whole where it goes to the mark."""
    said = [
        (f"seeds {p}, {s}", f"{value:.{_digits(one) + 1}f}{' (collapsed)' * ((p, s) in one.collapsed)}")
        for (p, s), value in one.values.items()
    ]
    if one.against is not None:
        test = one.against
        chance = "too few pairs for a test" if math.isnan(test.p) else f"p = {test.p:.3g}"
        said.append(("less the first row", f"{test.difference:+.2f}; {chance}; {test.pairs} pairs over {test.over}"))
    said += [(f"seeds {p}, {s}", f"failed: {why}") for (p, s), why in one.failed.items()]
    inner = "".join(_details(run, data_dir) for run in one.cell.runs.values())
    title = html.escape(f"{one.row.name}, {one.column.name}: {text(one)}")
    return f'<details><summary>{title}</summary><div id="{number}">{_pairs(said)}{inner}</div></details>'


def _pairs(said: Sequence[tuple[str, str]]) -> str:
    lines = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in said)
    return f"<dl>{lines}</dl>" if lines else ""


def _details(run: Run, data_dir: str) -> str:
    said = [(name, f"{value:,.4g}" if isinstance(value, float) else str(value)) for name, value in cost(run).items()]
    made = origin(run)
    said += [
        (name, f"{made[name].get('date')}, {provenance.spelled(made[name])}")
        for name in ("began", "ended")
        if name in made
    ]
    said += [(f"data of {name}", str(known)) for name, known in made.get("data", {}).items()]
    values = json.dumps(config.to_dict(run.experiment), indent=1)
    return (
        f"<details><summary>{html.escape(run.name)}: {html.escape(run.state())}</summary>{_pairs(said)}"
        f"<pre>{html.escape(run.command(data_dir))}</pre>"
        f"<details><summary>its config</summary><pre>{html.escape(values)}</pre></details></details>"
    )


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
