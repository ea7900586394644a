"""The sample corpus: sounds, scenes and captions made from parameters. Used by
data_prep/make_sample_corpus.py only.
"""
