"""Trains the Wide & Deep ranker that `serving.components.ranker` serves; `trainer.TRAINER` is the way in."""
