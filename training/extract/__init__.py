"""Offline extraction of structured values from texts: by a language model, or by rules where there is none. An app's
own scripts call it (`examples/beauty-finder`); `training.batch` keeps the file and asks the model."""
