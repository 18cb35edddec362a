"""The phase `generate`: prompts, checks and the language models that answer them."""
