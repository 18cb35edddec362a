"""`palate models build tiny`: a language model of a few million parameters for the examples, made from nothing.

It is there so that everything that generates can be run, tested and measured without a network and without a GPU. It
knows the prompts of the examples and nothing else. `build` is the way in."""
