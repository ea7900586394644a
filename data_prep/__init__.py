"""From a corpus on disk to the Arrow cache: commands, and the parts that they share."""
