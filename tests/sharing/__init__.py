"""Tests of retrieval/sharing."""
