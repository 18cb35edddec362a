"""The rank phase: `serving.rank.phase.make_rank` makes it, one ranker per file."""
