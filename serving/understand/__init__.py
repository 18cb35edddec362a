"""What a query says: one adapter of `serving.ports.Understander` per file."""
