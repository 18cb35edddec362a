"""What `palate train` and `palate runs` say, and with which exit status."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from registry.database import Database, migrate, open_database
from serving.errors import BadRequest
from serving.local.up import learns
from serving.store import SqlItemStore
from tests.endpoint import made_up_items, made_up_spec
from tests.learning import APP, learning_spec, train_section
from training.cli import commands
from training.runs import Ask, Runs


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """With the folder of an app in it."""
    spec = made_up_spec(APP).model_dump(mode="json", exclude_unset=True)
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "app.yaml").write_text(yaml.safe_dump({**spec, "train": {"taste": train_section()}}), encoding="utf-8")
    return tmp_path


@pytest.fixture
def database(home: Path) -> Iterator[Database]:
    url = f"sqlite:///{home / 'palate.db'}"
    migrate(url)
    made = open_database(url)
    yield made
    made.close()


def palate(home: Path, *arguments: str, **variables: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(commands, [*arguments, "--home", str(home)], env={"COLUMNS": "200", **variables})
    return done.exit_code, done.stdout, done.stderr


def test_runs_are_listed_and_shown(home: Path, database: Database) -> None:
    app = str(home / "app")
    status, out, _ = palate(home, "runs", app)
    assert (status, "no training runs yet" in out) == (0, True)

    runs = Runs(database)
    run = runs.begin(Ask(APP, {"trainings": ["taste"], "spec": "x"}, "200 new feedback events", "learner"))
    outcome = {"why": "no alias", "gates": {"why": "feedback: it lost"}, "datasets": {"taste": {"train": 1200}}}
    runs.finish(run, "gates-failed", version=4, outcome=outcome)
    runs.begin(Ask(APP, {"trainings": ["taste"], "spec": "y"}))

    status, out, _ = palate(home, "runs", app)
    assert status == 0
    newest, first = [line for line in out.splitlines() if "running" in line or "gates-failed" in line]
    assert newest.split()[:2] == ["2", "running"]
    assert ("200 new feedback events" in first, "no alias" in first) == (True, True)

    status, out, _ = palate(home, "runs", app, "1")
    assert status == 0
    for words in ("1 of teas, gates-failed", "by learner: 200 new", "feedback: it lost", "train 1,200"):
        assert words in out

    status, out, _ = palate(home, "runs", app, "--json")
    listed = json.loads(out)["runs"]
    assert [(one["run"], one["status"], one["release"]) for one in listed] == [
        (2, "running", None),
        (1, "gates-failed", 4),
    ]


def test_a_run_that_is_not_there_is_one_line_and_status_1(home: Path, database: Database) -> None:
    status, out, error = palate(home, "runs", str(home / "app"), "7")
    assert (status, out) == (1, "")
    assert error.splitlines()[0].startswith("palate: teas has no run 7")


def test_what_app_yaml_does_not_name_is_refused_before_anything_is_opened(home: Path) -> None:
    status, _, error = palate(home, "train", str(home / "app"), "--only", "words")
    assert (status, error.strip()) == (1, "palate: train has no 'words' to train; it has ['taste']")
    assert not (home / "palate.db").exists()


def test_the_first_index_of_an_app_loads_its_catalogue(home: Path, database: Database, mlflow_uri: str) -> None:
    app = home / "app"
    spec = made_up_spec("teas-from-file").model_dump(mode="json", exclude_unset=True)
    spec["items"]["source"] = "items.jsonl"
    (app / "app.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")

    def index() -> tuple[int, str, str]:
        return palate(home, "index", str(app), "--skip-evaluation", "--json", PALATE_MLFLOW_URI=mlflow_uri)

    def items() -> float:
        status, out, error = index()
        assert status == 0, error
        return float(json.loads(out)["metrics"]["items"])

    (app / "items.jsonl").write_text('{"id": "T1", "fields": {}}\n', encoding="utf-8")
    with pytest.raises(BadRequest, match=r"items.jsonl, line 1: item 'T1' has no text"):
        CliRunner().invoke(
            commands, ["index", str(app), "--home", str(home)], env={"PALATE_MLFLOW_URI": mlflow_uri},
            catch_exceptions=False,
        )  # fmt: skip
    lines = [{"id": item.id, "fields": item.fields, "attributes": item.attributes} for item in made_up_items()]
    (app / "items.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert items() == len(lines)
    # From then on the catalogue is what the store holds, not the file.
    SqlItemStore(database).delete("teas-from-file", [lines[0]["id"]])
    assert items() == len(lines) - 1


def test_a_learner_runs_only_where_something_happens_by_itself() -> None:
    assert not learns(made_up_spec(APP))
    assert not learns(learning_spec())
    assert learns(learning_spec(trigger={"new_events": 10}))
    assert learns(learning_spec(trigger={"every_s": 3600}))
    assert learns(learning_spec(canary=True))
