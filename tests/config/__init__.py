"""Tests of retrieval/config."""
