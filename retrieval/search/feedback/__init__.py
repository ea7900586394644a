"""Answers that were marked right or wrong, and the detectors learned from them."""
