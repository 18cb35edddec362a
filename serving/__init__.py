"""The query side of Palate: everything that happens between an HTTP request and its answer."""
