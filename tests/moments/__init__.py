"""Tests of retrieval/moments."""
