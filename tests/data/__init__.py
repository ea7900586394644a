"""Tests of retrieval/data."""
