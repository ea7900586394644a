"""Audio encoders by name. An encoder is one file beside this one and one line in AUDIO_ENCODERS.

`AudioEncoder` defines the interface; `AtstFrame` is an example.
"""

from retrieval.models.audio.atst import AtstFrame
from retrieval.models.audio.efficientat import EfficientAt
from retrieval.models.audio.encoder import AudioEncoder
from retrieval.models.audio.huggingface import HuggingFaceAudioEncoder
from retrieval.models.audio.passt import Passt, Passt20, PasstL, PasstS

AUDIO_ENCODERS: dict[str, type[AudioEncoder]] = {
    "atst_frame": AtstFrame,
    "passt": Passt,
    "passt_s": PasstS,
    "passt_20": Passt20,
    "passt_l": PasstL,
    "mn40_as_ext": EfficientAt,  # other widths by audio_encoder.width
    "huggingface": HuggingFaceAudioEncoder,
}
