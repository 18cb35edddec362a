"""The durable home of vectors and documents: Chroma, one collection per app and embedder.

`palate index` syncs it with the item store, so that only new and changed texts are embedded, and builds the index
component from it. Serving never opens it: queries go to the index in the release.

Record: item id -> embedding, document (the text that was embedded), metadata `text_sha256`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import chromadb
import httpx
import numpy as np
from chromadb.errors import ChromaError, NotFoundError
from filelock import FileLock, Timeout

from serving.errors import BadRequest, NotFound, PhaseFailed, StoreUnavailable
from serving.ports import Vectors

BATCH = 1_000
"""Records per write, and per read of their vectors: what a killed sync may have to embed again."""

HASH_PAGE = 20_000
"""Hashes per read: each page is a query that counts its way to where it begins. SQLite allows Chroma 32,766."""

Embed = Callable[[Sequence[str]], Vectors]
Progress = Callable[[int], None]
"""How many items have been dealt with so far."""


class SyncReport(NamedTuple):
    kept: int
    embedded: int
    deleted: int


class _Text(NamedTuple):
    item_id: str
    text: str
    digest: str


class _Writing:
    """Embeds in the caller's thread and writes one batch behind it, in another."""

    def __init__(
        self, write: Callable[[Sequence[_Text], Vectors], None], embed: Embed, progress: Progress | None
    ) -> None:
        self.kept = 0
        self._write = write
        self._embed = embed
        self._progress = progress
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="chroma")
        self._pending: tuple[int, Future[None]] | None = None
        self._written = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()  # what is being written becomes whole, also when the next batch failed

    def write(self, batch: Sequence[_Text]) -> None:
        """Raises what writing the batch before raised."""
        if not batch:
            return
        vectors = np.asarray(self._embed([text.text for text in batch]), np.float32)
        if vectors.ndim != 2 or len(vectors) != len(batch) or not np.isfinite(vectors).all():
            raise PhaseFailed(
                f"the embedder gave {vectors.shape}, finite or not, for {len(batch)} texts", phase="embed"
            )
        if self._settle() and self._progress:
            self._progress(self.kept + self._written)
        self._pending = len(batch), self._thread.submit(self._write, batch, vectors)

    def finish(self) -> tuple[int, int]:
        """(kept, embedded), all of it durable."""
        self._settle()
        if self._progress:
            self._progress(self.kept + self._written)
        return self.kept, self._written

    def _settle(self) -> bool:
        """Wait for the batch that is being written; False for none."""
        if self._pending is None:
            return False
        count, written = self._pending
        self._pending = None
        written.result()
        self._written += count
        return True


class ChromaVectors:
    """Opens the folder `path`, for this process alone, or the Chroma server at `url`, which may be shared.

    Two processes in one folder read stale data and can corrupt it, so the folder is locked until `close`. Raises
    StoreUnavailable where another process holds it, the folder cannot be written, or the server does not answer.
    """

    def __init__(self, path: Path | None = None, url: str | None = None) -> None:
        if (path is None) == (url is None):
            raise BadRequest("give either the folder of the vectors or the URL of a Chroma server", field="path")
        self._where = url or str(path)
        self._lock = None if path is None else _locked(path)
        with ExitStack() as undo, _chroma(self._where):
            undo.callback(self._release)
            self._client = _server(url) if url else chromadb.PersistentClient(str(path), _settings())
            self._batch = min(BATCH, self._client.get_max_batch_size())
            undo.pop_all()

    def close(self) -> None:
        self._client.close()
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def sync(
        self,
        app: str,
        fingerprint: str,
        items: Iterable[tuple[str, str]],
        embed: Embed,
        progress: Progress | None = None,
    ) -> SyncReport:
        """Make the collection hold exactly `items`, (id, text) each, by embedding only what is new or changed.

        A batch is written while the next one is embedded: Chroma keeps one core busy, and embedding the others. Each is
        durable once `progress` has counted it: a sync that was killed goes on where it stopped. Deletes come last.
        Raises BadRequest for an id that comes twice, PhaseFailed where `embed` gives something else than finite rows.
        """
        collection = self._collection(app, fingerprint)
        stale = self._hashes(collection)
        with _Writing(lambda batch, vectors: self._write(collection, batch, vectors), embed, progress) as writing:
            seen: set[str] = set()
            changed: list[_Text] = []
            for item_id, text in items:
                if item_id in seen:
                    raise BadRequest(f"item {item_id!r} comes twice; ids are unique", field="items")
                seen.add(item_id)
                digest = hashlib.sha256(text.encode()).hexdigest()
                if stale.pop(item_id, None) == digest:
                    writing.kept += 1
                else:
                    changed.append(_Text(item_id, text, digest))
                if len(changed) == self._batch:
                    writing.write(changed)
                    changed = []
            writing.write(changed)
            kept, embedded = writing.finish()
        gone = list(stale)
        for start in range(0, len(gone), self._batch):
            with _chroma(self._where):
                collection.delete(ids=gone[start : start + self._batch])
        return SyncReport(kept, embedded, len(gone))

    def keep(self, app: str, wanted: Collection[tuple[str, str]]) -> list[str]:
        """Remove the collections below `app` ("APP.…") but those in `wanted`, (app as given to `sync`, fingerprint);
        the names that went. One that another process syncs into just now goes too, and that sync fails."""
        with _chroma(self._where):
            there = [(c.name, c.metadata or {}) for c in self._client.list_collections()]
            gone = [
                name
                for name, about in there
                if str(about.get("app", "")).startswith(f"{app}.")
                and (about["app"], about.get("embedder_fingerprint")) not in wanted
            ]
            for name in gone:
                self._client.delete_collection(name)
        return gone

    def vectors(self, app: str, fingerprint: str, ids: Sequence[str]) -> Vectors:
        """(len(ids), dimension) float32 in the order of `ids`; (0, 0) for none. Raises NotFound for a missing one."""
        with _chroma(self._where):
            try:
                collection = self._client.get_collection(_name(app, fingerprint), embedding_function=None)
            except NotFoundError:
                raise NotFound(
                    f"there are no vectors of {app!r} by embedder {fingerprint!r}: sync them first", field="app"
                ) from None
        result: Vectors | None = None
        for start in range(0, len(ids), self._batch):
            page = list(ids[start : start + self._batch])
            with _chroma(self._where):
                records = collection.get(ids=list(dict.fromkeys(page)), include=["embeddings"])
            place = {item_id: i for i, item_id in enumerate(records["ids"])}
            missing = next((item_id for item_id in page if item_id not in place), None)
            if missing is not None:
                raise NotFound(f"there is no vector of item {missing!r} of {app!r}: sync them first", field="ids")
            found = np.asarray(records["embeddings"], np.float32)
            if result is None:
                result = np.empty((len(ids), found.shape[1]), np.float32)
            result[start : start + len(page)] = found[[place[item_id] for item_id in page]]
        return np.empty((0, 0), np.float32) if result is None else result

    def _collection(self, app: str, fingerprint: str) -> Any:
        with _chroma(self._where):
            return self._client.get_or_create_collection(
                _name(app, fingerprint),
                embedding_function=None,
                configuration={"hnsw": {"space": "cosine"}},
                metadata={"app": app, "embedder_fingerprint": fingerprint},
            )

    def _hashes(self, collection: Any) -> dict[str, str]:
        """id -> hash of the text."""
        hashes: dict[str, str] = {}
        while True:
            with _chroma(self._where):
                page = collection.get(include=["metadatas"], limit=HASH_PAGE, offset=len(hashes))
            for item_id, metadata in zip(page["ids"], page["metadatas"], strict=True):
                hashes[item_id] = (metadata or {}).get("text_sha256", "")
            if len(page["ids"]) < HASH_PAGE:
                return hashes

    def _write(self, collection: Any, batch: Sequence[_Text], vectors: Vectors) -> None:
        with _chroma(self._where):
            collection.upsert(
                ids=[text.item_id for text in batch],
                embeddings=vectors,
                documents=[text.text for text in batch],
                metadatas=[{"text_sha256": text.digest} for text in batch],
            )

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()


def _name(app: str, fingerprint: str) -> str:
    """Chroma takes 3-512 letters, digits, dots, dashes and underscores; a fingerprint may be any text."""
    return f"{app}.{hashlib.sha256(fingerprint.encode()).hexdigest()[:24]}"


def _settings() -> Any:
    return chromadb.Settings(anonymized_telemetry=False)


def _server(url: str) -> Any:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadRequest(f"{url!r} is not the URL of a Chroma server, such as http://chroma:8000", field="url")
    secure = parts.scheme == "https"
    return chromadb.HttpClient(
        parts.hostname, parts.port or (443 if secure else 8000), ssl=secure, settings=_settings()
    )


def _locked(path: Path) -> FileLock:
    """The lock beside the folder, held; its text says who holds it. A process that dies, however, lets go of it."""
    file = path.with_name(path.name + ".lock")
    lock = FileLock(file, timeout=0)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        file.write_text(f"process {os.getpid()}", encoding="utf-8")
    except Timeout:
        holder = file.read_text(encoding="utf-8") or "another process"
        raise StoreUnavailable(
            f"the vectors in {path} are in use by {holder}; wait until it ends, or share them through a Chroma server",
            field="path",
        ) from None
    except OSError as error:
        lock.release()
        raise StoreUnavailable(f"the folder of the vectors cannot be used: {error}", field="path") from error
    return lock


@contextmanager
def _chroma(where: str) -> Iterator[None]:
    """Chroma's errors as ours. An unreachable server is a ValueError to its client."""
    try:
        yield
    except (ChromaError, httpx.HTTPError, ValueError, OSError) as error:
        raise StoreUnavailable(f"Chroma at {where}: {error}") from error
