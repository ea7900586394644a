"""Retrieval metrics as an `evaluate.Metric` module, and the functions of ranks behind it."""
