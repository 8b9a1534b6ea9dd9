"""Whether an experiment fits a TPU pod, what its chips send each other, and the least that it takes. Needs no TPU.

    python scripts/preflight.py --config=experiments/bert_large.py --topology=v5e:8x8
    python scripts/preflight.py --config=experiments/bert_base.py --topology=v4:2x2x4 --config.mesh.fsdp=16 --json
    python scripts/preflight.py --config=experiments/bert_large.py --topology=v5litepod-64 --config.mesh.slices=2

Compiles each phase's train step with the TPU's own compiler (pip install 'bert_jax[tpu]'). The exit status is 0 where
the experiment fits as it is, 1 where it does not, and then it says what to change.
"""

from __future__ import annotations

import json
import os
import sys
import time

from absl import app, flags

from bert_jax import startup
from bert_jax.config import split_flags

CONFIG = flags.DEFINE_string("config", None, "The experiment: a Python file that defines EXPERIMENT.", required=True)
TOPOLOGY = flags.DEFINE_string("topology", None, "The pod: v5e:8x8, v4:2x2x4, v5litepod-16 ...", required=True)
JSON = flags.DEFINE_bool("json", False, "Print the report as JSON.")
SEARCH = flags.DEFINE_bool("search", True, "Where it does not fit, try remat, fsdp and accumulation.")
COST = flags.DEFINE_bool("cost", True, "Count FLOPs and bytes; of a scanned program by two more compilations.")
startup.require_values(CONFIG, TOPOLOGY)


def main(argv: list[str], changes: dict[str, str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}? Every argument is a flag; --help lists them")
    os.environ["JAX_PLATFORMS"] = "cpu"
    import rich.console

    from bert_jax import experiment
    from bert_jax.tpu import preflight
    from bert_jax.training import planning

    try:
        exp = planning.resolve(planning.configured(experiment.load(CONFIG.value), changes))
        console = rich.console.Console(stderr=True, highlight=False, soft_wrap=True)
        with console.status("the TPU's compiler starts") as status:  # a sign of life on a terminal

            def say(text: str) -> None:
                console.print(text, markup=False)
                status.update(f"{time.strftime('%H:%M:%S')} {text.strip()}")

            found = preflight.check(exp, TOPOLOGY.value, search=SEARCH.value, cost=COST.value, say=say)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if JSON.value:
        print(json.dumps(preflight.to_dict(found), indent=1))
    else:
        preflight.show(found, rich.console.Console(highlight=False, width=None if sys.stdout.isatty() else 120))
    return 0 if found.fits and not found.changes else 1


if __name__ == "__main__":
    try:
        arguments, overrides = split_flags(sys.argv)
    except ValueError as problem:
        sys.exit(f"error: {problem}")
    startup.run(lambda argv: main(argv, overrides), argv=arguments)
