"""What a query says: one adapter per file. `serving.understand.make.make_understand` makes the phase of an app, and
`serving.understand.turns.turn_of` what a session remembers of a query."""
