"""When a sentence's sound is heard in a recording: moments, their files and their scores."""
