"""Tests of retrieval/training."""
