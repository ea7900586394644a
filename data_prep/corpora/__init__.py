"""Read corpora as they lie on disk."""
