"""Benchmarks: Palate beside what a team would run instead. `scripts/bench` is the way in."""
