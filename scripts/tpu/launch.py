"""A run on a Cloud TPU, step by step or under a supervisor. `--dry_run` prints the gcloud lines and runs none.

    python scripts/tpu/launch.py create --name=bert --zone=us-west4-a --topology=v5e:4x4 --spot
    python scripts/tpu/launch.py supervise --name=bert --zone=us-west4-a --topology=v5e:4x4 --spot \\
        --corpus=gs://BUCKET/corpus --command='--config=experiments/bert_base.py --workdir=gs://BUCKET/run'

Actions: create, state, install, corpus, start, logs, stop, collect, delete; supervise does the first five and repeats
them after a preemption. Each may be given again. See README.md beside this file.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from absl import app, flags

from bert_jax import launch
from bert_jax.config import nearest

FLAGS = flags.FLAGS
flags.DEFINE_string("name", "", "The slice's name.")
flags.DEFINE_string("zone", "", "Its zone.")
flags.DEFINE_string("topology", "v5e:4x4", "As for scripts/preflight.py.")
flags.DEFINE_string("project", "", "The project; default: gcloud's.")
flags.DEFINE_bool("spot", False, "Cheaper, and may be taken away at any time.")
flags.DEFINE_string("source", ".", "The checkout to copy: its last commit.")
flags.DEFINE_string("corpus", "", "gs://..., copied to each worker's disk.")
flags.DEFINE_string("command", "", "The flags of python -m bert_jax.")
flags.DEFINE_bool("dry_run", False, "Print the lines, run none.")


def main(argv: list[str]) -> int:
    actions = [*launch.ACTIONS, "supervise"]
    if len(argv) != 2 or argv[1] not in actions:
        raise app.UsageError(f"one action is needed: {nearest(argv[1] if len(argv) > 1 else '', actions)}")
    fields = ("name", "zone", "topology", "project", "spot", "source", "corpus", "command")
    try:
        values: dict[str, Any] = {name: FLAGS[name].value for name in fields}
        slice = launch.Slice(**values)
        steps = ("create", "install", "corpus", "start") if argv[1] == "supervise" else (argv[1],)
        lines = [line for step in steps for line in launch.ACTIONS[step](slice)]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if FLAGS.dry_run:
        print("\n".join(lines))
        return 0
    try:
        if argv[1] == "supervise":
            launch.supervise(slice)
        else:
            launch.run(lines)
    except subprocess.CalledProcessError as error:
        print(f"error: this line failed with status {error.returncode}: {error.cmd}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    app.run(main)
