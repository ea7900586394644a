"""Tests of retrieval/models/pretrained."""
