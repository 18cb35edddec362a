"""The `palate` command against a running endpoint: what it prints, how it fails, and a load that was killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from registry.memory_store import MemoryStore
from serving.cli import main
from serving.schema import Item
from tests.endpoint import Endpoint, made_up_items, made_up_spec, publish, serve
from tests.waiting import wait_for


class Ran(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Palate = Callable[..., Ran]


@pytest.fixture
def palate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Palate:
    """Runs the command in this process, in a home of its own; `env` sets PALATE_* variables."""
    monkeypatch.setenv("PALATE_HOME", str(tmp_path / "cli-home"))
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("PALATE_URL", "PALATE_API_KEY", "PALATE_MLFLOW_URI"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str, env: Mapping[str, str] | None = None) -> Ran:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["palate", *arguments])
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            try:
                main()
                status = 0
            except SystemExit as end:
                status = int(end.code or 0)
        printed = capsys.readouterr()
        return Ran(status, printed.out, printed.err)

    return run


def env_of(endpoint: Endpoint) -> dict[str, str]:
    return {"PALATE_URL": endpoint.url, "PALATE_API_KEY": endpoint.key}


def assert_one_line(ran: Ran, *words: str) -> None:
    assert ran.status == 1, ran
    assert ran.out == ""
    assert len(ran.err.strip().splitlines()) == 1, ran.err
    assert "Traceback" not in ran.err
    for word in words:
        assert word in ran.err


def test_help_names_every_command(palate: Palate) -> None:
    ran = palate("--help")
    assert ran.status == 0
    for command in (
        "up",
        "down",
        "status",
        "apps",
        "items",
        "query",
        "feedback",
        "keys",
        "index",
        "evaluate",
        "releases",
        "rollout",
    ):
        assert command in ran.out
        assert palate(command, "--help").status == 0
    assert palate("--version").out.startswith("palate ")
    assert palate("no-such-command").status == 2


def test_query_prints_a_table_or_json(palate: Palate, shared_endpoint: Endpoint) -> None:
    env = env_of(shared_endpoint)
    table = palate("query", "teas", "red rock kettle", env=env)
    assert table.status == 0
    assert "TEA043" in table.out
    assert "붉은 바위 주전자" in table.out
    answer = palate("query", "teas", "red rock kettle", "-k", "1", "--json", env=env).json
    assert [result["id"] for result in answer["results"]] == ["TEA043"]
    filtered = palate("query", "teas", "tea", "--filters", '{"price": 9000}', "--json", env=env).json
    assert {result["id"] for result in filtered["results"]} == {"TEA000"}


def test_brackets_in_what_people_write_are_shown(palate: Palate, shared_endpoint: Endpoint) -> None:
    ran = palate("query", "tea-orders", "[urgent] red rock kettle [/] 3병", env=env_of(shared_endpoint))
    assert ran.status == 0
    assert "[urgent] red rock kettle [/] 3병" in ran.out


def test_apps_as_table_and_json(palate: Palate, shared_endpoint: Endpoint) -> None:
    env = env_of(shared_endpoint)
    assert "tea-orders" in palate("apps", env=env).out
    assert {app["name"] for app in palate("apps", "--json", env=env).json} == {"teas", "tea-orders", "not-ready"}


def test_feedback_goes_to_its_trace(palate: Palate, endpoint: Endpoint) -> None:
    env = env_of(endpoint)
    trace_id = palate("query", "teas", "red rock kettle", "--user", "kim", "--json", env=env).json["trace_id"]
    reply = palate("feedback", "teas", trace_id, "select", "--item", "TEA043", "--rejected", "TEA000", env=env).json
    assert (reply["trace_id"], reply["stored"]) == (trace_id, "database")
    assert_one_line(palate("feedback", "teas", trace_id, "adore", "--item", "TEA043", env=env), "adore", "select")


def test_errors_are_one_line(palate: Palate, shared_endpoint: Endpoint, tmp_path: Path) -> None:
    env = env_of(shared_endpoint)
    assert_one_line(palate("query", "nothing", "tea", env=env), "nothing", "['not-ready', 'tea-orders', 'teas']")
    assert_one_line(palate("query", "teas", " ", env=env), "empty")
    assert_one_line(palate("query", "teas", "tea", "--filters", "{", env=env), "--filters")
    assert_one_line(palate("query", "teas", "tea", "--filters", '{"colour": 1}', env=env), "colour")
    assert_one_line(palate("query", "teas", "tea", env={**env, "PALATE_API_KEY": "pk_0_0"}), "API key")
    assert_one_line(palate("query", "teas", "tea", env={**env, "PALATE_URL": "http://127.0.0.1:1"}), "127.0.0.1:1")
    assert_one_line(palate("query", "teas", "tea", env={**env, "PALATE_URL": "localhost"}), "localhost")
    assert_one_line(palate("query", "teas", "tea", env={**env, "PALATE_URL": "http://host:port"}), "PALATE_URL")
    assert_one_line(palate("query", "teas", "tea"), "palate up")
    assert_one_line(palate("query", "teas", "tea", env={"PALATE_URL": shared_endpoint.url}), "PALATE_API_KEY")
    assert_one_line(palate("items", "list", "teas", "--cursor", "made up", env=env), "cursor")
    assert_one_line(palate("index", str(tmp_path)), "app.yaml")
    assert_one_line(palate("evaluate", "no-such-app"), "no-such-app")


def test_keys_are_made_listed_and_revoked(palate: Palate, tmp_path: Path) -> None:
    made = palate("keys", "create", "shop", "--scope", "query", "--app", "teas", "--rate", "5")
    assert made.status == 0
    plaintext = made.out.strip()
    assert plaintext.startswith("pk_")
    [key] = palate("keys", "list", "--json").json
    assert (key["name"], key["scopes"], key["apps"], key["revoked_at"]) == ("shop", ["query"], ["teas"], None)
    assert plaintext not in palate("keys", "list").out
    assert palate("keys", "revoke", key["id"]).status == 0
    assert palate("keys", "list", "--json").json[0]["revoked_at"] is not None
    assert_one_line(palate("keys", "revoke", "nothing"), "nothing")
    assert_one_line(palate("keys", "create", "shop", "--scope", "everything"), "everything")


def write_items(file: Path, items: list[Item]) -> Path:
    lines = [
        json.dumps({"id": i.id, "fields": dict(i.fields), "attributes": dict(i.attributes)}, ensure_ascii=False)
        for i in items
    ]
    file.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_items_are_loaded_listed_and_deleted(palate: Palate, endpoint: Endpoint, tmp_path: Path) -> None:
    env = env_of(endpoint)
    file = write_items(
        tmp_path / "more [new].jsonl", [Item("NEW01", {"ko": "우롱차", "en": "oolong [box]"}, {"price": 1})]
    )
    loaded = palate("items", "load", "teas", str(file), env=env)
    assert loaded.status == 0, loaded
    assert "1 items" in loaded.out
    assert "more [new].jsonl" in loaded.out
    page = palate("items", "list", "teas", "--limit", "2", "--json", env=env).json
    assert page["items"][0]["id"] == "NEW01"
    assert "oolong [box]" in palate("items", "list", "teas", env=env).out
    after = palate("items", "list", "teas", "--limit", "2", "--cursor", page["next_cursor"], "--json", env=env).json
    assert after["items"][0]["id"] == "TEA001"
    assert palate("items", "delete", "teas", "NEW01", env=env).json["deleted"] == 1
    assert endpoint.stores.items.count("teas") == 60


def test_a_bad_line_is_named(palate: Palate, endpoint: Endpoint, tmp_path: Path) -> None:
    env = env_of(endpoint)
    file = tmp_path / "bad.jsonl"
    file.write_text('{"id": "A", "fields": {"ko": "차"}}\n\nnot json\n', encoding="utf-8")
    ran = palate("items", "load", "teas", str(file), env=env)
    assert ran.status == 1
    assert "line 3" in ran.err
    file.write_text('{"id": "A", "fields": {"ko": "차"}, "attributes": {"colour": 1}}\n', encoding="utf-8")
    ran = palate("items", "load", "teas", str(file), env=env)
    assert ran.status == 1
    assert "colour" in ran.err
    assert palate("items", "load", "teas", str(tmp_path / "none.jsonl"), env=env).status == 2


def bulk(count: int) -> list[Item]:
    return [Item(f"BULK{n:05d}", {"ko": f"차 {n}", "en": f"bulk tea {n} " + "x" * 200}) for n in range(count)]


@contextmanager
def bulk_endpoint(home: Path) -> Iterator[Endpoint]:
    """One app with lexical search only: it takes many items quickly."""
    releases = MemoryStore()
    spec = made_up_spec("bulk", retrieve={"sources": {"lexical": {"engine": "lexical"}}})
    publish(home, releases, spec, made_up_items()[:1])
    with serve(home, releases, ["bulk"]) as endpoint:
        yield endpoint


def test_a_load_that_was_killed_goes_on(palate: Palate, tmp_path: Path) -> None:
    file = write_items(tmp_path / "bulk.jsonl", bulk(8000))
    cli_home = Path(os.environ["PALATE_HOME"])
    with bulk_endpoint(tmp_path / "first") as endpoint, bulk_endpoint(tmp_path / "second") as other:
        command = [sys.executable, "-m", "serving.cli", "items", "load", "bulk", str(file)]
        with subprocess.Popen(command, env={**os.environ, **env_of(endpoint)}, stdout=subprocess.DEVNULL) as process:
            try:
                wait_for(lambda: process.poll() is not None or bool(list(cli_home.glob("run/load-*.json"))))
            finally:
                process.kill()
        [progress] = cli_home.glob("run/load-*.json")
        half = json.loads(progress.read_text())["items"]
        assert 0 < half < 8000
        assert half <= endpoint.stores.items.count("bulk") - 1 < 8000

        # How far it came there says nothing of another endpoint.
        assert palate("items", "load", "bulk", str(file), env=env_of(other)).status == 0
        assert other.stores.items.count("bulk") == 8001

        writes = endpoint.stores.items.sequence("bulk")
        assert palate("items", "load", "bulk", str(file), env=env_of(endpoint)).status == 0
        assert endpoint.stores.items.count("bulk") == 8001
        assert endpoint.stores.items.sequence("bulk") == 8001 > writes
        assert list(cli_home.glob("run/load-*.json")) == []


APP = """
name: cli-teas
items: {source: items.jsonl, text: [ko, en], attributes: {price: number}}
retrieve:
  sources: {rules: {engine: rules}, lexical: {engine: lexical}}
  fusion: {method: cascade, order: [rules, lexical]}
evaluation:
  names: {source: cases.jsonl, metric: accuracy}
"""


@pytest.mark.slow
def test_index_and_evaluate(palate: Palate, mlflow_uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "cli-teas"
    folder.mkdir()
    (folder / "app.yaml").write_text(APP, encoding="utf-8")
    cases = [{"query": i.fields["en"].lower(), "accept": [i.id], "slice": "english"} for i in made_up_items()]
    (folder / "cases.jsonl").write_text("\n".join(map(json.dumps, cases)), encoding="utf-8")
    env = {"PALATE_MLFLOW_URI": mlflow_uri}
    # Its items come from the database: `palate up` fills it the first time.
    from registry.database import migrate, open_database
    from serving.store import SqlItemStore

    home = Path(os.environ["PALATE_HOME"])
    home.mkdir()
    migrate(f"sqlite:///{home / 'palate.db'}")
    database = open_database(f"sqlite:///{home / 'palate.db'}")
    SqlItemStore(database).upsert("cli-teas", [Item(i.id, i.fields, {}) for i in made_up_items()])
    database.close()

    built = palate("index", str(folder), "--json", env=env)
    assert built.status == 0, built
    assert (built.json["release"], built.json["stable"]) == (1, True)
    assert built.json["metrics"]["names_accuracy"] == 1.0
    again = palate("index", str(folder), "--json", "--skip-evaluation", env=env).json
    assert (again["release"], again["digest"]) == (1, built.json["digest"])

    report = palate("evaluate", str(folder), "--against", "1", "--json", env=env).json
    assert (report["release"], report["against"]) == (1, 1)
    assert set(report["sets"]) == {"names"}
    whole = report["differences"]["names"][0]
    assert (whole["name"], whole["difference"], whole["interval"]) == ("all", 0.0, [0.0, 0.0])
    assert "names" in palate("evaluate", str(folder), "--only", "rules", "--option", "rules.jamo=0", env=env).out
    for arguments, word in [
        (("--only", "dense"), "dense"),
        (("--option", "rules.jamo"), "rules.jamo"),
        (("--option", "rules.nothing=1"), "nothing"),
        (("--option", "rules.jamo=off"), "off"),
        (("--release", "99"), "99"),
        (("--release", "canary"), "canary"),
        (("--set", "nothing"), "nothing"),
    ]:
        assert_one_line(palate("evaluate", str(folder), *arguments, env=env), word)
    (folder / "cases.jsonl").write_text("not json", encoding="utf-8")
    assert_one_line(palate("evaluate", str(folder), env=env), "not JSON")
    assert "cli-teas" in palate("releases", "show", "cli-teas", "stable", env=env).out
