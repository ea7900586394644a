"""Audio encoders of the Hugging Face hub: Audio Spectrogram Transformer, CLAP, Whisper's encoder, WavLM and its kin.

Input features are those of the model's own feature extractor (preprocessor_config.json), computed by transformers on the CPU: right by
construction, and slower than a spectrogram on the GPU would be.

Letters: W windows, S samples, M mel bands, C columns, T frames, F = feature_dim.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchaudio.functional
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, ClapAudioModel, PreTrainedConfig, PreTrainedModel

from retrieval.errors import UserError, one_line
from retrieval.models.hub import local_files_only

# Random changes within the models, which the settings of the training know nothing of.
WITHOUT_AUGMENTATION = {"apply_spec_augment": False, "mask_time_prob": 0.0, "mask_feature_prob": 0.0, "layerdrop": 0.0, "encoder_layerdrop": 0.0}
PICTURE_MELS = 64  # of models that hear the waveform itself: a spectrogram to look at


class _SpectrogramTransformer:
    """AST: a grid of patches, frequency by time, after two tokens. A window is padded to the extractor's max_length columns."""

    num_mel_bins = staticmethod(lambda config: config.num_mel_bins)

    @staticmethod
    def build(config: PreTrainedConfig) -> PreTrainedModel:
        return AutoModel.from_config(config, dtype=torch.float32)

    load = staticmethod(AutoModel.from_pretrained)
    part = ""

    @staticmethod
    def samples(config: PreTrainedConfig, extractor: Any) -> tuple[int, int]:
        return 400, 400 + 160 * (extractor.max_length - 1)  # Kaldi's windows of 25 ms, 10 ms apart

    @staticmethod
    def num_frames(config: PreTrainedConfig, extractor: Any, num_samples: int) -> int:
        columns, total = 1 + (num_samples - 400) // 160, (config.max_length - config.patch_size) // config.time_stride + 1
        return min(-(-columns // config.time_stride), total)

    @staticmethod
    def features(extractor: Any, waveform: Any) -> Tensor:
        return extractor(list(waveform), sampling_rate=extractor.sampling_rate, return_tensors="pt")["input_values"].transpose(1, 2)

    @staticmethod
    def encode(model: PreTrainedModel, features: Tensor) -> Tensor:
        config = model.config
        num_rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        hidden = model(input_values=features.transpose(1, 2)).last_hidden_state[:, 2:]  # without class and distillation token
        return hidden.unflatten(1, (num_rows, -1)).mean(dim=1)


class _Clap:
    """CLAP's audio tower (HTSAT). It folds time into a square picture; its output is unfolded again, frequency by time.

    A window is padded with zeros to the extractor's 10 s: repeated sound, the other way of transformers, would not stay where it was.
    """

    num_mel_bins = staticmethod(lambda config: config.num_mel_bins)

    @staticmethod
    def build(config: PreTrainedConfig) -> PreTrainedModel:
        return ClapAudioModel._from_config(config, dtype=torch.float32)

    @staticmethod
    def load(name: str, **settings: Any) -> tuple[nn.Module, dict[str, Any]]:
        is_whole = AutoConfig.from_pretrained(name, local_files_only=settings["local_files_only"]).model_type == "clap"
        return (AutoModel if is_whole else ClapAudioModel).from_pretrained(name, **settings)

    part = "audio_model"

    @staticmethod
    def samples(config: PreTrainedConfig, extractor: Any) -> tuple[int, int]:
        return extractor.fft_window_size // 2 + 1, extractor.nb_max_samples

    @staticmethod
    def num_frames(config: PreTrainedConfig, extractor: Any, num_samples: int) -> int:
        stride = config.patch_stride[1] * 2 ** (len(config.depths) - 1)
        total = config.spec_size // config.num_mel_bins * (config.spec_size // stride)
        return -(-num_samples * total // extractor.nb_max_samples)

    @staticmethod
    def features(extractor: Any, waveform: Any) -> Tensor:
        settings = {"sampling_rate": extractor.sampling_rate, "padding": "pad", "return_tensors": "pt"}
        return extractor(list(waveform), **settings)["input_features"][:, 0].transpose(1, 2)

    @staticmethod
    def encode(model: PreTrainedModel, features: Tensor) -> Tensor:
        columns = features.transpose(1, 2).unsqueeze(1)  # (W, 1, C, M)
        fused = model.config.enable_fusion
        is_longer = torch.zeros(len(columns), 1, dtype=torch.bool, device=columns.device)  # no window exceeds the model's 10 s
        hidden = model(input_features=columns.expand(-1, 4 if fused else 1, -1, -1), is_longer=is_longer).last_hidden_state  # (W, F, rows, T)
        return hidden.mean(dim=2).transpose(1, 2)


class _Whisper:
    """Whisper's encoder hears 30 s, a window is padded to that; frames of the padding are cut off."""

    num_mel_bins = staticmethod(lambda config: config.num_mel_bins)

    @staticmethod
    def build(config: PreTrainedConfig) -> PreTrainedModel:
        return AutoModel.from_config(config, dtype=torch.float32).encoder

    load = staticmethod(AutoModel.from_pretrained)
    part = "encoder"

    @staticmethod
    def samples(config: PreTrainedConfig, extractor: Any) -> tuple[int, int]:
        return extractor.n_fft // 2 + 1, extractor.n_samples

    @staticmethod
    def num_frames(config: PreTrainedConfig, extractor: Any, num_samples: int) -> int:
        return -(-num_samples // (2 * extractor.hop_length))

    @staticmethod
    def features(extractor: Any, waveform: Any) -> Tensor:
        return extractor(list(waveform), sampling_rate=extractor.sampling_rate, return_tensors="pt")["input_features"]

    @staticmethod
    def encode(model: PreTrainedModel, features: Tensor) -> Tensor:
        return model(features).last_hidden_state


class _Waveform:
    """Convolutions over the waveform, 20 ms a frame: WavLM, wav2vec 2.0, HuBERT."""

    num_mel_bins = staticmethod(lambda config: 0)

    @staticmethod
    def build(config: PreTrainedConfig) -> PreTrainedModel:
        return AutoModel.from_config(config, dtype=torch.float32)

    load = staticmethod(AutoModel.from_pretrained)
    part = ""

    @staticmethod
    def samples(config: PreTrainedConfig, extractor: Any) -> tuple[int, int]:
        return 400, 600 * extractor.sampling_rate  # of the convolutions; beyond 10 min memory is the limit

    @staticmethod
    def num_frames(config: PreTrainedConfig, extractor: Any, num_samples: int) -> int:
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            num_samples = (num_samples - kernel) // stride + 1
        return num_samples

    @staticmethod
    def features(extractor: Any, waveform: Any) -> Tensor:
        return extractor(list(waveform), sampling_rate=extractor.sampling_rate, return_tensors="pt")["input_values"]

    @staticmethod
    def encode(model: PreTrainedModel, features: Tensor) -> Tensor:
        return model(features).last_hidden_state


FAMILIES = {
    "audio-spectrogram-transformer": _SpectrogramTransformer,
    "clap_audio_model": _Clap,
    "whisper": _Whisper,
    "wavlm": _Waveform,
    "wav2vec2": _Waveform,
    "hubert": _Waveform,
}


class HuggingFaceAudioEncoder(nn.Module):
    """architecture: the model's config.json; feature_extractor: its preprocessor_config.json; see `huggingface_arguments`.

    Frames are in time order, frequency is averaged over. Batch normalisation keeps its statistics in training, too (as in EfficientAt).
    """

    def __init__(self, architecture: dict[str, Any], feature_extractor: dict[str, Any]):
        super().__init__()
        self.family = FAMILIES[architecture["model_type"]]
        config = AutoConfig.for_model(**architecture)
        config.update({name: value for name, value in WITHOUT_AUGMENTATION.items() if hasattr(config, name)})
        self.config = config
        self.extractor = getattr(transformers, feature_extractor["feature_extractor_type"]).from_dict(feature_extractor)
        try:
            self.model = self.family.build(config)
        except (ValueError, TypeError, ZeroDivisionError) as error:
            raise UserError(f"the audio encoder's config.json describes no model ({one_line(error)}); copy it again") from None
        for name, parameter in self.model.named_parameters():
            if ".fusion_model." in name or ".mel_conv2d." in name:  # CLAP's way to hear more than 10 s, which no window is
                parameter.requires_grad_(False)
        self.sample_rate: int = self.extractor.sampling_rate  # Hz
        self.num_mel_bins: int = self.family.num_mel_bins(config)
        self.feature_dim: int = config.hidden_size

    def train(self, mode: bool = True) -> "HuggingFaceAudioEncoder":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def num_frames(self, num_samples: int) -> int:
        """T of a window of `num_samples`. Raises UserError for windows that are too short or longer than the model hears."""
        least, most = self.family.samples(self.config, self.extractor)
        if not least <= num_samples <= most:
            raise UserError(
                f"a window of {num_samples} samples ({num_samples / self.sample_rate:.3f} s at {self.sample_rate} Hz) does not fit "
                f"{self.config.model_type}, which takes {least} to {most} samples; "
                f"set audio_encoder.window_seconds (and data.max_seconds, which bounds it) to at most {most / self.sample_rate:g}"
            )
        return self.family.num_frames(self.config, self.extractor, num_samples)

    def log_mel(self, waveform: Tensor) -> Tensor:
        """The extractor's spectrogram (W, M, C), for models that hear the waveform itself one to look at. waveform (W, S)."""
        if self.num_mel_bins:
            return self._features(waveform)
        with torch.autocast(waveform.device.type, enabled=False):
            window = torch.hann_window(400, device=waveform.device)
            power = torch.stft(waveform.float(), 400, 160, window=window, return_complex=True).abs().square()  # (W, 201, C)
            bank = torchaudio.functional.melscale_fbanks(201, 0.0, self.sample_rate / 2, PICTURE_MELS, self.sample_rate).to(power.device)
            return (power.transpose(1, 2) @ bank).transpose(1, 2).clamp_min(1e-10).log10()

    @torch.no_grad()
    def _features(self, waveform: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.family.features(self.extractor, waveform.float().cpu().numpy()).to(waveform.device, torch.float32)

    def forward(self, waveform: Tensor, augment: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """waveform (W, S) at sample_rate in [-1, 1] -> (W, num_frames(S), F). augment: of the spectrogram, shape kept."""
        num_frames = self.num_frames(waveform.shape[-1])
        features = self._features(waveform)
        return self.family.encode(self.model, features if augment is None else augment(features))[:, :num_frames]

    def load_official(self, name: str | Path) -> None:
        """Weights of hub model or folder `name`, which must have this architecture. Raises UserError, and changes nothing, where they do not fit."""
        settings = {"dtype": torch.float32, "local_files_only": local_files_only(name), "output_loading_info": True}
        try:
            source, report = self.family.load(str(name), **settings)
        except Exception as error:  # OSError, ValueError, SafetensorError and others for one and the same absence
            raise _unreachable(name, error) from None
        prefix = f"{self.family.part}." if hasattr(source, self.family.part or "?") else ""
        state = (source.get_submodule(self.family.part) if prefix else source).state_dict()
        own = self.model.state_dict()
        absent = [key for key in own if key not in state or f"{prefix}{key}" in report["missing_keys"]]
        wrong = [key for key in own if key in state and state[key].shape != own[key].shape]
        if absent or wrong:
            what = f"lacks {len(absent)} weights, first: {absent[0]}" if absent else f"has another size, first: {wrong[0]}"
            raise UserError(f"audio encoder {name} {what}; download it again")
        self.model.load_state_dict({key: state[key] for key in own})


def huggingface_arguments(name: str) -> dict[str, dict[str, Any]]:
    """Arguments of HuggingFaceAudioEncoder for hub model or folder `name`. Raises UserError for one that is absent or of another kind."""
    settings = {"local_files_only": local_files_only(name)}
    try:
        config = AutoConfig.from_pretrained(name, **settings)
    except Exception as error:
        raise _unreachable(name, error) from None
    config = config.audio_config if config.model_type == "clap" else config
    if config.model_type not in FAMILIES:
        raise UserError(f"audio encoder {name} is a {config.model_type}; audio_encoder.name=huggingface knows: {', '.join(FAMILIES)}")
    try:
        extractor = AutoFeatureExtractor.from_pretrained(name, **settings)
    except Exception as error:
        raise _unreachable(name, error) from None
    return {"architecture": config.to_dict(), "feature_extractor": extractor.to_dict()}


def _unreachable(name: str | Path, error: Exception) -> UserError:
    reason = one_line(error, longest=160)
    if Path(name).is_dir():
        files = "config.json, preprocessor_config.json and model.safetensors"
        return UserError(f"audio encoder folder {name} cannot be loaded ({reason}); it needs {files}")
    return UserError(
        f"audio encoder {str(name)!r} is no folder here and the Hugging Face hub did not give it ({reason}); download it where there is "
        f"internet (hf download {name} --local-dir weights/{Path(name).name}) and set audio_encoder.checkpoint=weights/{Path(name).name}"
    )
