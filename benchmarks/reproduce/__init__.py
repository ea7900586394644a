"""Reproduce published experiments on Clotho by one command; see __main__.py."""
