"""Load PyTorch Lightning checkpoints (.ckpt) of salsa, and of the thesis based on it.

A file holds weights by name, and hyper-parameters whose names differ between files. So the shapes
of the weights decide first. Settings without influence on shapes come from the hyper-parameters in
SETTINGS, otherwise from the recipe of the published runs.
"""

import logging
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedTokenizerBase

from retrieval.base.errors import UserError, one_line
from retrieval.models.audio import AUDIO_ENCODERS
from retrieval.models.audio.official import first_names
from retrieval.models.audio.passt import VARIANTS
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.pretrained.lightning import read_lightning
from retrieval.models.pretrained.tensor_files import StoredTensor, read_tensors
from retrieval.models.text import KNOWN_ARCHITECTURES, architecture_of, load_tokenizer

logger = logging.getLogger(__name__)

TEXT_ENCODER = "roberta-large"  # all sizes of RoBERTa have the same tokenizer
TEXT_DROPOUT = 0.2  # of the recipe; no effect on scores
HEAD_SIZE = 64  # of an attention head in all published RoBERTa, ATST-Frame and PaSST; not in shapes

# Our prefixes of weight names -> those of the file. ANCHORS find the prefixes of the encoders.
AUDIO, TEXT = "audio_embedding_model.", "sentence_embedding_model."
NAMES = {"audio_projection.": "project_audio.0.", "text_projection.": "project_sentence.0."}
NAMES |= {
    f"pooling.{ours}.": f"text_aware_pooling.{theirs}."
    for ours, theirs in {
        "query": "w_q",
        "key": "w_k",
        "value": "w_v",
        "output": "w_0",
        "norm": "layer_norm",
    }.items()
}
# A weight that only this kind of encoder has; the part of its name before it is the prefix.
ANCHORS = {
    "atst": "patch_embed.patch_embed.weight",
    "passt": "patch_embed.proj.weight",
    "efficientat": "features.0.0.weight",
}
TEXT_ANCHOR = "embeddings.word_embeddings.weight"
TAP_ANCHOR = "text_aware_pooling.w_q.weight"

IGNORED = (  # beside the weights of the model
    # of the spectrogram, which is computed here
    r"audio_embedding_model\..*\b(window|fb|mel_basis|preemphasis_coefficient|resampler\.kernel)$",
    r"audio_embedding_model\..*\b(teacher_module|student)\.",  # of ATST's own training
    # of ATST's clip encoder; PaSST's are weights of the model
    r"audio_embedding_model\..*\b(cls_token|norm\.(weight|bias))$",
    r"sentence_embedding_model\..*\b(pooler\..*|lm_head\..*|position_ids|token_type_ids)$",
    # Of the small transformer over the frames. They exist also without layers; its layers are not
    # ignored.
    r"(audio_token|posencode\..*|audio_output_projection\.(weight|bias))$",
    r"(timing_tau|sigmoid_loss\.[tb]|sentence_transformer\..*)$",  # of losses
)
# Scores do not depend on them: zeros if the file lacks them.
OPTIONAL = r"audio_encoder\.(head|head_dist|classifier|mask_embed)\b"

# Trusted names of hyper-parameters, searched at any depth. A value out of bounds belongs to another
# setting of that name.
SETTINGS = {
    "window_seconds": ("segment_length", "window_seconds"),
    # a spectrogram's hop_length, in samples, exceeds a window in seconds: out of bounds
    "hop_seconds": ("segment_hop", "hop_size", "hop_length", "hop_seconds"),
    "clip_seconds": ("max_audio_length", "audio_max_length", "max_seconds"),
    "max_tokens": ("max_tokens", "max_sentence_tokens", "max_text_length"),
    "sequence": ("return_sequence", "sequence"),
    # with its section: the audio has a setting of that name, too
    "use_first_token": ("sentence_features.use_first_token",),
    "tau": ("tau", "temperature", "initial_tau"),
}
# Settings that change scores and have no counterpart here: supported value, meaning of others.
REQUIRED: dict[str, tuple[Any, str]] = {
    "normalize": (True, "its scores are not cosines"),
    "sentence_features.remove_punctuation": (True, "its captions keep their punctuation"),
}
RECIPE = {"window_seconds": 10.0, "clip_seconds": 30.0, "max_tokens": 32, "tau": 0.05}
SAMPLE_RATE = 32_000  # Hz
SHORTEST_HOP = 0.1  # s; 10 or 20 ms is the hop of a spectrogram
MOST_LAYERS = 200  # of an encoder; the largest published one has 24


def load_salsa_checkpoint(path: str | Path, tokenizer: str | Path | None = None) -> DualEncoder:
    """Load a Lightning checkpoint of salsa or the thesis.

    It has PaSST, EfficientAT or ATST-Frame, a RoBERTa, and mean pooling or TAP. A warning names
    every setting that the file lacks, with the default used. Another one says if the original cuts
    clips into fewer windows.

    Args:
        path: The .ckpt file. No code in it is run.
        tokenizer: Hub model or folder, since the file holds no tokenizer; None: roberta-large.

    Returns:
        The model in eval mode.

    Raises:
        UserError: The file is damaged or no such checkpoint. The message names missing and
            additional weights, with shapes.
    """
    path = Path(path)
    weights, hyper_parameters = read_lightning(path)
    settings = _Settings(hyper_parameters)
    shapes = {key: tensor.shape for key, tensor in weights.items()}
    try:
        temperature = _temperature(path, weights, settings)
        architecture, prefixes = _architecture(shapes, settings)
        fast = _tokenizer(tokenizer, architecture["text_encoder"]["vocab_size"])
        with torch.device("meta"):  # no memory is used: a file could claim any size
            planned = DualEncoder(**architecture, temperature=temperature)
        state = _state(path, planned, weights, prefixes)
        model = DualEncoder(**architecture, temperature=temperature)
        model.load_state_dict(state | {"temperature": model.temperature.detach()})
    except UserError as error:
        raise UserError(f"checkpoint {path}: {error}") from None
    model.text_encoder.tokenizer = fast
    if settings.assumed:
        logger.warning(
            "%s: settings that the file lacks or gives out of bounds, with the values of the"
            " published runs used instead: %s",
            path,
            ", ".join(settings.assumed),
        )
    grid = model.windows
    num_original = 1 + (grid.clip_samples - grid.window_samples) // grid.hop_samples
    if grid.num_windows > num_original:
        logger.warning(
            "%s: windows of %g s, one every %g s, do not fill clips of %g s (%d windows here, the"
            " last padded with silence; %d in the original, which ignores the rest): scores are not"
            " those of the original",
            path,
            *(architecture[f"{name}_seconds"] for name in ("window", "hop", "clip")),
            grid.num_windows,
            num_original,
        )
    return model.eval()


class _Settings:
    """Hyper-parameters of a file; `assumed` lists the missing ones with the defaults used."""

    def __init__(self, found: dict[str, Any]):
        self.found = found
        self.assumed: list[str] = []

    def get(self, name: str, is_plausible: Callable[[Any], bool], default: Any) -> Any:
        """Return the first plausible value of the names in SETTINGS, otherwise `default`."""
        given = {other: self.found[other] for other in SETTINGS[name] if other in self.found}
        plausible = [value for value in given.values() if is_plausible(value)]
        if plausible:
            return plausible[0]
        refused = "".join(f" (not {other}={value!r:.40})" for other, value in given.items())
        self.assumed.append(f"{name}={default}{refused}")
        return default

    def check_required(self, required: dict[str, tuple[Any, str]]) -> None:
        """Raise UserError if a setting has another value than the required one."""
        for name, (value, meaning) in required.items():
            if name not in self.found:
                self.assumed.append(f"{name}={value}")
            elif self.found[name] != value:
                raise UserError(
                    f"its hyper-parameters say {name}: {self.found[name]!r:.40}, so {meaning},"
                    " which this project does not compute"
                )


# --- the architecture ---


def _architecture(
    shapes: dict[str, tuple], settings: _Settings
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the arguments of DualEncoder without temperature, and our prefixes -> the file's.

    Raises UserError.
    """
    text_prefixes = _prefixes(shapes, TEXT, TEXT_ANCHOR)
    text_prefix = _only(text_prefixes, f"text encoder: keys {TEXT}*{TEXT_ANCHOR}")
    is_tap = TAP_ANCHOR in shapes
    meaning = "it pools audio frames in another way than its weights say"
    aggregate = {"audio_features.aggregate": ("TAP" if is_tap else "mean", meaning)}
    settings.check_required(REQUIRED | aggregate)
    audio, audio_prefix = _find_audio_encoder(shapes)
    if "sequence" in audio:
        audio["sequence"] = settings.get("sequence", _is_bool, is_tap)
    longest = 20.0 if audio["name"] == "passt_20" else RECIPE["window_seconds"]
    clip = settings.get("clip_seconds", _is_between(1, 3600), RECIPE["clip_seconds"])
    window = settings.get("window_seconds", _is_between(0, clip), min(longest, clip))
    is_first = settings.get("use_first_token", _is_bool, True)
    hop = settings.get("hop_seconds", _is_between(SHORTEST_HOP, window), window)
    num_tokens = settings.get(
        "max_tokens", lambda value: type(value) is int and value > 0, RECIPE["max_tokens"]
    )
    pooling = {"name": "mean"}
    if is_tap:
        pooling = {"name": "tap", "attention_dim": _shape(shapes, TAP_ANCHOR, 2)[0]}
    architecture = {
        "audio_encoder": audio,
        "text_encoder": _text_architecture(shapes, text_prefix),
        "text_readout": "first" if is_first else "mean",
        "pooling": pooling,
        "dim": _shape(shapes, "project_audio.0.weight", 2)[0],
        "sample_rate": SAMPLE_RATE,
        "clip_seconds": float(clip),
        "window_seconds": float(window),
        "hop_seconds": float(hop),
        "max_tokens": num_tokens,
    }
    return architecture, NAMES | {
        "audio_encoder.": audio_prefix,
        "text_encoder.model.": text_prefix,
    }


def _find_audio_encoder(shapes: dict[str, tuple]) -> tuple[dict[str, Any], str]:
    """Return the arguments of the encoder with complete weights, and its prefix in the file."""
    arguments = {
        prefix: _audio_arguments(kind, shapes, prefix)
        for kind, anchor in ANCHORS.items()
        for prefix in _prefixes(shapes, AUDIO, anchor)
    }
    if len(arguments) > 1:
        complete = []
        for prefix, given in arguments.items():
            sizes = {key: value for key, value in given.items() if key != "name"}
            with torch.device("meta"):
                encoder = AUDIO_ENCODERS[given["name"]](**sizes)
            own = [f"audio_encoder.{key}" for key in encoder.state_dict()]
            needed = [key for key in own if not re.match(OPTIONAL, key)]
            if all(_file_key(key, shapes, {"audio_encoder.": prefix}) in shapes for key in needed):
                complete.append(prefix)
        if complete:
            arguments = {prefix: arguments[prefix] for prefix in complete}
    wanted = ", ".join(f"{AUDIO}*{anchor}" for anchor in ANCHORS.values())
    prefix = _only(list(arguments), f"audio encoder: keys {wanted}")
    return arguments[prefix], prefix


def _audio_arguments(kind: str, shapes: dict[str, tuple], prefix: str) -> dict[str, Any]:
    """Return the arguments that follow from shapes; `sequence` does not, and is True."""
    if kind == "efficientat":
        return {
            "name": "mn40_as_ext",
            "width": _shape(shapes, f"{prefix}features.16.0.weight", 4)[0] / 960,
            "sequence": True,
        }
    dim = _shape(shapes, f"{prefix}{ANCHORS[kind]}", 2 if kind == "atst" else 4)[0]
    depth = _count(shapes, f"{prefix}blocks.")
    sizes = {"embed_dim": dim, "depth": depth, "num_heads": _num_heads(dim, "audio encoder")}
    if kind == "atst":
        return {"name": "atst_frame"} | sizes
    table = _shape(shapes, f"{prefix}time_new_pos_embed", 4)
    variants = [variant for variant in VARIANTS if variant.table_frames == table[-1]]
    if not variants:
        raise UserError(
            f"no PaSST has {prefix}time_new_pos_embed {list(table)}; there is:"
            f" {', '.join(variant.name for variant in VARIANTS)}"
        )
    variant = next(
        (variant for variant in variants if variant.official_depth == depth), variants[0]
    )
    # Patchout is for training, and would refuse short windows.
    patchout = {"patchout_time": 0, "patchout_frequency": 0}
    return {"name": variant.name, "sequence": True} | sizes | patchout


def _text_architecture(shapes: dict[str, tuple], prefix: str) -> dict[str, Any]:
    """Return the Hugging Face config of a RoBERTa with these shapes."""
    tables = {
        name: _shape(shapes, f"{prefix}embeddings.{name}_embeddings.weight", 2)
        for name in ("word", "position", "token_type")
    }
    if tables["token_type"][0] != 1:
        found = f"{prefix}embeddings.token_type_embeddings.weight {list(tables['token_type'])}"
        raise UserError(
            f"its text encoder is no RoBERTa, which has one kind of token (found {found}); train"
            " one here with text_encoder.name"
        )
    size = tables["word"][1]
    known = KNOWN_ARCHITECTURES[TEXT_ENCODER] | {
        "vocab_size": tables["word"][0],
        "hidden_size": size,
        "num_hidden_layers": _count(shapes, f"{prefix}encoder.layer."),
        "num_attention_heads": _num_heads(size, "text encoder"),
        "intermediate_size": _shape(
            shapes, f"{prefix}encoder.layer.0.intermediate.dense.weight", 2
        )[0],
        "max_position_embeddings": tables["position"][0],
    }
    return architecture_of(AutoConfig.for_model(**known), TEXT_DROPOUT)


def _temperature(path: Path, weights: dict[str, StoredTensor], settings: _Settings) -> float:
    """Return tau from the weights (whose sign has no meaning), or from the hyper-parameters."""
    if "tau" in weights:
        if weights["tau"].shape.numel() != 1:
            raise UserError(
                f"its temperature tau has shape {list(weights['tau'].shape)}, expected one number"
            )
        temperature = abs(_read(path, {"tau": weights["tau"]})["tau"].item())
    else:
        temperature = settings.get("tau", _is_number, RECIPE["tau"])
    if not 0 < temperature <= 10:
        raise UserError(
            f"its temperature tau is {temperature}, expected a number above 0, up to 10, such as"
            " 0.05; it may be a logarithm"
        )
    return float(temperature)


def _state(
    path: Path, model: DualEncoder, weights: dict[str, StoredTensor], prefixes: dict[str, str]
) -> dict[str, torch.Tensor]:
    """Return the state dict of `model` (on the meta device) without temperature.

    Raises UserError unless file and model have the same weights, except IGNORED and OPTIONAL ones.
    """
    own = model.state_dict()
    names = {key: _file_key(key, weights, prefixes) for key in own if key != "temperature"}
    absent = [key for key, name in names.items() if name not in weights]
    missing = [
        f"{names[key]} {list(own[key].shape)}" for key in absent if not re.match(OPTIONAL, key)
    ]
    used = {"tau", *names.values()}
    extra = [
        f"{name} {list(tensor.shape)}"
        for name, tensor in weights.items()
        if name not in used and not any(re.match(i, name) for i in IGNORED)
    ]
    present = {key: weights[name] for key, name in names.items() if name in weights}
    wrong = [
        f"{names[key]} {list(stored.shape)} for {list(own[key].shape)}"
        for key, stored in present.items()
        if stored.shape != own[key].shape
    ]
    # load_state_dict would take the integers of a quantised model for its weights.
    kinds = [
        f"{names[key]} {stored.dtype}"
        for key, stored in present.items()
        if own[key].is_floating_point() and not stored.dtype.is_floating_point
    ]
    problems = {
        "lacks": missing,
        "has left over": extra,
        "has in another shape": wrong,
        "has as other numbers than fractions": kinds,
    }
    if any(problems.values()):
        found = "; ".join(f"{what} {first_names(keys)}" for what, keys in problems.items() if keys)
        audio, text = type(model.audio_encoder).__name__, type(model.text_encoder.model).__name__
        raise UserError(
            f"its weights are not those of the expected model, {audio} at"
            f" {prefixes['audio_encoder.']}* and {text} at {prefixes['text_encoder.model.']}*,"
            f" {type(model.pooling).__name__}: it {found}"
        )
    return {key: torch.zeros(own[key].shape) for key in absent} | _read(path, present)


def _read(path: Path, stored: dict[str, StoredTensor]) -> dict[str, torch.Tensor]:
    try:
        return read_tensors(path, stored)
    except Exception as error:  # zipfile and torch raise errors of many types
        raise UserError(
            f"its weights cannot be read ({one_line(error)}); copy or download it again"
        ) from None


def _file_key(key: str, weights: Collection[str], prefixes: dict[str, str]) -> str:
    """Return the name of our `key` in the file."""
    ours = next(prefix for prefix in prefixes if key.startswith(prefix))
    name = prefixes[ours] + key.removeprefix(ours)
    # the final norm of self-supervised ATST-Frame
    other = name.replace(".norm_frame.", ".norm.")
    return other if name not in weights and other in weights else name


def _tokenizer(name: str | Path | None, vocab_size: int) -> PreTrainedTokenizerBase:
    given = TEXT_ENCODER if name is None else name
    remedy = (
        f"fetch one where there is internet (hf download {TEXT_ENCODER} --local-dir"
        f" weights/{TEXT_ENCODER}) and give it: --text-encoder FOLDER"
    )
    try:
        tokenizer = load_tokenizer(given)
    except UserError as error:
        # without its remedy, which is for a configuration
        reason = str(error).split("; ")[0]
        raise UserError(
            f"the file holds no tokenizer, and that of {given} does not load: {reason}; {remedy}"
        ) from None
    if len(tokenizer) != vocab_size:
        raise UserError(
            f"the tokenizer of {given} knows {len(tokenizer)} tokens, its text encoder"
            f" {vocab_size}: {remedy}"
        )
    return tokenizer


# --- small helpers ---


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_between(least: float, most: float) -> Callable[[Any], bool]:
    return lambda value: _is_number(value) and least <= value <= most and value > 0


def _prefixes(shapes: Collection[str], root: str, anchor: str) -> list[str]:
    """Return the parts before `anchor` of names that begin with `root`; they end with a dot."""
    found = [
        key.removesuffix(anchor)
        for key in shapes
        if key.startswith(root) and key.endswith(f".{anchor}")
    ]
    return [prefix for prefix in found if not any(re.match(pattern, prefix) for pattern in IGNORED)]


def _only(prefixes: list[str], what: str) -> str:
    if len(prefixes) != 1:
        found = f"found {len(prefixes)}: {first_names(prefixes)}" if prefixes else "found none"
        raise UserError(
            f"expected one {what} ({found}); give a checkpoint of salsa with one audio and one text"
            " encoder"
        )
    return prefixes[0]


def _shape(shapes: dict[str, tuple], key: str, num_dims: int) -> tuple[int, ...]:
    found = shapes.get(key)
    if found is None or len(found) != num_dims:
        what = "lacks it" if found is None else f"has {list(found)}"
        raise UserError(
            f"the size of the model is read from {key}, {num_dims} dimensions, and the file {what};"
            " copy or download it again"
        )
    return found


def _count(shapes: Collection[str], prefix: str) -> int:
    """Return how many different numbers follow `prefix` in the names."""
    count = len(
        {key.removeprefix(prefix).split(".")[0] for key in shapes if key.startswith(prefix)}
    )
    if count > MOST_LAYERS:
        raise UserError(f"it has {count} layers {prefix}*, expected at most {MOST_LAYERS}")
    return count


def _num_heads(dim: int, what: str) -> int:
    if dim % HEAD_SIZE:
        raise UserError(
            f"its {what} has {dim} dimensions, expected a multiple of {HEAD_SIZE}, the size of an"
            " attention head"
        )
    return dim // HEAD_SIZE
