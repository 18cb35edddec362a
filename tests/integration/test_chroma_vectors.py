"""The durable home of vectors on real Chroma: what a sync does, a process killed in the middle of one, two writers."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from registry.net import free_port
from serving.components.vectors import BATCH, ChromaVectors, SyncReport
from serving.errors import BadRequest, NotFound, PhaseFailed, StoreUnavailable
from serving.ports import Vectors

DIMENSION = 8


class HashEmbedder:
    """A unit vector made of the text's hash; remembers what it was asked."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, texts: Sequence[str]) -> Vectors:
        self.seen += texts
        return expected(texts)


def expected(texts: Sequence[str]) -> Vectors:
    digests = [hashlib.sha256(text.encode()).digest()[:DIMENSION] for text in texts]
    rows = np.array([list(digest) for digest in digests], np.float32) - 127.5
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def made_up(count: int) -> dict[str, str]:
    return {f"id-{i}": f"레이크 찰리스 made-up item {i}" for i in range(count)}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[ChromaVectors]:
    with ChromaVectors(tmp_path / "vectors") as opened:
        yield opened


def assert_holds(home: ChromaVectors, app: str, fingerprint: str, items: dict[str, str]) -> None:
    """Exactly `items`, read back in reverse order."""
    ids = list(items)[::-1]
    np.testing.assert_allclose(
        home.vectors(app, fingerprint, ids), expected([items[i] for i in ids]), rtol=0, atol=1e-6
    )


def test_only_new_and_changed_texts_are_embedded(home: ChromaVectors) -> None:
    items, embedder = made_up(BATCH + 300), HashEmbedder()
    assert home.sync("wine", "f1", items.items(), embedder) == SyncReport(0, BATCH + 300, 0)
    assert embedder.seen == list(items.values())
    assert_holds(home, "wine", "f1", items)

    again = HashEmbedder()
    assert home.sync("wine", "f1", items.items(), again) == SyncReport(BATCH + 300, 0, 0)
    assert again.seen == []

    items["id-7"] = "changed"
    items["id-new"] = ""
    del items["id-8"], items["id-9"]
    assert home.sync("wine", "f1", items.items(), again) == SyncReport(BATCH + 297, 2, 2)
    assert again.seen == ["changed", ""]
    assert_holds(home, "wine", "f1", items)
    with pytest.raises(NotFound, match="id-8"):
        home.vectors("wine", "f1", ["id-7", "id-8"])


def test_apps_and_embedders_do_not_share_vectors(home: ChromaVectors) -> None:
    some, more, none = made_up(3), made_up(5), {}
    home.sync("wine", "f1", some.items(), expected)
    home.sync("wine", "weird fingerprint: ü/../" + "x" * 600, more.items(), expected)
    home.sync("coffee", "f1", none.items(), expected)
    assert_holds(home, "wine", "f1", some)
    with pytest.raises(NotFound, match="id-3"):
        home.vectors("wine", "f1", list(more))
    assert home.vectors("coffee", "f1", []).shape == (0, 0)
    with pytest.raises(NotFound, match="f2"):
        home.vectors("wine", "f2", [])


def test_progress_counts_up_to_all_items(home: ChromaVectors) -> None:
    seen: list[int] = []
    home.sync("wine", "f", made_up(2 * BATCH + 5).items(), expected, seen.append)
    assert seen == [BATCH, 2 * BATCH, 2 * BATCH + 5]


def test_an_id_that_comes_twice_is_refused(home: ChromaVectors) -> None:
    with pytest.raises(BadRequest, match="'a' comes twice"):
        home.sync("wine", "f", [("a", "x"), ("b", "y"), ("a", "z")], expected)


@pytest.mark.parametrize(
    "wrong", [np.ones((1, 4), np.float32), np.ones(3, np.float32), np.full((3, 4), np.nan, np.float32)]
)
def test_what_is_no_vector_is_not_stored(home: ChromaVectors, wrong: Vectors) -> None:
    with pytest.raises(PhaseFailed, match="embedder"):
        home.sync("wine", "f", made_up(3).items(), lambda texts: wrong)
    with pytest.raises(NotFound):
        home.vectors("wine", "f", ["id-0"])


def test_a_failing_embedder_keeps_its_own_error_and_the_batches_before(home: ChromaVectors) -> None:
    items = made_up(BATCH + 10)

    def fails_later(texts: Sequence[str]) -> Vectors:
        if len(texts) < BATCH:
            raise ValueError("the tokenizer is broken")
        return expected(texts)

    with pytest.raises(ValueError, match="tokenizer"):
        home.sync("wine", "f", items.items(), fails_later)
    assert home.sync("wine", "f", items.items(), expected) == SyncReport(BATCH, 10, 0)


def test_what_is_not_wanted_any_more_is_removed_and_other_apps_are_left_alone(home: ChromaVectors) -> None:
    some = made_up(3)
    for app, fingerprint in [("wine.dense", "f1"), ("wine.dense", "f2"), ("wine.other", "f1"), ("wines.dense", "f1")]:
        home.sync(app, fingerprint, some.items(), expected)
    assert len(home.keep("wine", {("wine.dense", "f2")})) == 2
    assert_holds(home, "wine.dense", "f2", some)
    assert_holds(home, "wines.dense", "f1", some)
    for app in ("wine.dense", "wine.other"):
        with pytest.raises(NotFound):
            home.vectors(app, "f1", list(some))
    assert home.keep("wine", {("wine.dense", "f2")}) == []
    # What was removed can be made again.
    assert home.sync("wine.dense", "f1", some.items(), expected) == SyncReport(0, 3, 0)


def test_a_failed_write_is_not_counted(tmp_path: Path) -> None:
    """The batch that Chroma did not take is not durable, and the sync says so though the next is embedded already."""
    counted: list[int] = []
    with ChromaVectors(tmp_path / "vectors") as home:
        home.sync("wine", "f", [("first", "x")], expected)  # its dimension is 8 from now on

        def wider(texts: Sequence[str]) -> Vectors:
            return np.ones((len(texts), DIMENSION + 1), np.float32)

        with pytest.raises(StoreUnavailable, match="dimension"):
            home.sync("wine", "f", made_up(2 * BATCH).items(), wider, counted.append)
    assert counted == []


SYNC_SLOWLY = """
    import sys, time
    from pathlib import Path
    import numpy as np
    from serving.components.vectors import ChromaVectors
    from tests.integration.test_chroma_vectors import expected, made_up

    def embed(texts):
        time.sleep(0.3)
        return expected(texts)

    with ChromaVectors(Path(sys.argv[1])) as home:
        print("open", flush=True)
        home.sync("wine", "f", made_up(int(sys.argv[2])).items(), embed, lambda done: print(done, flush=True))
        print("end", flush=True)
        time.sleep(60)
"""


def sync_in_a_child(folder: Path, count: int) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", textwrap.dedent(SYNC_SLOWLY), str(folder), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)


def wait_for(child: subprocess.Popen[str], line: str) -> None:
    assert child.stdout is not None
    for seen in child.stdout:
        if seen.strip() == line:
            return
    raise AssertionError(f"the child ended before it printed {line!r}")


def kill(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGKILL)
    child.wait(timeout=30)
    assert child.stdout is not None
    child.stdout.close()


def test_a_sync_that_was_killed_goes_on_where_it_stopped(tmp_path: Path) -> None:
    folder, items = tmp_path / "vectors", made_up(6 * BATCH)
    child = sync_in_a_child(folder, len(items))
    try:
        wait_for(child, str(2 * BATCH))
    finally:
        kill(child)
    with ChromaVectors(folder) as home:
        report = home.sync("wine", "f", items.items(), expected)
        assert report.kept >= 2 * BATCH
        assert report.embedded > 0
        assert report.kept + report.embedded == len(items)
        assert_holds(home, "wine", "f", items)


def test_a_second_process_is_refused_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "vectors"
    child = sync_in_a_child(folder, 10)
    try:
        wait_for(child, "end")
        with pytest.raises(StoreUnavailable, match=f"in use by process {child.pid};") as refused:
            ChromaVectors(folder)
        assert refused.value.field == "path"
        # A refusal neither lets go of the other's lock nor forgets whose it is.
        with pytest.raises(StoreUnavailable, match=f"in use by process {child.pid};"):
            ChromaVectors(folder)
    finally:
        kill(child)
    with ChromaVectors(folder) as home:
        assert_holds(home, "wine", "f", made_up(10))


def test_one_process_opens_a_folder_once_at_a_time(tmp_path: Path) -> None:
    for _ in range(2):
        with ChromaVectors(tmp_path / "vectors") as home:
            home.sync("wine", "f", made_up(3).items(), expected)
            with pytest.raises(StoreUnavailable, match="in use"):
                ChromaVectors(tmp_path / "vectors")
            assert_holds(home, "wine", "f", made_up(3))


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreUnavailable, match="file"):
        ChromaVectors(tmp_path / "file")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "chroma.sqlite3").write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreUnavailable, match="broken"):
        ChromaVectors(tmp_path / "broken")
    with FileLock(tmp_path / "broken.lock", timeout=0):
        pass  # it was let go


def test_either_a_folder_or_a_server(tmp_path: Path) -> None:
    for wrong in ({}, {"path": tmp_path, "url": "http://127.0.0.1:1"}, {"url": "chroma:8000"}):
        with pytest.raises(BadRequest):
            ChromaVectors(**wrong)


def test_a_server_that_is_not_there_is_unavailable() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(StoreUnavailable, match=url):
        ChromaVectors(url=url)


def test_a_chroma_server_is_shared_by_several_writers(tmp_path: Path) -> None:
    port = free_port()
    command = [str(Path(sys.executable).parent / "chroma"), "run", "--path", str(tmp_path), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
    try:
        one, two = connect(port), connect(port)
        items = made_up(BATCH + 1)
        assert one.sync("wine", "f", items.items(), expected) == SyncReport(0, BATCH + 1, 0)
        assert two.sync("wine", "f", items.items(), expected) == SyncReport(BATCH + 1, 0, 0)
        assert_holds(two, "wine", "f", items)
        server.kill()
        server.wait(timeout=30)
        with pytest.raises(StoreUnavailable, match=str(port)):
            one.sync("wine", "f", items.items(), expected)
        one.close()
        two.close()
    finally:
        server.kill()
        server.wait(timeout=30)


def connect(port: int) -> ChromaVectors:
    deadline = time.monotonic() + 60
    while True:
        try:
            return ChromaVectors(url=f"http://127.0.0.1:{port}")
        except StoreUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
