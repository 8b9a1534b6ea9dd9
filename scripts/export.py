"""Writes a model with its weights as one program, which JAX alone runs, without this package.

    python scripts/export.py --model=RUN --output=model.jax
    python scripts/export.py --model=bert-base-uncased --output=vectors.jax --what=mean --platforms=cpu

It takes tokens int32, segments int32 and mask bool, [batch, length] each; any batch, any length up to the model's:

    import jax
    program = jax.export.deserialize(bytearray(open("model.jax", "rb").read()))
    program.call(tokens, segments, mask)
"""

import sys
import typing

from absl import app, flags

import bert_jax
from bert_jax import files, startup
from bert_jax.inference import exporting

_MODEL = flags.DEFINE_string("model", None, "A run's workdir, a Hugging Face or TF1 directory.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "The file to write.", required=True)
_WHAT = flags.DEFINE_enum(
    "what",
    None,
    typing.get_args(exporting.What),
    "The last layer's states, their mean or that of [CLS], or what the heads give; default: heads, if there are any.",
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Fix it; default: any.", lower_bound=1)
_PLATFORMS = flags.DEFINE_list("platforms", list(exporting.PLATFORMS), "Which it is made for.")
startup.require_values(_MODEL, _OUTPUT)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}? Every argument is a flag; --help lists them")
    try:
        model = bert_jax.load(_MODEL.value)
        program = exporting.export(model, _WHAT.value, _BATCH_SIZE.value, _PLATFORMS.value)
        files.write(_OUTPUT.value, program)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except (MemoryError, RuntimeError) as error:
        if not startup.out_of_memory(error):
            raise
        sys.exit(f"error: out of memory: {error}")
    print(f"{_OUTPUT.value}: {len(program):,} bytes")


if __name__ == "__main__":
    startup.run(main)
