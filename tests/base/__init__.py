"""Tests of retrieval/base."""
