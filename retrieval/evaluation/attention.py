"""Spectrogram of a clip, and the attention that captions give to its frames."""

import numpy as np
import torch
import torchaudio

from retrieval.models.dual_encoder import DualEncoder, eval_mode

SHORTEST_DRAWN = 40  # ms
MAX_POINTS = 240  # of a curve; on a phone it has fewer pixels


@torch.no_grad()
def listen(
    model: DualEncoder, waveform: torch.Tensor, captions: list[str]
) -> tuple[np.ndarray, np.ndarray | None, float]:
    """Compute the spectrogram of a clip and the attention of captions to its frames.

    Args:
        model: Encodes the first clip_seconds of the clip.
        waveform: float32 (S,) at model.sample_rate.
        captions: N texts.

    Returns:
        Log-mel spectrogram (mels, columns).
        Weights (N, T) of the T valid frames, which share the time evenly; each row sums to 1. None
        if the pooling does not look at the text.
        Seconds that the model hears.
    """
    device = next(model.parameters()).device
    waveform = waveform[None, : round(model.clip_seconds * model.sample_rate)].to(device)  # (1, S)
    log_mel = spectrogram(model, waveform[0])
    with eval_mode(model):
        # (1, T, D), (1, T)
        frames, mask = model.encode_audio(waveform, torch.tensor([waveform.shape[1]]))
        weights = model.attention(model.encode_text(captions), frames, mask)  # (N, 1, T)
    valid = None if weights is None else weights[:, 0, mask[0]].float().cpu().numpy()
    return log_mel, valid, waveform.shape[1] / model.sample_rate


@torch.no_grad()
def spectrogram(model: DualEncoder, waveform: torch.Tensor) -> np.ndarray:
    """Compute the log-mel spectrogram (mels, columns) of at most clip_seconds of sound.

    Args:
        model: Its audio encoder's spectrogram is computed.
        waveform: float32 (S,) at model.sample_rate.
    """
    encoder, waveform = model.audio_encoder, waveform.to(next(model.parameters()).device)[None]
    # a spectrogram needs one whole window
    missing = max(0, SHORTEST_DRAWN * model.sample_rate // 1000 - waveform.shape[1])
    padded = torch.nn.functional.pad(waveform, (0, missing))
    with eval_mode(model):
        resampled = torchaudio.functional.resample(padded, model.sample_rate, encoder.sample_rate)
        return encoder.log_mel(resampled)[0].float().cpu().numpy()


def attention_curve(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reduce the attention to the frames of a clip to few points, for a drawing.

    Args:
        weights: (T,), not negative; they sum to 1.

    Returns:
        Highest weight of each of at most MAX_POINTS groups of neighbouring frames, as a multiple of
        the equal share 1 / T; and number of frames of each group.
    """
    groups = np.array_split(weights * len(weights), min(MAX_POINTS, len(weights)))
    heights = np.array([group.max() for group in groups])
    return heights, np.array([len(group) for group in groups])
