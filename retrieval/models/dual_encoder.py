"""DualEncoder: audio and text in one space, compared by cosine; the model everything else uses.

Letters: B clips, S samples, W windows, M windows with valid frames, T frames, N captions, D = dim.
"""

import inspect
import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, snapshot_download
from safetensors import safe_open
from torch import nn

from retrieval.base.access import check_readable
from retrieval.base.errors import UserError, one_line
from retrieval.base.files import read_json
from retrieval.models.audio import AUDIO_ENCODERS
from retrieval.models.audio.encoder import AudioEncoder
from retrieval.models.card import about_json, model_card
from retrieval.models.hub import OUT_OF_REACH, explained_upload, hub_answers, local_files_only
from retrieval.models.lora import Lora, check_bases, load_adapters, saved_apart, saved_state
from retrieval.models.moment_head import MomentHead
from retrieval.models.pooling import (
    AveragePooling,
    MeanPooling,
    Pooling,
    TextAwareAttentionPooling,
)
from retrieval.models.pretrained.tensor_files import MOST_SHARING
from retrieval.models.projection import make_projection
from retrieval.models.record import ABOUT, TrainingRecord, read_record
from retrieval.models.text import TextEncoder, load_tokenizer
from retrieval.models.transformer_pooling import TransformerPooling
from retrieval.models.weights import own_memory, read_weights, write_state
from retrieval.models.windows import WindowGrid, resample, resampled

WEIGHTS = "model.safetensors"
Autocast = Callable[[], AbstractContextManager]


class CaptionFeatures(Protocol):
    """Precomputed text-encoder outputs by caption; see retrieval.models.frame_cache."""

    def __contains__(self, caption: str) -> bool: ...

    def __call__(self, captions: list[str]) -> torch.Tensor: ...  # float32 (N, feature_dim)


POOLINGS: dict[str, type[Pooling]] = {
    "mean": MeanPooling,
    "tap": TextAwareAttentionPooling,
    "transformer": TransformerPooling,
    "average": AveragePooling,
}


class DualEncoder(nn.Module, PyTorchModelHubMixin):
    """Audio encoder, text encoder, two projections and a pooling.

    The arguments are the content of a saved model's config.json. Text can be encoded after
    text_encoder.tokenizer is set, as build_model and from_pretrained do.

    Args:
        audio_encoder: "name", a key of AUDIO_ENCODERS, and the arguments of its constructor.
        text_encoder: A Hugging Face config.
        pooling: "name", a key of POOLINGS, and the arguments of its constructor.
        dim: Size of the shared space.
        sample_rate: Of the waveforms that encode_audio takes, in Hz.
        clip_seconds: Longest clip.
        window_seconds: Length of a window, which the audio encoder takes at once.
        hop_seconds: Time between the starts of windows.
        max_tokens: Longer captions are cut; None: as many as the text encoder has positions.
        temperature: Start value; scores are divided by it in losses.
        learnable_temperature: True lets training change it.
        text_readout: "first", "mean" or "last" token, or "pooled".
        loss_parameters: Start values of other learnable parameters of the loss, by name.
        projection: "name", a key of PROJECTIONS, and the arguments of its constructor, for both
            sides; None: linear.
        text_as_written: Keep the captions' capitals and punctuation.
        moment_head: Arguments of MomentHead but its sizes; None: the model has none.

    Raises:
        UserError: Arguments do not fit together.
    """

    def __init__(
        self,
        audio_encoder: dict[str, Any],
        text_encoder: dict[str, Any],
        pooling: dict[str, Any],
        dim: int,
        sample_rate: int,
        clip_seconds: float,
        window_seconds: float,
        hop_seconds: float,
        max_tokens: int | None,
        temperature: float,
        learnable_temperature: bool = False,
        text_readout: str = "first",
        loss_parameters: dict[str, float] | None = None,
        projection: dict[str, Any] | None = None,
        text_as_written: bool = False,
        moment_head: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.record = TrainingRecord()  # how the model was made, for its card
        self.frozen: list[str] = []
        self.adapters: dict[str, Lora] = {}  # by encoder, while it is trained with LoRA
        # retrieval.models.mel_augmentation, in training only
        self.augment_mel: Callable[[torch.Tensor], torch.Tensor] | None = None
        self.caption_features: CaptionFeatures | None = None  # of a frozen text encoder
        self.clip_seconds = clip_seconds
        arguments = dict(audio_encoder)
        self.audio_encoder: AudioEncoder = AUDIO_ENCODERS[arguments.pop("name")](**arguments)
        self.text_encoder = TextEncoder(text_encoder, max_tokens, text_readout, text_as_written)
        self.dim = dim
        kind = projection or {"name": "linear"}
        self.audio_projection = make_projection(self.audio_encoder.feature_dim, dim, **kind)
        self.text_projection = make_projection(self.text_encoder.feature_dim, dim, **kind)
        self.temperature = nn.Parameter(
            torch.tensor(temperature), requires_grad=learnable_temperature
        )
        starts = (loss_parameters or {}).items()
        self.loss_parameters = nn.ParameterDict(
            {name: nn.Parameter(torch.tensor(start)) for name, start in starts}
        )
        self._window_seconds = min(window_seconds, clip_seconds), hop_seconds
        self.hear_at(sample_rate)
        settings = dict(pooling)
        name = settings.pop("name")
        if name not in POOLINGS:
            raise UserError(
                f"pooling {name!r} of the model's config.json is unknown; there is:"
                f" {', '.join(POOLINGS)}"
            )
        sizes = {
            "dim": dim,
            "feature_dim": self.audio_encoder.feature_dim,
            "max_frames": self.windows.num_frames,
        }
        taken = sizes.keys() & inspect.signature(POOLINGS[name]).parameters.keys()
        self.pooling: Pooling = POOLINGS[name](**{key: sizes[key] for key in taken}, **settings)
        self.moment_head: MomentHead | None = None
        if moment_head is not None:
            self.moment_head = MomentHead(
                dim, self.pooling.num_evidence, self.frame_seconds, **moment_head
            )
        own_memory(self)

    @property
    def architecture(self) -> dict[str, Any]:
        """The arguments that the model was built with, config.json of a saved one."""
        return dict(self._hub_mixin_config)

    @property
    def frame_seconds(self) -> float:
        """Length of a frame in seconds."""
        return self.windows.frame_samples / self.sample_rate

    def hear_at(self, sample_rate: int) -> None:
        """Take waveforms at `sample_rate` Hz from now on; they are resampled for the encoder."""
        window_seconds, hop_seconds = self._window_seconds
        self.sample_rate = sample_rate
        self._hub_mixin_config["sample_rate"] = sample_rate
        window_samples = round(window_seconds * sample_rate)
        self.windows = WindowGrid(
            clip_samples=round(self.clip_seconds * sample_rate),
            window_samples=window_samples,
            hop_samples=round(hop_seconds * sample_rate),
            frames_per_window=self.audio_encoder.num_frames(self._resampled(window_samples)),
            nearest=self.audio_encoder.rounds_frames,
        )

    def freeze(self, part: str) -> None:
        """Freeze "audio_encoder" or "text_encoder": no gradient, and eval mode also in training."""
        self.frozen.append(part)
        getattr(self, part).requires_grad_(False).eval()

    def checkpoint_activations(self) -> None:
        """Keep only the inputs of the encoders' blocks for the backward pass.

        The backward pass computes the rest again, with the same dropout.
        """
        self.audio_encoder.checkpoint_activations()
        self.text_encoder.checkpoint_activations()

    def compile_blocks(self) -> None:
        """Call torch.compile for the repeated blocks of both encoders; dropout draws other numbers.

        Blocks that are all alike need one compilation.
        """
        self.audio_encoder.compile_blocks()
        self.text_encoder.compile_blocks()

    def train(self, mode: bool = True) -> "DualEncoder":
        if mode:
            self.record = TrainingRecord()  # training changes the model that the record describes
        super().train(mode)
        for part in self.frozen:
            getattr(self, part).eval()
        return self

    def _resampled(self, num_samples: Any) -> Any:
        """Return the samples at the audio encoder's rate, of a number or a tensor of numbers."""
        return resampled(num_samples, self.sample_rate, self.audio_encoder.sample_rate)

    def encode_audio(
        self, waveform: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode clips into the shared space.

        Args:
            waveform: (B, S) at `sample_rate`, float32 in [-1, 1] or PCM as int16.
            lengths: Valid samples of each clip, int64 (B,), best left on the CPU.

        Returns:
            Frames (B, T, D), not normalised, and mask bool (B, T), True = valid. T is 1 if the
            pooling keeps no frames.

        Raises:
            ValueError: A clip is empty or longer than clip_seconds.
        """
        return self._pool_and_project(*self.audio_features(waveform, lengths))

    def encode_frames(
        self, features: torch.Tensor, num_frames: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode clips as `encode_audio` does, but from the frames of `audio_features`.

        Args:
            features: (B, T, feature_dim), padded at the end.
            num_frames: Valid frames of each clip, int64 (B,).
        """
        return self._pool_and_project(features, _valid_first(features, num_frames))

    def _pool_and_project(
        self, features: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        pooling = self.pooling
        if pooling.keeps_frames:
            return self.audio_projection(features), mask
        if pooling.pools_projected:
            return pooling(self.audio_projection(features), mask).unsqueeze(1), mask[:, :1]
        return self.audio_projection(pooling(features, mask).unsqueeze(1)), mask[:, :1]

    def frame_vectors(
        self, waveform: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode every frame into the shared space, whatever the pooling.

        With TAP they are those of `encode_audio`. Arguments and errors are those of `encode_audio`.

        Returns:
            Frames (B, T, D), not normalised, and mask bool (B, T), True = valid.
        """
        features, mask = self.audio_features(waveform, lengths)
        return self.audio_projection(features), mask

    def audio_features(
        self, waveform: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the audio encoder's frames (B, T, feature_dim) and their mask (B, T).

        Arguments and errors are those of `encode_audio`. Windows without valid frames are not
        encoded: they would be masked out.
        """
        grid = self.windows
        lengths = lengths.cpu()
        if lengths.min() < 1 or lengths.max() > grid.clip_samples:
            raise ValueError(
                f"lengths must be 1 to {grid.clip_samples} samples ({self.clip_seconds} s), found"
                f" {lengths.min()} to {lengths.max()}"
            )
        num_valid = grid.num_valid_frames(lengths)  # (B,)
        num_windows = -(-num_valid // grid.frames_per_window)  # (B,)
        most = int(num_windows.max())
        used = torch.arange(most) < num_windows[:, None]  # (B, W)
        index = used.flatten().nonzero().squeeze(1).to(waveform.device)  # (M,)
        windows = grid.split(waveform, most).flatten(0, 1)[index]  # (M, window_samples)
        if windows.dtype == torch.int16:
            windows = windows.to(self.temperature.dtype).div_(32768)
        if self.sample_rate != self.audio_encoder.sample_rate:
            # window by window, so that no window contains its neighbours through the filter
            windows = resample(windows, self.sample_rate, self.audio_encoder.sample_rate)
        augment = self.augment_mel if self.training else None
        if self.audio_encoder.takes_lengths:
            valid = self._resampled(grid.window_lengths(lengths, most).flatten()[index.cpu()])
            encoded = self.audio_encoder(windows[:, : int(valid.max())], augment, valid)
        else:
            encoded = self.audio_encoder(windows, augment)  # (M, frames_per_window, feature_dim)
        features = encoded.new_zeros(used.numel(), *encoded.shape[1:]).index_copy(0, index, encoded)
        features = features.view(len(lengths), -1, encoded.shape[-1])  # (B, T, feature_dim)
        mask = (torch.arange(features.shape[1]) < num_valid[:, None]).to(waveform.device)  # (B, T)
        return features, mask

    def encode_text(self, captions: list[str]) -> torch.Tensor:
        """Encode N captions into the shared space: (N, D), not normalised."""
        known = self.caption_features
        if known is None or not all(caption in known for caption in captions):
            return self.text_projection(self.text_encoder(captions))
        return self.text_projection(known(captions).to(self.temperature.device))

    def score(self, text: torch.Tensor, frames: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Compare each text with each clip.

        Args:
            text: (N, D), of encode_text.
            frames: (B, T, D), of encode_audio.
            mask: bool (B, T), of encode_audio.

        Returns:
            Cosine similarities float32 (N, B): rows are texts, columns audios.
        """
        return self.pooling.score(text, frames, mask)

    def attention(
        self, text: torch.Tensor, frames: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor | None:
        """Return the attention weights float32 (N, B, T) of texts on frames; rows sum to 1.

        Arguments as in `score`. None if the pooling does not look at the text.
        """
        return self.pooling.attention(text, frames, mask)

    def moment_logits(
        self, text: torch.Tensor, frames: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Return the moment head's logits float32 (P, T) of pairs: whether a text is heard.

        Args:
            text: (P, D), of encode_text.
            frames: (P, T, D), of frame_vectors; or (1, T, D) for one clip with all texts.
            mask: bool (P, T) or (1, T), True = valid.
        """
        return self.moment_logits_of_keys(text, self.pooling.keys(frames), mask)

    def moment_logits_of_keys(
        self, text: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Return `moment_logits` of pooling.keys(frames), which an index keeps, for the frames."""
        if len(keys) == 1:
            evidence = self.pooling.evidence(text, keys, mask)[:, 0]  # (P, T, E)
        else:  # each text with its own clip: all pairs would cost P times as much
            evidence = self.pooling.evidence(text[:, None], keys, mask)[0]
        keys, mask = keys.expand(len(text), -1, -1), mask.expand(len(text), -1)
        return self.moment_head(text, keys, mask, evidence)

    def forward(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Encode the share that one process has of a batch, before texts are exchanged.

        Args:
            batch: Of retrieval.data.collate_pairs, on any device: "captions", a list of N;
                "lengths", int64 (B,); and "waveform" (B, S), or "frames" (B, T, feature_dim) of a
                frame cache. With "windows", of collate_moments, frames are those of frame_vectors.

        Returns:
            Texts (N, D), frames (B, T, D) and mask (B, T), as encode_text and encode_audio.
        """
        device = self.temperature.device
        if "frames" in batch:
            features = batch["frames"].to(device, non_blocking=True)
            mask = _valid_first(features, batch["lengths"])
        else:
            waveform = batch["waveform"].to(device, non_blocking=True)
            features, mask = self.audio_features(waveform, batch["lengths"])
        if "windows" in batch:  # moments need every frame, whatever the pooling
            frames = self.audio_projection(features)
        else:
            frames, mask = self._pool_and_project(features, mask)
        return self.encode_text(batch["captions"]), frames, mask

    def _save_pretrained(self, save_directory: Path) -> None:
        write_state(saved_state(self, self.adapters, save_directory), save_directory / WEIGHTS)
        self.text_encoder.tokenizer.save_pretrained(str(save_directory / "tokenizer"))
        if self.record != TrainingRecord():
            text = about_json(self.architecture, self.record)
            (save_directory / ABOUT).write_text(text, encoding="utf-8")

    def generate_model_card(self, *_args: Any, **_kwargs: Any) -> ModelCard:
        return model_card(self.architecture, self.record)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload weights, tokenizer and model card to the Hugging Face hub.

        Args:
            repo_id: user/name.
            **kwargs: As in huggingface_hub, such as private=True.

        Raises:
            UserError: The hub refuses it or is out of reach.
        """
        with explained_upload(repo_id, kwargs.get("token")):
            return super().push_to_hub(repo_id, **kwargs)

    @classmethod
    def from_pretrained(cls, directory_or_hub_id: str | Path, **kwargs: Any) -> "DualEncoder":
        """Load a saved model, in eval mode.

        Args:
            directory_or_hub_id: Folder that training or save_pretrained wrote, or user/name on
                the Hugging Face hub.
            **kwargs: As in huggingface_hub, such as revision.

        Raises:
            UserError: The model is absent, damaged or of another architecture.
        """
        name = str(directory_or_hub_id)
        check_readable(name, "checkpoint")
        check_readable(Path(name, "tokenizer"), "checkpoint")
        if os.path.isdir(name):
            check_folder(Path(name))
        try:
            return super().from_pretrained(
                name, **{"local_files_only": local_files_only(name)} | kwargs
            )
        except UserError:
            raise
        # safetensors, torch, huggingface_hub and transformers each raise their own kinds
        except Exception as error:
            reason = one_line(error, longest=300)
            if os.path.isdir(name):
                advice = "it is damaged or of another architecture; train or copy it again"
                raise UserError(f"checkpoint {name} does not load ({reason}): {advice}") from None
            reason = reason if hub_answers() else OUT_OF_REACH
            raise UserError(
                f"checkpoint {name} is not a folder here and the Hugging Face hub did not give it"
                f" ({reason})"
            ) from None

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **architecture: Any,
    ) -> "DualEncoder":
        if not os.path.isdir(model_id):
            model_id = snapshot_download(
                model_id,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
        check_bases(Path(model_id), architecture)
        apart = saved_apart(Path(model_id))
        check_size(architecture, [Path(model_id) / WEIGHTS], apart)
        model = cls(**architecture)
        model.text_encoder.tokenizer = load_tokenizer(Path(model_id) / "tokenizer")
        model.record = read_record(Path(model_id))
        read_weights(model, Path(model_id) / WEIGHTS, apart)
        load_adapters(model, Path(model_id))
        return model.eval()


def _valid_first(features: torch.Tensor, num_frames: torch.Tensor) -> torch.Tensor:
    """Return the mask bool (B, T) of features (B, T, F), of which num_frames (B,) are valid."""
    places = torch.arange(features.shape[1], device=features.device)
    return places < num_frames.to(features.device)[:, None]


def check_size(
    architecture: dict[str, Any], weights: Sequence[Path], apart: Collection[str] = ()
) -> None:
    """Refuse a config.json that needs far more memory than its weights, before building the model.

    Args:
        architecture: Arguments of DualEncoder.
        weights: Its safetensors files.
        apart: Encoders whose weights are elsewhere (retrieval.models.lora).

    Raises:
        ValueError: It has more layers than there are tensors, or more than MOST_SHARING times their
            numbers.
        Exception: Of any kind, for damaged weights.
    """
    shapes, holder = [], weights[0].name
    for path in weights:
        with safe_open(path, "pt") as file:
            names = file.keys()
            shapes += [file.get_slice(name).get_shape() for name in names]
    if (layers := _most_layers(architecture)) > max(len(shapes), 100):
        raise ValueError(
            f"its config.json describes {layers:.3g} layers, {holder} holds {len(shapes)} tensors"
        )
    try:
        with torch.device("meta"):  # shapes cost nothing there
            planned = DualEncoder(**architecture)
    # Encoders that compute while they are built; other errors come again with the model itself.
    except Exception:
        return
    state = planned.state_dict()
    needed = sum(state[name].numel() for name in state if name.split(".")[0] not in apart)
    stored = sum(map(math.prod, shapes))
    if needed > MOST_SHARING * stored:
        raise ValueError(
            f"its config.json describes {needed:.3g} numbers, {holder} holds {stored:.3g}"
        )


def _most_layers(value: Any, name: str = "") -> int:
    """Return the largest number of layers that nested settings name."""
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else ((name, item) for item in value)
        return max((_most_layers(item, str(key)) for key, item in items), default=0)
    return value if type(value) is int and re.search("(layers?|depths?|blocks)$", name) else 0


@contextmanager
def eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Keep all modules in eval mode within the block, then restore the training mode of each."""
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in was_training:
            module.training = True


def check_not_nan(scores: torch.Tensor, place: str = "") -> None:
    """Raise UserError if a score is NaN; `place`, with a leading blank, follows "scores"."""
    num_nan = int(scores.isnan().sum())
    if num_nan:
        raise UserError(
            f"{num_nan} of {scores.numel()} scores{place} are NaN: the weights or stored frames are"
            " not finite, or overflow in this precision; take an earlier checkpoint, another mixed"
            " precision or float32 frames"
        )


def check_finite(model: nn.Module, owner: str, remedy: str) -> None:
    """Raise UserError if a weight is not finite.

    The message says that the weight is one of `owner`; `remedy` is a verb such as "export".
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError(
                f"weight {name} of {owner} is not finite (NaN or infinite): {remedy} an earlier"
                " checkpoint"
            )


def check_folder(directory: Path) -> None:
    """Raise UserError if `directory` holds no saved model."""
    for file in ("config.json", WEIGHTS, "tokenizer"):
        if file == WEIGHTS:
            _check_config(directory)
        if not (directory / file).exists():
            inside = [
                f"{directory}/{name}"
                for name in ("best", "last")
                if (directory / name / "config.json").exists()
            ]
            hint = (
                f"did you mean {' or '.join(inside)}?"
                if inside
                else "train.py writes model folders as RUN/best and RUN/last; in Python, models of"
                " transformers are loaded by retrieval.models.pretrained.load_pretrained"
            )
            raise UserError(f"checkpoint {directory} has no {file}; {hint}")


def _check_config(directory: Path) -> None:
    try:
        missing = {"audio_encoder", "text_encoder", "pooling"} - set(
            read_json(directory / "config.json")
        )
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{directory / 'config.json'} cannot be read ({error}); train or copy the checkpoint"
            " again"
        ) from None
    if missing:
        raise UserError(
            f"checkpoint {directory} is of another architecture: its config.json has no"
            f" {', '.join(sorted(missing))}"
        )
