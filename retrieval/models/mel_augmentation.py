"""Augmentation of spectrograms: SpecAugment's masks, and warping of the frequency axis.

Park et al.: SpecAugment (Interspeech 2019), arXiv:1904.08779. Letters: W windows, M mel bands, C
columns.
"""

import math

import torch
import torchaudio.functional
from torch import Tensor

MOST_OF_COLUMNS = 0.5  # of a window, that one mask hides at most: the rest is left to learn from


class MelAugmentation:
    """Change spectrograms (W, M, C) and keep their shape; each window has its own random draws.

    Draws are from torch's global random state. Masks are filled with the mean of the window.

    Args:
        mask_mels: Most bands that a mask hides.
        mask_columns: Most columns that a mask hides.
        warp_mels: How far bands move at most, as a fraction of their number.
    """

    def __init__(self, mask_mels: int, mask_columns: int, warp_mels: float):
        self.mask_mels, self.mask_columns, self.warp_mels = mask_mels, mask_columns, warp_mels

    def __call__(self, log_mel: Tensor) -> Tensor:
        if self.warp_mels:
            log_mel = _warp(log_mel, self.warp_mels)
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
    """Return the MelAugmentation of these settings; None if all are off."""
    if not (mask_mels or mask_columns or warp_mels):
        return None
    return MelAugmentation(mask_mels, mask_columns, warp_mels)


def _warp(log_mel: Tensor, most: float) -> Tensor:
    """Warp the frequency axis by half a sine: the ends stay, the middle moves by up to `most`.

    The slope of the warp is at most pi * most: above 1 / pi bands would change their order.
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
