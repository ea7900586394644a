"""Sounds, scenes and captions of the sample corpus, for data_prep/make_sample_corpus.py."""
