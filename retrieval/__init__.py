"""Text-to-audio retrieval: models, losses, training and evaluation."""
