"""Releases: what they are, where they are kept, and which one serves."""
