"""mAP@k and R@k of text-to-audio and audio-to-text retrieval."""
