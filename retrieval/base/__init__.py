"""Shared foundation of retrieval and data_prep. Imports torch only where a function needs it."""
