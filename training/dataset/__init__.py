"""Data sets: feedback joined to traces, made into weighted examples, split by time and by unseen item."""

from training.dataset.example import PARTS, DatasetInfo, Example, Part, load_info, read_examples

__all__ = ["PARTS", "DatasetInfo", "Example", "Part", "load_info", "read_examples"]
