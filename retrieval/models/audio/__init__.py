"""Audio encoders by name. An encoder is one file beside this one and one line in AUDIO_ENCODERS.

An encoder has the attributes `sample_rate` (Hz), `feature_dim` and `num_mel_bins` (0 where it hears
the waveform itself), and the methods `num_frames(num_samples)`, `log_mel(waveform)`,
`forward(waveform, augment=None)` and `load_official(path)`; see `AtstFrame`. The arguments of its
constructor are settings of retrieval.config.AudioEncoderConfig.
"""

from retrieval.models.audio.atst import AtstFrame
from retrieval.models.audio.efficientat import EfficientAt
from retrieval.models.audio.huggingface import HuggingFaceAudioEncoder
from retrieval.models.audio.passt import Passt, Passt20, PasstL, PasstS

AUDIO_ENCODERS = {
    "atst_frame": AtstFrame,
    "passt": Passt,
    "passt_s": PasstS,
    "passt_20": Passt20,
    "passt_l": PasstL,
    "mn40_as_ext": EfficientAt,  # other widths by audio_encoder.width
    "huggingface": HuggingFaceAudioEncoder,
}
