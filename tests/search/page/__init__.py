"""Tests of retrieval/search/page."""
