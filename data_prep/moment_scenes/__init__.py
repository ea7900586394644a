"""Parts of data_prep/make_moments.py: foregrounds, backgrounds, plans and rendering of scenes."""
