"""The switches of the rules engine, so that an evaluation can measure what each part adds.

Read from `options` of a `rules` source in app.yaml: 1 is on (the default), 0 is off.

- `jamo`: everything that looks below the word: jamo n-grams, weighted edit distance, abbreviations, initials, and
  words written together or apart. Off leaves whole words and words that contain the typed one.
- `aliases`: the alias table. `expansions`: what users' selections taught.
- `keyboard`: the layout flip. What a key of the Korean layout types is a jamo, and the flip puts jamo together to
  syllables or takes syllables apart, so it is off by default where `jamo` is off; 1 keeps it there all the same.
- `phonetic`: comparison by sound, across scripts; needs `jamo`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from serving.errors import BadRequest


@dataclass(frozen=True, slots=True)
class Options:
    jamo: bool = True
    aliases: bool = True
    expansions: bool = True
    keyboard: bool = True
    phonetic: bool = True


def read_options(options: Mapping[str, float]) -> Options:
    """Raises BadRequest naming an option that does not exist or is neither 0 nor 1."""
    known = [f.name for f in fields(Options)]
    for name, value in options.items():
        if name not in known:
            raise BadRequest(f"the rules engine has no option {name!r}; it has {known}", field=f"options.{name}")
        if value not in (0, 1):
            raise BadRequest(f"option {name!r} is 0 (off) or 1 (on), not {value!r}", field=f"options.{name}")
    chosen = {name: bool(value) for name, value in options.items()}
    return Options(**{"keyboard": chosen.get("jamo", True), **chosen})
