"""Offline work of a language model over whole files: one line of output for each input, whatever happens on the way.

`palate generate-batch` runs it for prompts, `training.extract` for keywords and summaries."""
