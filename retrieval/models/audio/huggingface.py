"""Audio encoders of the Hugging Face hub: AST, CLAP, PE-Audio, Whisper's encoder, WavLM and others.

Input features come from the model's own feature extractor (preprocessor_config.json) in
transformers: correct by construction, but computed window by window on the CPU (Whisper's on the
device). A window of 10 s takes 4 ms for AST, 16 ms for CLAP, 8 ms for Whisper and 0.4 ms for WavLM
on one core; a frozen encoder pays that once with data.frame_cache.

Letters: W windows, S samples, M mel bands, C columns, T frames, F = feature_dim.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchaudio.functional
import transformers
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    ClapAudioModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.pe_audio.modeling_pe_audio import PeAudioEncoder, PeAudioEncoderEmbedder
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from retrieval.base.errors import UserError, one_line
from retrieval.models.audio.encoder import AudioEncoder
from retrieval.models.audio.graph_features import (
    ast_features,
    clap_features,
    pe_audio_features,
    whisper_features,
)
from retrieval.models.audio.official import load_strictly
from retrieval.models.blocks import checkpoint_pretrained, compile_module_lists
from retrieval.models.hub import (
    NO_CODE,
    config_of,
    loading,
    unreachable,
    warn_of_code,
    without_code,
)

# Settings of models that are switched off: random changes in training, which this project has
# settings of its own for, and layers after the encoder that reduce the number of frames.
NOT_USED = {
    "apply_spec_augment": False,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
    "layerdrop": 0.0,
    "encoder_layerdrop": 0.0,
    "add_adapter": False,
}
READOUTS = ("frames", "pooled")
POOLED_PARTS = 10  # frames of a pooled window: the last window of a clip counts by its length
PICTURE_MELS = 64  # bands of the spectrogram that log_mel makes for models of waveforms


class _Family:
    """The differences between kinds of models.

    Beside the methods here it has `sizes()`, pairs (extractor's, model's) that must agree, by name;
    `samples()`, the shortest and the longest window; `num_frames(num_samples)`; and, for models of
    spectrograms, `num_columns(num_samples)`, the columns of a window before the padding.
    """

    extractor_type: type
    part = ""  # attribute of a larger model that holds the encoder
    readouts = READOUTS[:1]

    def __init__(self, config: PreTrainedConfig, extractor: Any, readout: str):
        self.config, self.extractor, self.readout = config, extractor, readout

    @property
    def takes_lengths(self) -> bool:
        """See AudioEncoder; the extractor then gets windows without the zeros after their sound."""
        return False

    @property
    def rounds_frames(self) -> bool:
        """See AudioEncoder."""
        return False

    def step(self) -> int:
        """Return the number of samples that must divide a full window."""
        return 1

    def unused(self, parameter: str) -> bool:
        """Return True for the name of a parameter that never receives a gradient."""
        return False

    def build(self) -> PreTrainedModel:
        return AutoModel.from_config(self.config, dtype=torch.float32, **NO_CODE)

    def features(self, windows: list, device: torch.device) -> Tensor:
        """Compute (W, M, C), on any device, of windows float32 (S,)."""
        features = self.extractor(
            windows,
            sampling_rate=self.extractor.sampling_rate,
            return_tensors="pt",
            device=str(device),  # only Whisper's uses it
        )
        return features[self.extractor.model_input_names[0]]

    def graph_features(self, windows: Tensor, lengths: Tensor) -> Tensor:
        """Compute features of windows (W, S) in PyTorch, for ONNX graphs."""
        raise NotImplementedError

    def encode(self, model: PreTrainedModel, features: Tensor, lengths: Tensor) -> Tensor:
        """Encode (W, M, C), of windows with lengths (W,) in samples, to (W, T or more, F)."""
        return model(features).last_hidden_state


class _SpectrogramTransformer(_Family):
    """AST: a grid of patches, frequency by time, after two tokens.

    A window is padded to the extractor's max_length columns.
    """

    extractor_type = transformers.ASTFeatureExtractor

    def sizes(self) -> dict[str, tuple[int, int]]:
        return {
            name: (getattr(self.extractor, name), getattr(self.config, name))
            for name in ("num_mel_bins", "max_length")
        }

    def samples(self) -> tuple[int, int]:
        rate = self.extractor.sampling_rate
        # Kaldi's windows of 25 ms, 10 ms apart
        return rate // 40, rate // 40 + rate // 100 * (self.extractor.max_length - 1)

    def num_columns(self, num_samples: int) -> int:
        rate = self.extractor.sampling_rate
        return 1 + (num_samples - rate // 40) // (rate // 100)

    def num_frames(self, num_samples: int) -> int:
        total = (self.config.max_length - self.config.patch_size) // self.config.time_stride + 1
        return min(-(-self.num_columns(num_samples) // self.config.time_stride), total)

    def features(self, windows: list, device: torch.device) -> Tensor:
        return super().features(windows, device).transpose(1, 2)

    def graph_features(self, windows: Tensor, lengths: Tensor) -> Tensor:
        return ast_features(windows, self.extractor)

    def encode(self, model: PreTrainedModel, features: Tensor, lengths: Tensor) -> Tensor:
        config = self.config
        num_rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        # without class and distillation token
        hidden = super().encode(model, features.transpose(1, 2), lengths)[:, 2:]
        return hidden.unflatten(1, (num_rows, -1)).mean(dim=1)


class _Clap(_Family):
    """CLAP's audio tower (HTSAT), which folds time into a square picture.

    "frames": its output is unfolded again, frequency by time. The extractor pads shorter windows to
    10 s, mostly by repetition; the frames of the first repetition are kept.

    "pooled": the average of its output, CLAP's own vector of a window, POOLED_PARTS times. A window
    reaches the extractor without zeros after its sound, as a clip does in CLAP.
    """

    extractor_type = transformers.ClapFeatureExtractor
    part = "audio_model"
    readouts = READOUTS

    @property
    def takes_lengths(self) -> bool:
        return self.readout == "pooled"

    rounds_frames = takes_lengths  # both: only for the readout pooled

    def unused(self, parameter: str) -> bool:
        # layers for more than 10 s, which no window has
        return ".fusion_model." in parameter or ".mel_conv2d." in parameter

    def build(self) -> PreTrainedModel:
        # AutoModel knows only the whole CLAP
        model = ClapAudioModel._from_config(self.config, dtype=torch.float32)
        # No window exceeds the model's 10 s: nothing to fuse, and one spectrogram in place of four.
        model.audio_encoder.enable_fusion = False
        model.audio_encoder.patch_embed.enable_fusion = False
        return model

    def sizes(self) -> dict[str, tuple[int, int]]:
        columns = self.num_columns(self.extractor.nb_max_samples)
        longest = self.config.spec_size**2 // self.config.num_mel_bins
        return {
            "feature_size": (self.extractor.feature_size, self.config.num_mel_bins),
            "columns": (columns, min(columns, longest)),
        }

    def samples(self) -> tuple[int, int]:
        least = 1 if self.takes_lengths else self.extractor.fft_window_size // 2 + 1
        return least, self.extractor.nb_max_samples

    def num_columns(self, num_samples: int) -> int:
        return num_samples // self.extractor.hop_length + 1

    def num_frames(self, num_samples: int) -> int:
        if self.takes_lengths:
            total = self.extractor.nb_max_samples
            parts = (2 * POOLED_PARTS * num_samples + total) // (2 * total)  # the nearest
            return torch.sym_max(parts, 1)
        size = self.config.spec_size
        stride = self.config.patch_stride[1] * 2 ** (len(self.config.depths) - 1)
        total = size // self.config.num_mel_bins * (size // stride)
        return -(-num_samples * total // self.extractor.nb_max_samples)

    def features(self, windows: list, device: torch.device) -> Tensor:
        # with fusion there are four equal channels
        return super().features(windows, device)[:, 0].transpose(1, 2)

    def graph_features(self, windows: Tensor, lengths: Tensor) -> Tensor:
        return clap_features(windows, lengths, self.extractor)

    def encode(self, model: PreTrainedModel, features: Tensor, lengths: Tensor) -> Tensor:
        columns = features.transpose(1, 2).unsqueeze(1)  # (W, 1, C, M)
        output = model(input_features=columns)
        if self.takes_lengths:
            return output.pooler_output[:, None].expand(-1, POOLED_PARTS, -1)
        return output.last_hidden_state.mean(dim=2).transpose(1, 2)  # of (W, F, rows, T)


class _ClipwiseEmbedder(PeAudioEncoderEmbedder):
    """PE-Audio's codec, one window at a time, and the linear map above it.

    Zeros after a window's end change the codec's last frames, whose convolutions know no mask. One
    window at a time, its frames do not depend on the others.
    """

    def forward(
        self, input_values: Tensor, padding_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return embeddings (W, T, F) and mask (W, T) of (W, 1, S), (W, S)."""
        if torch.compiler.is_exporting():
            num_frames = padding_mask.sum(dim=1) // self.config.dac_config.hop_length
            codes = self._masked_codes(input_values, num_frames)
            return self.data_proj(codes), torch.arange(codes.shape[1]) < num_frames[:, None]
        codes, device = [], input_values.device
        # as transformers does, and in float32: the codec is a front end
        no_cudnn = torch.backends.cudnn.flags(enabled=False)
        with torch.no_grad(), no_cudnn, torch.autocast(device.type, enabled=False):
            for window, length in zip(input_values, padding_mask.sum(dim=1).tolist(), strict=True):
                hidden = self.dac_encoder(window[None, :, :length])
                codes.append(self.bottleneck(hidden)[0].T)  # (T, codebook_dim)
        num_frames = torch.tensor([len(own) for own in codes], device=device)
        codes = pad_sequence(codes, batch_first=True)
        mask = torch.arange(codes.shape[1], device=device) < num_frames[:, None]
        return self.data_proj(codes), mask

    def _masked_codes(self, input_values: Tensor, num_frames: Tensor) -> Tensor:
        """Return the codes (W, T, codebook_dim) of all windows (W, 1, S) at once, for graphs.

        What lies beyond a window's end is zero before each convolution wider than 1, as if the
        window ended there.
        """
        codec, step = self.dac_encoder, self.config.dac_config.hop_length  # samples of a frame
        most = input_values.shape[2] // step

        def inside(step: int) -> Tensor:
            valid = torch.arange(step * most) < step * num_frames[:, None]  # (W, step T)
            return valid[:, None].to(input_values.dtype)

        kept = inside(step)
        hidden = codec.conv1(input_values * kept)
        for block in codec.block:
            for unit in (block.res_unit1, block.res_unit2, block.res_unit3):
                wide = unit.conv1(unit.snake1(hidden) * kept)
                hidden = hidden + unit.conv2(unit.snake2(wide))
            hidden = block.conv1(block.snake1(hidden) * kept)
            step //= block.conv1.stride[0]
            kept = inside(step)
        hidden = codec.conv2(codec.snake1(hidden) * kept)
        return self.bottleneck(hidden).transpose(1, 2)


class _MaskedGroupNorm(nn.GroupNorm):
    """PE-Audio's norm over all valid frames and channels, in operations that ONNX has."""

    def forward(self, hidden: Tensor, padding_mask: Tensor) -> Tensor:
        """Normalise hidden (W, F, T) under padding_mask (W, F, T), zeros elsewhere."""
        valid = padding_mask.to(hidden.dtype)
        count = valid.sum(dim=(1, 2), keepdim=True)
        mean = (hidden * valid).sum(dim=(1, 2), keepdim=True) / count
        centred = (hidden - mean) * valid
        variance = centred.square().sum(dim=(1, 2), keepdim=True) / count
        scaled = centred / (variance + self.eps).sqrt()
        return (scaled * self.weight[:, None] + self.bias[:, None]) * valid


class _PeAudio(_Family):
    """PE-Audio: a frozen codec, 40 ms a frame, and a transformer over the frames of a whole clip.

    "frames": its output for each frame. "pooled": its output for the class token.
    """

    extractor_type = transformers.PeAudioFeatureExtractor
    part = "audio_encoder"
    readouts = READOUTS
    takes_lengths = True

    def build(self) -> PreTrainedModel:
        model = PeAudioEncoder._from_config(self.config, dtype=torch.float32)
        embedder = _ClipwiseEmbedder(self.config)
        embedder.load_state_dict(model.embedder.state_dict())
        model.embedder = embedder
        blocks = model.patch_embedder.resnet_block
        for block in (blocks.block1, blocks.block2):
            block.groupnorm = _MaskedGroupNorm(1, self.config.hidden_size, block.groupnorm.eps)
        return model

    def unused(self, parameter: str) -> bool:
        return parameter.startswith(("embedder.dac_encoder.", "embedder.bottleneck."))

    def sizes(self) -> dict[str, tuple[int, int]]:
        return {
            "feature_size": (self.extractor.feature_size, 1),
            "hop_length": (self.extractor.hop_length, self.config.dac_config.hop_length),
        }

    def samples(self) -> tuple[int, int]:
        return 1, self.config.max_position_embeddings * self.extractor.hop_length

    def step(self) -> int:
        return 1 if self.readout == "pooled" else self.extractor.hop_length

    def num_frames(self, num_samples: int) -> int:
        hop = self.extractor.hop_length
        # not -(-a // b): ONNX divides sizes towards zero
        return 1 if self.readout == "pooled" else (num_samples + hop - 1) // hop

    def features(self, windows: list, device: torch.device) -> Tensor:
        """Fill windows up to whole frames by reflection, then with zeros: (W, 1, S)."""
        rate = self.extractor.sampling_rate
        return self.extractor(windows, sampling_rate=rate, return_tensors="pt")["input_values"]

    def graph_features(self, windows: Tensor, lengths: Tensor) -> Tensor:
        return pe_audio_features(windows, lengths, self.extractor.hop_length)

    def encode(self, model: PreTrainedModel, features: Tensor, lengths: Tensor) -> Tensor:
        hop = self.extractor.hop_length
        filled = -(-lengths // hop) * hop  # (W,)
        mask = torch.arange(features.shape[2]) < filled[:, None]
        output = model(features, padding_mask=mask.to(features.device))
        if self.readout == "pooled":
            return output.pooler_output[:, None]
        return output.last_hidden_state


class _Whisper(_Family):
    """Whisper's encoder: windows are padded to 30 s, and frames of the padding are cut off."""

    extractor_type = transformers.WhisperFeatureExtractor
    part = "encoder"

    def build(self) -> PreTrainedModel:
        # AutoModel would build the decoder, too
        return WhisperEncoder._from_config(self.config, dtype=torch.float32)

    def sizes(self) -> dict[str, tuple[int, int]]:
        # the second convolution halves them
        frames = (self.extractor.nb_max_frames, 2 * self.config.max_source_positions)
        return {
            "feature_size": (self.extractor.feature_size, self.config.num_mel_bins),
            "columns": frames,
        }

    def samples(self) -> tuple[int, int]:
        return self.extractor.n_fft // 2 + 1, self.extractor.n_samples

    def num_columns(self, num_samples: int) -> int:
        return -(-num_samples // self.extractor.hop_length)

    def graph_features(self, windows: Tensor, lengths: Tensor) -> Tensor:
        return whisper_features(windows, self.extractor)

    def num_frames(self, num_samples: int) -> int:
        return -(-self.num_columns(num_samples) // 2)


class _Waveform(_Family):
    """WavLM, wav2vec 2.0, HuBERT: convolutions over the waveform (W, S), 20 ms per frame."""

    extractor_type = transformers.Wav2Vec2FeatureExtractor

    def sizes(self) -> dict[str, tuple[int, int]]:
        return {"feature_size": (self.extractor.feature_size, 1)}

    def samples(self) -> tuple[int, int]:
        least = 1
        layers = zip(self.config.conv_kernel, self.config.conv_stride, strict=True)
        for kernel, stride in reversed(list(layers)):
            least = (least - 1) * stride + kernel
        return least, 600 * self.extractor.sampling_rate  # above 10 min memory is the limit

    def graph_features(self, windows: Tensor, lengths: Tensor) -> Tensor:
        """Normalise windows (W, S) as Wav2Vec2FeatureExtractor does in numpy."""
        if not self.extractor.do_normalize:
            return windows
        centred = windows - windows.mean(dim=1, keepdim=True)
        return centred / (centred.square().mean(dim=1, keepdim=True) + 1e-7).sqrt()

    def num_frames(self, num_samples: int) -> int:
        for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
            num_samples = (num_samples - kernel) // stride + 1
        return num_samples


FAMILIES: dict[str, type[_Family]] = {
    "audio-spectrogram-transformer": _SpectrogramTransformer,
    "clap_audio_model": _Clap,
    "pe_audio_encoder": _PeAudio,
    "whisper": _Whisper,
    "wavlm": _Waveform,
    "wav2vec2": _Waveform,
    "hubert": _Waveform,
}
# Models of audio and text: number of nested audio_config sections above the encoder's config.
HOLDERS = {"clap": 1, "pe_audio": 1, "pe_audio_video": 2}
# Reads PeAudioModel from a file of PeAudioVideoModel, which has one text model for all its parts.
PE_AUDIO_OF_VIDEO = {"key_mapping": {r"^audio_model\.": ""}}


class HuggingFaceAudioEncoder(AudioEncoder):
    """An audio encoder of the Hugging Face hub, with random weights.

    Frames are in time order, averaged over frequency. Batch normalisation keeps its statistics in
    training, too, as in EfficientAt.

    Args:
        architecture: The model's config.json.
        feature_extractor: Its preprocessor_config.json; `huggingface_arguments` reads both.
        readout: "frames", or "pooled", the vector that CLAP and PE-Audio themselves give a window.

    Raises:
        UserError: They do not fit together, or describe no model.
    """

    takes_any_rate = True

    def __init__(
        self,
        architecture: dict[str, Any],
        feature_extractor: dict[str, Any],
        readout: str = "frames",
    ):
        super().__init__()
        family = FAMILIES[architecture["model_type"]]
        _check_agreement(
            "feature_extractor_type",
            feature_extractor.get("feature_extractor_type"),
            family.extractor_type.__name__,
        )
        self.config = _without_unused(config_of(architecture, "audio encoder"))
        if readout not in family.readouts:
            raise UserError(
                f"audio_encoder.readout={readout!r} is not one of {architecture['model_type']},"
                f" which has: {', '.join(family.readouts)}"
            )
        extractor = family.extractor_type.from_dict(feature_extractor)
        self.family = family(self.config, extractor, readout)
        for name, (found, expected) in self.family.sizes().items():
            _check_agreement(name, found, expected)
        try:
            self.model = self.family.build()
        except (ValueError, TypeError, ZeroDivisionError) as error:
            raise UserError(
                f"the audio encoder's config.json describes no model ({one_line(error)}); copy it"
                " again"
            ) from None
        for name, parameter in self.model.named_parameters():
            if self.family.unused(name):
                parameter.requires_grad_(False)
        self.takes_lengths = self.family.takes_lengths
        self.rounds_frames = self.family.rounds_frames
        self.pools_windows = readout == "pooled"
        self.sample_rate: int = self.family.extractor.sampling_rate  # Hz
        self.num_mel_bins: int = getattr(self.config, "num_mel_bins", 0)
        self.feature_dim: int = self.config.hidden_size

    @classmethod
    def constructor_arguments(
        cls, checkpoint: str | None, settings: dict[str, Any]
    ) -> dict[str, Any]:
        if checkpoint is None:
            raise UserError(
                "audio_encoder.checkpoint must name a hub model or folder with"
                " audio_encoder.name=huggingface"
            )
        return huggingface_arguments(checkpoint) | settings

    def checkpoint_activations(self) -> None:
        checkpoint_pretrained(self.model)

    def compile_blocks(self) -> None:
        compile_module_lists(self.model)

    def train(self, mode: bool = True) -> "HuggingFaceAudioEncoder":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def num_frames(self, num_samples: int) -> int:
        """Return T of a window of `num_samples`, or raise UserError if it is too short or long."""
        least, most = self.family.samples()
        if not least <= num_samples <= most:
            raise UserError(
                f"a window of {num_samples} samples ({num_samples / self.sample_rate:.3f} s at"
                f" {self.sample_rate} Hz) does not fit {self.config.model_type}, which takes"
                f" {least} to {most} samples; set audio_encoder.window_seconds and"
                f" audio_encoder.hop_seconds to at most {most / self.sample_rate:g}"
            )
        if num_samples % (step := self.family.step()):
            raise UserError(
                f"a window of {num_samples / self.sample_rate:g} s is no multiple of"
                f" {step / self.sample_rate:g} s, a frame of {self.config.model_type}; set"
                " audio_encoder.window_seconds and data.max_seconds to one"
            )
        return self.family.num_frames(num_samples)

    def log_mel(self, waveform: Tensor) -> Tensor:
        """Return the extractor's spectrogram (W, M, C) of waveform (W, S), without padding.

        For models that take the waveform itself it is one to look at. S is any length: longer than
        the model's window it is cut into parts, and a rest that is too short is left out.
        """
        if self.num_mel_bins:
            least, most = self.family.samples()
            parts = [part for part in waveform.split(most, dim=1) if part.shape[1] >= least]
            counts = [self.family.num_columns(part.shape[1]) for part in parts]
            mels = [
                self._features(part)[..., :count] for part, count in zip(parts, counts, strict=True)
            ]
            return torch.cat(mels, dim=2)
        with torch.autocast(waveform.device.type, enabled=False):
            window = torch.hann_window(400, device=waveform.device)
            spectrum = torch.stft(waveform.float(), 400, 160, window=window, return_complex=True)
            power = spectrum.abs().square()  # (W, 201, C)
            bank = torchaudio.functional.melscale_fbanks(
                201, 0.0, self.sample_rate / 2, PICTURE_MELS, self.sample_rate
            ).to(power.device)
            return (power.transpose(1, 2) @ bank).transpose(1, 2).clamp_min(1e-10).log10()

    @torch.no_grad()
    def _features(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the extractor's features of (W, S): (W, M, C) with padding, or (W, S)."""
        windows = list(waveform.detach().float().cpu().numpy())
        if lengths is not None and self.takes_lengths:
            windows = [own[:length] for own, length in zip(windows, lengths.tolist(), strict=True)]
        with torch.autocast(waveform.device.type, enabled=False):
            features = self.family.features(windows, waveform.device)
        return features.to(waveform.device, self.model.dtype)

    def forward(
        self,
        waveform: Tensor,
        augment: Callable[[Tensor], Tensor] | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        num_samples = waveform.shape[-1]
        if lengths is None:
            self.num_frames(num_samples)  # UserError for a window that is too short or too long
            lengths = torch.full(waveform.shape[:1], num_samples)
        if torch.compiler.is_exporting():
            features = self.family.graph_features(waveform, lengths)
        else:
            features = self._features(waveform, lengths)
        if augment is not None and self.num_mel_bins:
            num_columns = self.family.num_columns(num_samples)
            # CLAP repeats a short window: all columns are sound
            num_columns = features.shape[2] if self.takes_lengths else num_columns
            sound, padding = features.tensor_split([num_columns], dim=2)
            features = torch.cat([augment(sound), padding], dim=2)
        encoded = self.family.encode(self.model, features, lengths)
        return encoded[:, : self.family.num_frames(num_samples)]

    def load_official(self, name: str | Path) -> None:
        """Load the weights of a hub model or folder with this architecture.

        Raises UserError, and changes nothing, if they do not fit.
        """
        settings = loading(name, "audio encoder")
        try:
            config = _without_unused(AutoConfig.from_pretrained(str(name), **settings))
            auto = AutoModel
            if config.model_type == "pe_audio_video":
                config, settings = config.audio_config, settings | PE_AUDIO_OF_VIDEO
            if config.model_type == "clap_audio_model":  # not in AutoModel: the class it names
                auto = getattr(transformers, config.architectures[0])
            arguments = settings | {"dtype": torch.float32, "output_loading_info": True}
            source, report = auto.from_pretrained(str(name), config=config, **arguments)
        # OSError, ValueError, SafetensorError and others, for the same absence
        except Exception as error:
            raise unreachable("audio encoder", name, error) from None
        prefix = f"{self.family.part}." if hasattr(source, self.family.part or "?") else ""
        # transformers fills missing weights with random numbers: they are missing here, too
        state = {
            key.removeprefix(prefix): value
            for key, value in source.state_dict().items()
            if key.startswith(prefix) and key not in report["missing_keys"]
        }
        remedy = "download it again, or the model that config.json describes"
        load_strictly(self.model, state, name, f"this {self.config.model_type}", remedy)


def huggingface_arguments(name: str) -> dict[str, dict[str, Any]]:
    """Read the arguments of HuggingFaceAudioEncoder for a hub model or folder.

    Raises UserError if it is absent or of another kind.
    """
    settings = loading(name, "audio encoder")
    try:
        config = AutoConfig.from_pretrained(name, **settings)
        warn_of_code("audio encoder", name, config)
    except Exception as error:
        raise unreachable("audio encoder", name, error) from None
    for _ in range(HOLDERS.get(config.model_type, 0)):
        config = config.audio_config
    if config.model_type not in FAMILIES:
        raise UserError(
            f"audio encoder {name} is a {config.model_type}; audio_encoder.name=huggingface knows:"
            f" {', '.join(FAMILIES)}"
        )
    try:
        extractor = AutoFeatureExtractor.from_pretrained(name, **settings)
    except Exception as error:
        raise unreachable("audio encoder", name, error) from None
    for setting in ("sampling_rate", "hop_length"):  # some have no hop_length
        value = getattr(extractor, setting, 1)
        if not isinstance(value, int) or value < 1:
            raise UserError(
                f"audio encoder {name}: its preprocessor has {setting} {value!r}, expected 1 or"
                " more; copy it again"
            )
    return {
        "architecture": without_code(config.to_dict()),
        "feature_extractor": extractor.to_dict(),
    }


def _without_unused(config: PreTrainedConfig) -> PreTrainedConfig:
    config.update({name: value for name, value in NOT_USED.items() if hasattr(config, name)})
    return config


def _check_agreement(what: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise UserError(
            f"the audio encoder's preprocessor_config.json ({what} {found}) does not fit its"
            f" config.json ({expected}); copy both from the same model"
        )
