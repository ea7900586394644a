"""Changes of the spectrogram in training: SpecAugment's masks, and a bend of the frequency axis.

Park et al.: SpecAugment (Interspeech 2019), arXiv:1904.08779. Letters: W windows, M mel bands, C
columns.
"""

import math

import torch
import torchaudio.functional
from torch import Tensor

# of a window that a mask may hide: a window of nothing but mask has nothing to learn from
MOST_OF_COLUMNS = 0.5


class MelAugmentation:
    """Spectrograms (W, M, C) of windows in, the same shape out; every window has its own draws,
    from torch's global random state.

    mask_mels, mask_columns: bands and columns hidden at most, by the mean of the window, which is
    what a network that centres its input would not notice; warp_mels: how far bands move at most,
    as a fraction of their number.
    """

    def __init__(self, mask_mels: int, mask_columns: int, warp_mels: float):
        self.mask_mels, self.mask_columns, self.warp_mels = mask_mels, mask_columns, warp_mels

    def __call__(self, log_mel: Tensor) -> Tensor:
        if self.warp_mels:
            log_mel = _bent(log_mel, self.warp_mels)
        num_mels, num_columns = log_mel.shape[1:]
        mean = log_mel.mean(dim=(1, 2), keepdim=True)
        # torchaudio takes one value for all windows: around their means it is zero.
        masked = (log_mel - mean).unsqueeze(1)  # (W, 1, M, C)
        for size, axis in (
            (min(self.mask_mels, num_mels - 1), 2),
            (min(self.mask_columns, int(MOST_OF_COLUMNS * num_columns)), 3),
        ):
            if size > 0:
                masked = torchaudio.functional.mask_along_axis_iid(masked, size, 0.0, axis)
        return masked.squeeze(1) + mean


def mel_augmentation(mask_mels: int, mask_columns: int, warp_mels: float) -> MelAugmentation | None:
    """None where no change is switched on."""
    return (
        MelAugmentation(mask_mels, mask_columns, warp_mels)
        if mask_mels or mask_columns or warp_mels
        else None
    )


def _bent(log_mel: Tensor, most: float) -> Tensor:
    """Both ends of the frequency axis stay, the middle moves by up to `most` of its length, with
    half a sine in between.

    The slope of the bend is at most pi * most; beyond 1 / pi it would fold the axis, so that bands
    keep their order up to there.
    """
    num_mels = log_mel.shape[1]
    position = torch.linspace(0, 1, num_mels, device=log_mel.device)  # (M,)
    # (W, 1)
    amount = (2 * torch.rand(len(log_mel), 1, device=log_mel.device) - 1) * min(most, 1 / math.pi)
    # (W, M)
    source = (position + amount * torch.sin(math.pi * position)).clamp(0, 1) * (num_mels - 1)
    below = source.floor().clamp(max=num_mels - 2)
    share = (source - below).to(log_mel.dtype)[..., None]  # (W, M, 1)
    index = below.long()[..., None].expand_as(log_mel)
    return torch.lerp(log_mel.gather(1, index), log_mel.gather(1, index + 1), share)
