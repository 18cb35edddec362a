"""What all tests share: the embedder component, exported once per run, and how hypothesis chooses its examples."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

from serving.components.embedder import INFO_FILE

# Side by side, tests get the width of the terminal they are started in; what commands print is as wide as a test says.
os.environ.pop("COLUMNS", None)

# The same examples in every run, so that a red run is red again; `--hypothesis-profile explore` draws new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=1000, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def minilm_component(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedder that a package ships, exported once per run with its torch weights. Read it, never write into it."""
    from training.export import export_embedder  # torch: only the tests that need it pay for it

    root = tmp_path_factory.getbasetemp()
    if root.name.startswith("popen-"):
        root = root.parent  # workers of pytest-xdist share one
    folder = root / "minilm-component"
    with FileLock(root / "minilm-component.lock"):
        if not (folder / INFO_FILE).is_file():
            export_embedder("minilm", folder, made_up_descriptions(), torch_weights=True)
    return folder


def made_up_descriptions() -> list[str]:
    """120 short product texts, made up: enough for the gate of int8."""
    makers = ["Otter", "Juniper", "Copper", "Harbour", "Meadow", "Granite", "Velvet", "Amber", "Willow", "Falcon"]
    things = [
        ("grinder", "grinds roasted coffee beans evenly for espresso and filter"),
        ("kettle", "boils water to the degree and pours in a thin stream"),
        ("lamp", "lights a desk with warm light that can be dimmed"),
        ("editor", "edits photographs without loss and keeps every step"),
        ("player", "plays music from the network and from local disks"),
        ("compiler", "translates source code to machine code for small boards"),
        ("backpack", "carries a notebook, a rain jacket and lunch to the office"),
        ("bicycle", "folds in seconds and fits below the seat of a train"),
        ("thermometer", "reports the temperature of a room to a phone"),
        ("red wine", "a dry red from old vines, with cherry, tobacco and soft tannins"),
        ("white wine", "a crisp white with lime, gooseberry and a salty finish"),
        ("scanner", "finds open ports and outdated services in a network"),
    ]
    return [f"{maker} {thing}: {text}" for maker in makers for thing, text in things]
