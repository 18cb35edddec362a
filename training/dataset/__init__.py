"""Data sets: feedback joined to traces, made into weighted examples, split by time and by unseen item."""

from training.dataset.build import build_dataset
from training.dataset.example import PARTS, DatasetInfo, Example, Part, load_info, read_examples
from training.dataset.request import DatasetRequest

__all__ = ["PARTS", "DatasetInfo", "DatasetRequest", "Example", "Part", "build_dataset", "load_info", "read_examples"]
