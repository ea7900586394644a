"""What everything stands on; light: no torch, so that data_prep may import it."""
