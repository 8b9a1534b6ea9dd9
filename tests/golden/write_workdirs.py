"""Makes workdirs.zip: three small runs as an earlier version of bert_jax left them, to be opened by later ones.

Run with that version on the path (commit ff9537b made those that lie here), from any folder:

    PYTHONPATH=CHECKOUT python write_workdirs.py

"pretrained" is a pre-training, "classifier" and "tagger" are fine-tuned from it, and "exported" is what Hugging Face's
library reads of the classifier. What the models answered then is in answers.json.
"""

import json
import os
import pathlib
import shutil
import tempfile

import numpy as np

import bert_jax
from bert_jax import building, config, convert, train, vocabularies
from bert_jax.experiment import Experiment
from bert_jax.tasks.classify import Classify
from bert_jax.tasks.pretrain import Pretrain
from bert_jax.tasks.tagging import Tag

WORDS = [
    "the",
    "cat",
    "dog",
    "bird",
    "sat",
    "ran",
    "sang",
    "on",
    "in",
    "mat",
    "park",
    "song",
    "far",
    "away",
    "then",
    "it",
    "came",
    "home",
    "again",
    "loud",
]
NEVER = config.Every(log=10, evaluate=0, checkpoint=0, keep=1)


def main() -> None:
    rng = np.random.default_rng(0)
    target = pathlib.Path(__file__).with_name("workdirs.zip")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        sentences = [" ".join(rng.choice(WORDS, 6)) + "." for _ in range(240)]
        documents = ["\n".join(sentences[n : n + 6]) for n in range(0, 240, 6)]
        pathlib.Path("text.txt").write_text("\n\n".join(documents))
        vocabulary = vocabularies.train_wordpiece(iter([*WORDS, "."]), 60)
        building.build(["text.txt"], vocabulary, pathlib.Path("corpus"), workers=1)
        pathlib.Path("train.tsv").write_text(
            "sentence\tlabel\n" + "".join(f"{text}\t{'cat' in text:d}\n" for text in sentences[:32])
        )
        tags = {"cat": "B-PET", "dog": "B-PET"}
        lines = [f"{word} {tags.get(word, 'O')}" for text in sentences[:32] for word in [*text[:-1].split(), ""]]
        pathlib.Path("train.txt").write_text("\n".join(line.strip() if line != " O" else "" for line in lines) + "\n")
        encoder = config.Encoder(layers=1, hidden=8, heads=2, vocab_size=60, max_positions=32)
        phase = config.Phase(length=16, batch_size=8, steps=4)
        started = Experiment(init_from="pretrained", phases=(phase,), every=NEVER)
        runs = {
            "pretrained": Experiment(
                encoder=encoder, task=Pretrain(corpus="corpus", heldout=0.1), phases=(phase,), every=NEVER
            ),
            "classifier": config.override(
                started,
                {"task": Classify("train.tsv", ("train.tsv",), labels=("0", "1"), text=("sentence",), label="label")},
            ),
            "tagger": config.override(
                started,
                {"task": Tag("train.txt", ("train.txt",), labels=("O", "B-PET"), label=2, document=False)},
            ),
        }
        for name, exp in runs.items():
            train.run(exp, name, quiet=True)
        convert.convert("classifier", "exported")
        models = {name: bert_jax.load(name) for name in (*runs, "exported")}
        text = "the cat sat on the mat."
        answers = {
            "pretrained": [models["pretrained"].fill_mask("the cat [MASK] on the mat.")[0].token],
            "classifier": models["classifier"].classify([text])[0].probabilities,
            "exported": models["exported"].classify([text])[0].probabilities,
            "tagger": [word.tag for word in models["tagger"].tag([text])[0].words],
            "embedding": models["pretrained"].encode([text]).last[0, 0].tolist(),
        }
        pathlib.Path("answers.json").write_text(json.dumps(answers, indent=1) + "\n")
        for name in runs:
            shutil.rmtree(pathlib.Path(name) / "tensorboard")
        for name in ("text.txt", "train.tsv", "train.txt"):
            pathlib.Path(name).unlink()
        shutil.rmtree("corpus")
        shutil.make_archive(str(target.with_suffix("")), "zip", folder)


if __name__ == "__main__":
    main()
