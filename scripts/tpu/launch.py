"""A run on a Cloud TPU, step by step or under a supervisor. `--dry_run` prints the commands and runs none.

    python scripts/tpu/launch.py create --name=bert --zone=us-west4-a --topology=v5e:4x4 --spot
    python scripts/tpu/launch.py supervise --name=bert --zone=us-west4-a --topology=v5litepod-16 --spot \\
        --corpus=gs://BUCKET/corpus --command='--config=experiments/bert_base.py --workdir=gs://BUCKET/run'

Actions: create, state, install, data, start, status, logs, failures, stop, collect, delete; supervise does what is
needed of them, and again after a preemption. Each may be given again. See README.md beside this file.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from absl import app, flags

from bert_jax.config import nearest
from bert_jax.tpu import launch

FLAGS = flags.FLAGS
flags.DEFINE_string("name", "", "The name of the request and its slice.")
flags.DEFINE_string("zone", "", "Its zone.")
flags.DEFINE_string("topology", "v5e:4x4", "As for scripts/preflight.py: v5e:4x4, v4:4x4x16, v5litepod-16.")
flags.DEFINE_string("project", "", "The project; default: gcloud's.")
flags.DEFINE_integer("node_count", 1, "How many such slices, one run on all: --config.mesh.slices.")
flags.DEFINE_bool("spot", False, "Cheaper, and may be taken away at any time.")
flags.DEFINE_bool("reserved", False, "From the project's reservation.")
flags.DEFINE_string("flex_start", "", "For so long at most, such as 4h: waits for capacity (v5e, v6e).")
flags.DEFINE_string("network", "", "The network; default: the project's.")
flags.DEFINE_string("subnetwork", "", "The subnetwork.")
flags.DEFINE_bool("internal_ips", False, "No external addresses. The workers need a NAT to install from.")
flags.DEFINE_bool("iap", False, "ssh through the Identity-Aware Proxy's tunnel.")
flags.DEFINE_string("service_account", "", "As whom the workers read and write buckets.")
flags.DEFINE_string("labels", "", "key=value,key=value.")
flags.DEFINE_multi_string("create_flags", [], "A further flag of gcloud's create")
flags.DEFINE_multi_string("ssh_flags", [], "A further flag of gcloud's ssh and scp")
flags.DEFINE_string("source", ".", "The checkout to copy: its last commit.")
flags.DEFINE_string("corpus", "", "gs://..., copied to each worker's disk.")
flags.DEFINE_string("data", "", "gs://..., the tasks' files, copied to each worker's disk: the run's --data_dir.")
flags.DEFINE_multi_string("env", [], "NAME=VALUE for the run, such as LIBTPU_INIT_ARGS=FLAGS")
flags.DEFINE_string("command", "", "The flags of python -m bert_jax.")
flags.DEFINE_string("worker", "all", "Whose log to follow.")
flags.DEFINE_bool("dry_run", False, "Print the commands, run none.")


def _given() -> dict[str, Any]:
    """The slice's fields, from the flags of their names."""
    flags = {field.name: FLAGS[field.name].value for field in dataclasses.fields(launch.Slice)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in flags.items()}


def main(argv: list[str]) -> int:
    actions = [*launch.ACTIONS, "supervise"]
    if len(argv) != 2 or argv[1] not in actions:
        raise app.UsageError(f"one action is needed: {nearest(argv[1] if len(argv) > 1 else '', actions)}")
    try:
        slice = launch.Slice(**_given())
        steps = ("create", "install", "data", "start") if argv[1] == "supervise" else (argv[1],)
        commands = [command for step in steps for command in launch.ACTIONS[step](slice)]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if FLAGS.dry_run:
        print("\n".join(commands))
        return 0
    try:
        if argv[1] == "supervise":
            launch.supervise(slice)
            return 0
        if argv[1] == "install" and launch.uncommitted(slice):
            print(launch.uncommitted(slice), file=sys.stderr)
        answer = launch.run_all(commands)
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        print(f"error: {error}: gcloud and git are needed here", file=sys.stderr)
        return 1
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not answer.fine:
        print(f"error: {answer.reason}", file=sys.stderr)
    return 0 if answer.fine else 1


if __name__ == "__main__":
    app.run(main)
