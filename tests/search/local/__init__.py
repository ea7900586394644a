"""Tests of retrieval.search.cluster."""
