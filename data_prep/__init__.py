"""Commands that turn a corpus on disk into an Arrow cache, and their parts."""
