"""Audio encoders by name. An encoder is one file beside this one and one line in AUDIO_ENCODERS.

An encoder has the attributes `sample_rate` (Hz), `feature_dim` and `num_mel_bins`, and the methods `num_frames(num_samples)`,
`log_mel(waveform)`, `forward(waveform)` and `load_official(path)`; see `AtstFrame`.
"""

from retrieval.models.audio.atst import AtstFrame

AUDIO_ENCODERS = {"atst_frame": AtstFrame}
