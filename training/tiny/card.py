"""The model card that lies beside the tiny model. Called by `training.tiny.build`."""

from __future__ import annotations

CARD = """---
license: apache-2.0
language: [ko, en]
tags: [toy, made-up-data]
---
# palate-tiny

A language model of {millions:.1f} million parameters that `palate models build tiny` made on this machine in {steps:,}
steps, from {lessons:,} conversations that Palate's examples make up by themselves. It exists so that everything around
a language model can be run, tested and measured without a network and without a GPU.

**What it is.** A Llama with its own byte-level BPE tokenizer and chat template, in float32. It knows the prompts of
Palate's examples, in Korean and English: recipes for a brief, what an utterance asks for, keywords of reviews.

**What it is not.** It knows nothing of the world and answers no other prompt with sense. It has read no text written
by people; all of its material is made up by rules, so at best it does what those rules do. It is not safe, not
aligned, and not to be compared with real models: where quality matters, name one of those in `app.yaml`.

## Measured at the end of the build

    {table}

valid: satisfies the JSON schema. on topic: nearer to the right answer of its own prompt than to that of another prompt
of the same kind (a model that says the same to everybody reaches 50 %). agree: share of values as in the right answer.
Schemas guide the decoding here as they do in the engine.
"""


def text(parameters: int, lessons: int, steps: int, table: str) -> str:
    return CARD.format(millions=parameters / 1e6, lessons=lessons, steps=steps, table=table.replace("\n", "\n    "))
