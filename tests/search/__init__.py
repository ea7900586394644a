"""Tests of retrieval/search."""
