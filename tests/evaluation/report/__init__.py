"""Tests of retrieval/evaluation/report."""
