"""The scripts of an example as modules, with their siblings beside them, as when they run. Several examples have a
module of the same name, so none stays behind."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

from tests.platform import EXAMPLES


@contextmanager
def example_modules(app: str, *names: str) -> Iterator[SimpleNamespace]:
    """Each module under its name."""
    folder = EXAMPLES / app
    sys.path.insert(0, str(folder))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(folder))
        for name in {file.stem for file in folder.glob("*.py")}:
            sys.modules.pop(name, None)
