"""What the pipeline needs from its adapters. Each adapter takes a batch, blocks, and knows nothing of Ray.

`build` makes them from a release; `fakes` ships a stand-in for each, held to the same contract tests.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from serving.schema import FeedbackEvent, Item, Query, Trace, Turn, Understood

Vectors = NDArray[np.float32]
"""(n, dimension), rows of unit length."""

Mask = NDArray[np.bool_]
"""(rows,) of the live catalogue: True where a row may be returned."""


class Hits(NamedTuple):
    """Rows of the live catalogue and their scores, best first: both (k,)."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


class Understander(Protocol):
    def understand(self, queries: Sequence[Query]) -> list[list[Understood]]:
        """Per query its lines, at least one; order and length of the outer list are kept."""


class Embedder(Protocol):
    fingerprint: str
    dimension: int

    def embed(self, texts: Sequence[str]) -> Vectors:
        """(len(texts), dimension) float32, unit rows; an empty text gives a valid row too."""


class DocumentEmbedder(Embedder, Protocol):
    """An embedder at hand in this process. Queries and items may be prompted differently: `embed` is for queries."""

    def embed_documents(self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None) -> Vectors:
        """As `embed`, for the texts of items, any number of them; `progress` gets (texts done, texts in all)."""

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Tokens that `embed` reads of them all: with prompts and special tokens, without what is cut off."""


class Source(Protocol):
    """Proposes candidates from text: rules and lexical search, over the rows of the live catalogue."""

    def search(self, queries: Sequence[Query], allowed: Sequence[Mask | None], top_k: int) -> list[Hits]:
        """Per query at most `top_k` rows, best first; only rows where `allowed[i]` is True (None: every row)."""

    def add(self, first_row: int, items: Sequence[Item]) -> None:
        """Rows `first_row`, `first_row + 1`, … are these items from now on. Visible to the next search; called by one
        thread at a time, while others search. Rows added before from `first_row` on are replaced: an add that was cut
        short is repeated. Old rows of the same items are masked by the catalogue, not here."""


class VectorSource(Protocol):
    """Proposes candidates from query vectors: exact and ANN search, over the rows of the live catalogue."""

    @property
    def dimension(self) -> int:
        """Of its vectors, and of those it is asked with."""

    def search(self, vectors: Vectors, allowed: Sequence[Mask | None], top_k: int) -> list[Hits]:
        """As `Source.search`; the score is the cosine, -1..1."""

    def add(self, first_row: int, vectors: Vectors) -> None:
        """As `Source.add`; `vectors[i]` embeds row `first_row + i`."""

    def vectors(self, rows: Sequence[int]) -> Vectors:
        """(len(rows), dimension): the vectors of these rows. Raises IndexError for a row that was never added."""


class ToRank(NamedTuple):
    """A request and its candidates. `user` is the pseudonym that training knows (`serving.schema.pseudonym`), "" for
    nobody; `record` the structured part of the query, `text` its words."""

    user: str
    record: Mapping[str, Any]
    items: Sequence[Item]
    text: str = ""


class Ranker(Protocol):
    fingerprint: str
    """Of what its inputs mean, not of its weights."""

    def score(self, batch: Sequence[ToRank]) -> list[NDArray[np.float32]]:
        """Per request the probability, 0..1, that it chooses each of its items, in their order. Users, items and values
        that training never saw are scored by what else is known."""


class Message(NamedTuple):
    """One message to a language model: of the role "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class LanguageRequest:
    """What a language model is asked: `messages`, or a bare `prompt` that no chat template touches. `adapter` is the
    served name `name@hash` of a loaded adapter, "" for the base. `schema` is a JSON schema that the text has to
    satisfy. `temperature` 0 is greedy."""

    messages: tuple[Message, ...] = ()
    prompt: str = ""
    adapter: str = ""
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    schema: Mapping[str, Any] | None = None


class Usage(NamedTuple):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int


class Piece(NamedTuple):
    """A part of an answer as it comes. The last one says why it ended ("stop" or "length") and what it took."""

    text: str
    finish_reason: str = ""
    usage: Usage | None = None


class LanguageModel(Protocol):
    """An engine, here or far. Async: one engine works on many requests at once."""

    model: str
    """Its base, as app.yaml names it."""

    def stream(self, request: LanguageRequest, deadline: float) -> AsyncGenerator[Piece, None]:
        """`deadline` in seconds of `time.monotonic`. Closing the generator (`contextlib.aclosing`: one that is merely
        dropped is closed late), or cancelling the task that reads it, ends the work in the engine. Raises BadRequest
        (prompt too long, a schema it cannot hold), Overloaded (no room, with when to come again), DeadlineExceeded,
        ReplicaLost (the engine died: nobody knows how far it came), StoreUnavailable (it is not up yet),
        PhaseFailed."""

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Serve a PEFT folder as `name` (`name@hash`); again does nothing. Raises PhaseFailed where it does not fit the
        base, Overloaded where no slot is free."""

    async def unload_adapter(self, name: str) -> None:
        """What nobody knows is gone already."""

    async def adapters(self) -> Sequence[str]: ...

    async def ready(self) -> None:
        """Returns when it has answered. Raises StoreUnavailable while it is not up."""

    async def close(self) -> None:
        """Let go of connections; the engine goes on."""


class SessionStore(Protocol):
    """What sessions remember, in SQL. `user` are pseudonyms, "" for nobody; a turn that is too long is cut, and of a
    session that is too long the user's oldest turns go (`serving.store.codec`)."""

    def turns(self, app: str, session: str, user: str, limit: int, after_s: float) -> list[Turn]:
        """The newest `limit` turns that `user` made after `after_s`, Unix seconds, oldest first. Another person's turns
        under the same id are not among them: who guesses an id learns nothing."""

    def append(self, app: str, session: str, user: str, turn: Turn) -> None: ...

    def purge(self, app: str, before_s: float) -> int:
        """Forget the sessions whose last turn was before `before_s`; returns how many turns there were."""

    def forget(self, app: str, is_gone: Callable[[str], bool]) -> int:
        """Remove the sessions of people who are gone, whole: `is_gone` is asked about users and session ids. Returns
        how many turns went."""

    def apps(self) -> list[str]:
        """Every app with sessions, in name order."""


class ItemStore(Protocol):
    """The catalogue in SQL. Each write gets a sequence number per app, in commit order, without gaps in visibility."""

    def upsert(self, app: str, items: Sequence[Item]) -> int:
        """Durable when it returns: the app's sequence number after the write."""

    def delete(self, app: str, ids: Sequence[str]) -> int:
        """As `upsert`; an id that is not there is ignored."""

    def get(self, app: str, ids: Sequence[str]) -> list[Item | None]:
        """In the order of `ids`; None where there is no such item."""

    def page(self, app: str, limit: int, cursor: str | None) -> tuple[list[Item], str | None]:
        """Items in id order after `cursor`, and the next cursor, None at the end."""

    def changes(self, app: str, after_seq: int, limit: int) -> tuple[list[Item], list[str], int]:
        """(upserted items, deleted ids, last sequence number) of the changes after `after_seq`, oldest first."""

    def scan(self, app: str) -> Iterator[Item]:
        """Every live item, in id order, in bounded memory."""

    def count(self, app: str) -> int: ...

    def sequence(self, app: str) -> int:
        """The app's newest sequence number; 0 before its first write."""


class FeedbackStore(Protocol):
    def record_traces(self, traces: Iterable[Trace]) -> None: ...

    def trace(self, trace_id: str) -> Trace | None: ...

    def traces(self, trace_ids: Sequence[str]) -> dict[str, Trace]:
        """Those of them that are there, by id."""

    def purge(self, before_s: float) -> int:
        """Forget the traces of requests made before `before_s`, Unix seconds; returns how many there were. What their
        feedback said stays: an event holds all that it was about."""

    def record(self, event: FeedbackEvent) -> bool:
        """Durable when it returns. False if the app's `event_id` was stored before."""

    def record_many(self, events: Sequence[FeedbackEvent]) -> list[bool]:
        """`record` for several at once: all are durable when it returns, none was stored when it raises. With none it
        only asks whether the store would take some."""

    def events(self, app: str, after: int, limit: int) -> list[tuple[int, FeedbackEvent]]:
        """(sequence number, event) after `after`, oldest first."""

    def apps(self) -> list[str]:
        """Every app with traces or feedback, in name order."""

    def forget(self, app: str, is_gone: Callable[[str], bool]) -> Forgotten:
        """Remove what people did: their events, their traces with whatever was said about those, and nobody's traces
        that one of their events is about. `is_gone` is asked about user ids. Everything found is removed when it
        returns; killed half way, repeated or done twice at once it does no harm. Sequence numbers stay as they are."""


class Forgotten(NamedTuple):
    """How many of each were removed."""

    traces: int
    events: int


Expansions = Mapping[str, Mapping[str, str]]
"""user -> the token as that user writes it -> the words it stands for."""
