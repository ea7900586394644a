"""Write an Arrow cache."""
