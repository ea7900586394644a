"""Captions by a language model."""
