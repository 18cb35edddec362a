"""New words for a model that has none of a script: found in the queries, understood through the items they ask for.

A model without words of a script spells it: MiniLM reads a Korean syllable as two or three letters that mean nothing to
it, and a training would have to teach it every word letter by letter. `trainer` gives it pieces of words instead
(byte-pair encoding, Sennrich et al. 2016, arXiv 1508.07909), and each begins as what it stands for: the weighted mean
of the vectors of those words of the items that go with it (`alignment`). The model understands a good part of such
queries before its first step, and reads them in a third of the tokens. Texts without that script are read as before.

Kin: WECHSEL (Minixhofer et al. 2022, arXiv 2112.06598) and FOCUS (Dobler, de Melo 2023, arXiv 2305.14481), which find
the words that go together by other models; here the examples themselves tell.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from random import Random
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.trainers import BpeTrainer

from training.contrastive.alignment import meanings
from training.contrastive.encoder import CHARACTERS_PER_TOKEN
from training.contrastive.options import VocabularyOptions
from training.contrastive.pairs import Pair
from training.export import quiet

MOST_PAIRS = 40_000
"""That words are learnt from: some 40 bytes for each word of a query times each word of its item, 2 GB in all."""
QUERY_TOKENS = 32
ITEM_TOKENS = 48
"""From the beginning of an item's text: what it is called stands there."""


def extend(folder: Path, pairs: Sequence[Pair], options: VocabularyOptions, seed: int, to: Path) -> int:
    """Write the sentence-transformers model of `folder` with the new words to `to`; how many there are. The same pairs,
    options and seed give the same model."""
    with quiet():
        model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    if len(pairs) > MOST_PAIRS:
        pairs = Random(f"{seed} vocabulary").sample(pairs, MOST_PAIRS)
    tokenizer = model.tokenizer
    known = tokenizer.get_vocab()
    new = [word for word in find_words([pair.query for pair in pairs], options) if word not in known]
    old = len(tokenizer)
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in new])
    _begin(model, pairs, old, len(new), options.meanings)
    with quiet():
        model.save(str(to), create_model_card=False, safe_serialization=True)
    return len(new)


def find_words(queries: Sequence[str], options: VocabularyOptions) -> list[str]:
    """The pieces that words of the script are best put together of, the longest first."""
    script = options.script.upper()
    pieces = Tokenizer(BPE())
    pieces.pre_tokenizer = WhitespaceSplit()
    trainer = BpeTrainer(vocab_size=options.size, min_frequency=options.least, show_progress=False, special_tokens=[])
    pieces.train_from_iterator((word for query in queries for word in _words(query, script)), trainer)
    return sorted(pieces.get_vocab(), key=lambda piece: (-len(piece), piece))


def _words(text: str, script: str) -> Iterator[str]:
    for belongs, letters in groupby(unicodedata.normalize("NFC", text), lambda letter: _is_of(letter, script)):
        if belongs:
            yield "".join(letters)


@lru_cache(maxsize=65_536)
def _is_of(letter: str, script: str) -> bool:
    """Unicode names a letter after its script: HANGUL SYLLABLE GA."""
    return unicodedata.name(letter, "").startswith(script)


def _begin(model: Any, pairs: Sequence[Pair], old: int, new: int, most: int) -> None:
    """Gives the new words, whose ids begin at `old`, their vectors."""
    transformer, read = model[0].auto_model, model.tokenizer
    queries, items = (
        read([text[: tokens * CHARACTERS_PER_TOKEN] for text in texts], truncation=True, max_length=tokens)["input_ids"]
        for texts, tokens in (([p.query for p in pairs], QUERY_TOKENS), ([p.text for p in pairs], ITEM_TOKENS))
    )
    special = set(read.all_special_ids)
    met = [
        ([token - old for token in query if token >= old], [t for t in item if t < old and t not in special])
        for query, item in zip(queries, items, strict=True)
    ]
    found = meanings(met, [pair.weight for pair in pairs], new, old, most)
    with quiet():
        transformer.resize_token_embeddings(old + new, mean_resizing=False)
    vectors = transformer.get_input_embeddings().weight.data
    neutral = vectors[:old].mean(0)
    for word, (tokens, shares) in enumerate(found):
        share = torch.from_numpy(shares).to(vectors.dtype)
        vectors[old + word] = share @ vectors[torch.from_numpy(tokens)] if len(tokens) else neutral
