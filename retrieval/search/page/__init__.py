"""The page in the browser that searches an index: `python -m retrieval.app --index DIR`."""
