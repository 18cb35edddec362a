"""Exports the embedder component for the bare loop: `python -m bench.export_component FOLDER`.

A process of its own, so that torch, which only the export needs, is not counted as the loop's memory.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bench.data import load_items, texts_of
from training.export import export_embedder

if __name__ == "__main__":
    export_embedder("minilm", Path(sys.argv[1]), texts_of(load_items()))
