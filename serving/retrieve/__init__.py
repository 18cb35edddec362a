"""Ways to propose candidates for a query, one adapter per file or folder."""
