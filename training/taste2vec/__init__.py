"""Taste2Vec: an encoder of texts with records (notes, metrics, context) to unit vectors; learns in batch and online.

What it is follows the issue: text 64 + sensory vocabulary 64 + numeric 64 + context LSTM 32, fused to 128. `encoder` is
the network, `objective` what it minimises, `component` its files, `replay` the buffer, `online` what a run learns from,
`trainer` the whole.
"""
