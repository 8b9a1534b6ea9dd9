"""Logging: metrics.jsonl, TensorBoard events, hooks, a progress line; goodput, i.e. where the time went; traces."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias, TypeVar

import jax
import rich.console
import rich.progress
import rich.text
import tensorboardX
from absl import logging

from bert_jax import config, files

T = TypeVar("T")

# Is called with a run's workdir and each line of its metrics.jsonl, once that is written, on the first host.
Hook: TypeAlias = Callable[[str, dict[str, Any]], None]


class Writer:
    """Appends to the workdir's metrics.jsonl ("step", "split", then names and numbers) and TensorBoard events.

    Lines past `step`, the step that a run resumes at, are dropped: they are about to be written again. Of a workdir in
    a bucket the events are kept in a local folder until `sync`.

    `hook` is told each line once: not those that an earlier call wrote, nor one that was dropped and comes again. An
    error of its own is said once, and ends nothing.
    """

    def __init__(self, workdir: str, step: int = -1, hook: Hook | None = None) -> None:
        folder = files.make_folder(workdir)
        self._workdir, self._hook, self._complained = workdir, hook, False
        self._told: set[tuple[Any, Any]] = set()  # step and split of lines that were dropped

        def keep(text: str) -> bool:
            line = _parsed(text)
            if line is not None and line["step"] > step:
                self._told.add((line["step"], line["split"]))
            return line is not None and line["step"] <= step

        self._lines = files.Lines(folder / "metrics.jsonl", keep)
        self._charts = folder / "tensorboard"
        self._local = tempfile.TemporaryDirectory() if files.remote(workdir) else None
        self._events = tensorboardX.SummaryWriter(
            self._local.name if self._local else str(self._charts),
            purge_step=step + 1 if step >= 0 else None,
            write_to_disk=True,
        )

    def write(self, step: int, split: str, values: Mapping[str, float], **more: Any) -> None:
        """Numbers for a line and the charts; `more` is for the line alone, and not rounded."""
        figures = {name: _rounded(value) for name, value in values.items()}
        line = json.dumps({"step": step, "split": split, **figures, **more})
        self._lines.append(line)
        for name, value in values.items():
            self._events.add_scalar(f"{split}/{name}", value, step)
        self._events.flush()
        if self._hook and (step, split) not in self._told:
            try:
                self._hook(self._workdir, json.loads(line))
            except (Exception, SystemExit) as error:
                if not self._complained:
                    logging.warning("%s: the hook of its metrics failed; the run goes on: %r", self._workdir, error)
                self._complained = True

    def sync(self) -> None:
        """Everything that was written is on disk, or in the bucket, when this returns."""
        self._lines.sync()
        if self._local:
            files.upload(self._local.name, self._charts)

    def close(self) -> None:
        self._lines.close()
        self._events.close()
        if self._local:
            files.upload(self._local.name, self._charts)
            self._local.cleanup()


class WeightsAndBiases:
    """A hook that sends the numbers of each line to Weights & Biases, as SPLIT/NAME over "step".

    Each workdir is a run there, of the experiment's name and config.json. WORKDIR/wandb.json keeps its id, so that a
    run that goes on here goes on there. Project, entity and mode are wandb's own: $WANDB_PROJECT, $WANDB_MODE.

    Raises:
      ValueError: where wandb is not installed.
    """

    def __init__(self) -> None:
        try:
            import wandb
        except ImportError:
            raise ValueError("Weights & Biases is not installed: pip install 'bert_jax[wandb]'") from None
        self._wandb: Any = wandb
        self._runs: dict[str, Any] = {}  # None: it could not be begun

    def __call__(self, workdir: str, line: dict[str, Any]) -> None:
        if workdir not in self._runs:
            self._runs[workdir] = None
            self._runs[workdir] = self._begin(workdir)
        numbers = {name: value for name, value in line.items() if isinstance(value, (int, float)) and name != "step"}
        if self._runs[workdir] and numbers and line["split"] != "since_log":
            values = {f"{line['split']}/{name}": value for name, value in numbers.items()}
            self._runs[workdir].log({"step": line["step"], **values})

    def _begin(self, workdir: str) -> Any:
        known, values = files.path(workdir) / "wandb.json", config.read_json(files.path(workdir) / "config.json")
        if not known.exists():
            files.write_json(known, {"id": uuid.uuid4().hex[:12]})
        run = self._wandb.init(
            id=config.read_json(known)["id"],
            resume="allow",
            reinit="create_new",  # beside those of other workdirs
            name=f"{values.get('name')}, seed {values.get('seed')}",
            config=values,
        )
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="step")
        return run


HOOKS: dict[str, Callable[[], Hook]] = {"wandb": WeightsAndBiases}  # by the name that --log_to has for them


def read(workdir: str, split: str | None = None) -> list[dict[str, Any]]:
    """The lines of a workdir's metrics.jsonl, of one split or of all; what is damaged is left out."""
    lines = (_parsed(text) for text in files.read_lines(files.path(workdir) / "metrics.jsonl"))
    return [line for line in lines if line is not None and split in (None, line["split"])]


def _parsed(text: str) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None where it is not one."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and {"step", "split"} <= line.keys() else None


def _rounded(value: float) -> float | None:
    """Seven digits are what float32 holds; JSON has no NaN."""
    return float(f"{value:.7g}") if math.isfinite(value) else None


class Goodput:
    """Where a run's wall time goes: seconds by place, by what the main thread of the first host is at or waits for.

      steps        handing steps to the devices, and waiting for their figures: what the time is for
      data         the next batch
      compile      the first step of each shape, until it is handed over: traced, and compiled or read from the cache
      evaluation   scores and predictions, with what they compile
      checkpoints  the state's way from the devices, and what the disk has not taken in until then
      start        what comes before the first step: reading data, building or restoring the state
      restarts     of a run that goes on: since its checkpoint was made. What was computed past it is lost.

    Nothing is waited for on its account: devices that work while the host waits for something else are not seen.
    """

    PLACES = ("steps", "data", "compile", "evaluation", "checkpoints", "start", "restarts")

    def __init__(self, began: float) -> None:
        """Of a call that began then, in Unix time."""
        self._seconds = dict.fromkeys(self.PLACES, 0.0)
        self._place, self._since = "start", began

    def enter(self, place: str) -> str:
        """From now on the time belongs to `place`; returns where it belonged before."""
        now, before = time.time(), self._place
        self._seconds[before] += now - self._since
        self._place, self._since = place, now
        return before

    @contextlib.contextmanager
    def at(self, place: str) -> Iterator[None]:
        """The time inside belongs to `place`."""
        before = self.enter(place)
        try:
            yield
        finally:
            self.enter(before)

    def waits(self, place: str, items: Iterable[T]) -> Iterator[T]:
        """`items`, the time for which belongs to `place`."""
        iterator = iter(items)
        while True:
            with self.at(place):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def spent(self, place: str) -> float:
        """Seconds that this call left at `place`."""
        return self._seconds[place]

    def seconds(self, earlier: Mapping[str, float]) -> dict[str, float]:
        """By place, until now, with what was `earlier`."""
        self.enter(self._place)
        return {place: seconds + earlier.get(place, 0.0) for place, seconds in self._seconds.items()}

    @staticmethod
    def shares(seconds: Mapping[str, float]) -> dict[str, float]:
        """Each place's share of the whole, which is "seconds"."""
        total = math.fsum(seconds.values())
        shares = {place: round(value / total, 4) if total else 0.0 for place, value in seconds.items()}
        return {**shares, "seconds": round(total, 3)}

    @classmethod
    def earlier(cls, workdir: str, step: int, began: float) -> dict[str, float]:
        """The seconds of the calls before one that goes on from `step` and `began` then, as the workdir has them."""
        lines = [line for line in read(workdir, "goodput") if line["step"] == step]
        if not lines:  # it begins, or an older version began it
            return {}
        seconds = {place: lines[-1].get(place, 0.0) for place in cls.PLACES}
        return {**seconds, "restarts": seconds["restarts"] + max(0.0, began - lines[-1]["time"])}


class Profile:
    """A trace of the steps `first` to `last`, both included, for XProf or Perfetto. Use in `with`."""

    def __init__(self, folder: str, first: int, last: int) -> None:
        self._folder, self._first, self._last, self._on = folder, first, last, False
        self._local = tempfile.TemporaryDirectory() if files.remote(folder) else None

    def marked(self, step: int) -> contextlib.AbstractContextManager[Any]:
        """Marks what is done inside as that step's, where it is traced: the profiler's pages go by steps."""
        return jax.profiler.StepTraceAnnotation("train", step_num=step) if self._on else contextlib.nullcontext()

    def before(self, step: int, state: Any) -> None:
        """A step is about to be handed to the devices; it works on `state`."""
        if not self._on and self._first <= step <= self._last:
            jax.block_until_ready(state)  # steps before the first are none of it
            jax.profiler.start_trace(self._local.name if self._local else self._folder)
            self._on = True

    def after(self, step: int, state: Any) -> bool:
        """A step was handed to the devices; it will give `state`. Returns whether the trace was written thereupon."""
        ends = self._on and step == self._last
        if ends:
            jax.block_until_ready(state)
            self.__exit__()
        return ends

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._on:
            self._on = False
            jax.profiler.stop_trace()
            if self._local:
                files.upload(self._local.name, self._folder)
                self._local.cleanup()


class Progress:
    """A live line on a terminal, a plain line at each log elsewhere: step, loss, tokens/s, time left. Use in `with`.

    The time left goes by the steps so far, from the moment that the first was handed to the devices, without what was
    compiled since; evaluations and checkpoints between them count.
    """

    def __init__(self, total: int, start: int, quiet: bool = False) -> None:
        self._console = rich.console.Console(stderr=True, soft_wrap=True, highlight=False, quiet=quiet)
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("step {task.completed}/{task.total}"),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.TextColumn("{task.fields[text]}"),
            rich.progress.TimeElapsedColumn(),
            _Left(self),
            console=self._console,
            disable=quiet or not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("", total=total, completed=start, text="compiling")
        self._total, self._step = total, start
        self._began: float | None = None  # when the first step was on its way
        self._first, self._before, self._compiled = start, 0.0, 0.0

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def advance(self, step: int, compiled: float) -> None:
        """A step was handed to the devices. All in all, this call spent `compiled` seconds on compiling."""
        if self._began is None:
            self._began, self._first, self._before = time.monotonic(), step - 1, compiled
        self._step, self._compiled = step, compiled
        self._bar.update(self._task, completed=step)

    def left(self, step: int | None = None) -> str:
        """What the steps after `step`, or after the last that was handed over, will take; "-:--": not known yet."""
        done = self._step if step is None else step
        if self._began is None or done <= self._first:
            return "-:--"
        taken = max(0.0, time.monotonic() - self._began - (self._compiled - self._before))
        seconds = round(taken / (done - self._first) * (self._total - done))
        return f"{seconds // 60}:{seconds % 60:02}"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the newest figures."""
        text = "  ".join(f"{name} {_short(value)}" for name, value in values.items())
        self._bar.update(self._task, text=text)
        if not sys.stderr.isatty():
            self.say(f"step {step}/{self._total}  {text}  left {self.left(step)}")

    def say(self, text: str) -> None:
        """A line of its own, above the live one."""
        self._console.print(text, markup=False)


class _Left(rich.progress.ProgressColumn):
    """The time left."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def render(self, task: rich.progress.Task) -> rich.text.Text:
        return rich.text.Text(f"left {self._progress.left()}", style="progress.remaining")


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
