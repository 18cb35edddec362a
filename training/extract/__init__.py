"""Offline extraction of structured values from texts: by a language model behind any OpenAI-compatible server, or by
rules where there is none. An app's own scripts call it (`examples/beauty-finder`)."""
