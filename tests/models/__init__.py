"""Tests of retrieval/models."""
