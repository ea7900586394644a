"""Tests of retrieval/models/audio."""
