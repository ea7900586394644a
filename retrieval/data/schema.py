"""Schema of the Arrow cache, which data_prep writes and `retrieval.data.cache` reads.

Imports nothing, so that a data_prep script starts at once.
"""

SCHEMA = 1  # raise it when an older reader would misunderstand a cache

# Every corpus is divided into these; a cache may lack some.
DEVELOPMENT, VALIDATION, EVALUATION = SPLITS = ("development", "validation", "evaluation")

# One row per clip. The corpus's own metadata follow, as strings.
CLIP_ID, FILE_NAME, AUDIO, NUM_SAMPLES, CAPTIONS = COLUMNS = (
    "clip_id",
    "file_name",
    "audio",
    "num_samples",
    "captions",
)

# Optional: queries of a clip with the windows in which they are heard, as a
# list<struct<qid: string, query: string, windows: list<struct<start: float64, end: float64>>>>
# (retrieval/data/moments.py). An older reader ignores it.
MOMENTS = "moments"

# How the bytes of `audio` are coded; PCM is 16 bit, little-endian.
PCM, FLAC, MP3 = CODECS = ("pcm_s16le", "flac", "mp3")
