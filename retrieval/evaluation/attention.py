"""Spectrogram of a clip, and the attention that captions give to its frames."""

import numpy as np
import torch
import torchaudio

SHORTEST_DRAWN = 40  # ms


@torch.no_grad()
def listen(
    model: torch.nn.Module, waveform: torch.Tensor, captions: list[str]
) -> tuple[np.ndarray, np.ndarray | None, float]:
    """What a DualEncoder hears of a clip and what each caption listens to: log-mel (mels, columns),
    weights (N, T), seconds.

    waveform float32 (S,) at model.sample_rate, of which the first clip_seconds are heard. The T
    valid frames share the time evenly, and their weights sum to 1; None where the pooling does not
    look at the text.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    waveform = waveform[None, : round(model.clip_seconds * model.sample_rate)].to(device)  # (1, S)
    encoder = model.audio_encoder
    # a spectrogram needs a window's length
    missing = max(0, SHORTEST_DRAWN * model.sample_rate // 1000 - waveform.shape[1])
    heard = torchaudio.functional.resample(
        torch.nn.functional.pad(waveform, (0, missing)), model.sample_rate, encoder.sample_rate
    )
    log_mel = encoder.log_mel(heard)[0]  # (mels, columns)
    # (1, T, D), (1, T)
    frames, mask = model.encode_audio(waveform, torch.tensor([waveform.shape[1]]))
    weights = model.attention(model.encode_text(captions), frames, mask)  # (N, 1, T)
    model.train(was_training)
    valid = None if weights is None else weights[:, 0, mask[0]].float().cpu().numpy()
    return log_mel.float().cpu().numpy(), valid, waveform.shape[1] / model.sample_rate
