"""Tests of retrieval/losses."""
