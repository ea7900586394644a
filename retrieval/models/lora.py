"""LoRA: small trainable matrices beside chosen layers of a frozen encoder, by the package peft.

A layer computes W x + alpha / rank * B A dropout(x). W is frozen, A (rank, in) is random and B
(out, rank) starts at 0, so that the model starts as the one without LoRA. Hu et al.: LoRA:
Low-Rank Adaptation of Large Language Models (2021), arXiv:2106.09685.

A saved model holds W + alpha / rank * B A as an ordinary weight, or, where `save` is "adapter",
these files, and no weights of that encoder:

FOLDER/adapters/PART/adapter_config.json         in peft's layout; PART is audio_encoder or
FOLDER/adapters/PART/adapter_model.safetensors   text_encoder
FOLDER/adapters/PART/base.json                   where the encoder's own weights come from
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from transformers.pytorch_utils import Conv1D

from retrieval.base.access import follow_umask
from retrieval.base.errors import UserError, one_line
from retrieval.base.extras import needs_extra
from retrieval.base.files import read_json, write_json
from retrieval.models.audio import AUDIO_ENCODERS
from retrieval.models.audio.huggingface import huggingface_arguments
from retrieval.models.text import text_architecture
from retrieval.models.weights import weights_digest

PARTS = ("audio_encoder", "text_encoder")
ADAPTERS = "adapters"  # folder of a saved model
CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"
PREFIX = "base_model.model."  # of names in peft's files
NAME = "default"  # peft's name of an adapter that has none
ALL_LINEAR = "all-linear"  # a target: every layer, as in peft
MOST_NAMED = 12  # layers in one message

# Attention projections by the names that models give them, for models that peft does not know.
# A fused layer holds query, key and value (ATST, PaSST): all three are adapted.
ATTENTION = (
    ("query", "value"),
    ("q_proj", "v_proj"),
    ("q_lin", "v_lin"),
    ("query_proj", "value_proj"),
    ("q", "v"),
    ("qkv",),
    ("Wqkv",),
    ("qkv_proj",),
    ("query_key_value",),
    ("c_attn",),
)
# WavLM hands the weights of these layers to one function of PyTorch: adapters beside them would
# never be called. Its feed-forward layers are adapted instead.
BYPASSED = {"wavlm": ("q_proj", "k_proj", "v_proj", "out_proj")}
INSTEAD = {"wavlm": ("intermediate_dense", "output_dense")}


@dataclass(frozen=True)
class Base:
    """Source of an encoder's own weights.

    Attributes:
        name: Hub name, folder or file.
        kind: "encoder", as audio_encoder.checkpoint and text_encoder.name give it, or "model", the
            same part of a whole model, as train.init_from gives it.
        sha256: Of the weights.
    """

    name: str
    kind: str
    sha256: str


@dataclass(frozen=True)
class Lora:
    """The adapters of one encoder.

    Attributes:
        rank: Rows of A.
        alpha: B A is multiplied by alpha / rank.
        dropout: On the input of A.
        layers: Names of the adapted layers within `adapted_module`.
        base: Set if the adapters are saved beside their base, None if they are merged into it.
    """

    rank: int
    alpha: int
    dropout: float
    layers: tuple[str, ...]
    base: Base | None = None


def adapted_module(encoder: nn.Module) -> nn.Module:
    """Return the module that names of layers count from: transformers' model within an encoder.

    peft then reads a saved adapter beside a model that transformers loaded.
    """
    return getattr(encoder, "model", encoder)


def add_lora(
    encoder: nn.Module,
    part: str,
    *,
    rank: int,
    alpha: int,
    dropout: float,
    targets: list[str] | None,
    base: tuple[str, str] | None = None,
) -> Lora:
    """Freeze an encoder and put trainable adapters beside its layers.

    Args:
        encoder: Of a DualEncoder, with its weights.
        part: "audio_encoder" or "text_encoder", for messages.
        rank: Rows of A.
        alpha: B A is multiplied by alpha / rank.
        dropout: On the input of A.
        targets: Last parts of layers' names, such as "query"; None: `default_targets`.
        base: Name and kind of Base if the adapters are saved without the encoder's weights.

    Raises:
        UserError: peft is not installed, a target matches no layer, or the encoder has no
            attention.
    """
    host = adapted_module(encoder)
    layers = _matching(host, targets, f"{part}.lora.targets")
    kept = None if base is None else Base(*base, sha256=weights_digest(encoder))
    encoder.requires_grad_(False)
    lora = Lora(rank, alpha, dropout, layers, kept)
    try:
        _inject(host, lora)
    except UserError:
        raise
    except (ValueError, RuntimeError) as error:  # a convolution in groups that rank cannot fill
        raise UserError(
            f"{part}.lora does not fit these layers ({one_line(error)}); set other targets"
        ) from None
    return lora


def _inject(host: nn.Module, lora: Lora) -> None:
    with needs_extra("lora"):
        from peft import inject_adapter_in_model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layers in GPT-2's orientation, which peft then adapts
        inject_adapter_in_model(_peft_config(lora), host, NAME)


def _peft_config(lora: Lora) -> Any:
    with needs_extra("lora"):
        from peft import LoraConfig
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.layers),
        base_model_name_or_path=lora.base and lora.base.name,
    )


def adaptable_layers(host: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that can have adapters, by name.

    Layers that the encoder never uses (heads, kept for strict loading) have no gradient and are
    left out, as are embeddings and layers whose weights another function takes.
    """
    kind = getattr(getattr(host, "config", None), "model_type", "")
    unreached = BYPASSED.get(kind, ())
    inner = {
        id(child)
        for module in host.modules()
        if isinstance(module, nn.MultiheadAttention)
        for child in module.modules()
    }
    return {
        name: module
        for name, module in host.named_modules()
        if isinstance(module, (nn.Linear, Conv1D, nn.Conv1d, nn.Conv2d))
        and module.weight.requires_grad
        and not is_parametrized(module)
        and id(module) not in inner
        and name.rpartition(".")[2] not in unreached
    }


def _matching(host: nn.Module, targets: list[str] | None, setting: str) -> tuple[str, ...]:
    """Return the names of the layers that targets mean, in the order of the model."""
    layers = adaptable_layers(host)
    if targets is None:
        targets = default_targets(host, layers)
        if not targets:
            raise UserError(
                f"{setting} must name layers, since this encoder has no attention projections that"
                f" are known by name; it has: {_named(layers)}"
            )
    for target in targets:
        if target != ALL_LINEAR and not any(_is_meant(name, target) for name in layers):
            raise UserError(
                f"{setting}: {target!r} matches no layer of the encoder that can have adapters; it"
                f" has: {_named(layers)}"
            )

    def is_chosen(name: str) -> bool:
        if ALL_LINEAR in targets and isinstance(layers[name], (nn.Linear, Conv1D)):
            return True
        return any(_is_meant(name, target) for target in targets)

    return tuple(filter(is_chosen, layers))


def _is_meant(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _named(layers: dict[str, nn.Module]) -> str:
    """List the different names of layers, without the numbers of blocks."""
    names = {}
    for name in layers:
        *_, last = parts = name.split(".")
        # the number of a layer in a Sequential says nothing without the name before it
        while last.split(".")[0].isdigit() and len(parts) > 1:
            parts.pop()
            last = f"{parts[-1]}.{last}"
        names[last] = None
    shown = list(names)[:MOST_NAMED]
    return ", ".join(shown) + (
        f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    )


def default_targets(host: nn.Module, layers: dict[str, nn.Module]) -> list[str]:
    """Return the targets of an encoder whose settings name none.

    peft's own for the kinds of models that it knows, otherwise the projections of attention that
    `ATTENTION` knows by name: query and value, or the fused layer. Empty if there are none.
    """
    with needs_extra("lora"):
        from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as known
    kind = getattr(getattr(host, "config", None), "model_type", "")
    for names in (INSTEAD.get(kind), known.get(kind), *ATTENTION):
        if isinstance(names, (list, tuple)) and all(
            any(_is_meant(name, target) for name in layers) for target in names
        ):
            return list(names)
    return []


def saved_state(model: nn.Module, adapters: dict[str, Lora], folder: Path) -> dict[str, Any]:
    """Return the state that a saved model holds; write the adapters that are saved apart.

    Args:
        model: The DualEncoder; it stays as it is.
        adapters: Of its encoders, by part.
        folder: Of the saved model.

    Returns:
        Weights by the names of a model without adapters. Adapters are merged; an encoder whose
        adapters are saved apart has no weights there.
    """
    state = dict(model.state_dict())
    for part, lora in adapters.items():
        encoder = getattr(model, part)
        if lora.base is not None:
            _save_adapter(encoder, lora, folder / ADAPTERS / part)
            state = {key: state[key] for key in state if not key.startswith(f"{part}.")}
            continue
        for name, layer in _adapted_layers(encoder).items():
            own = {key: state.pop(key) for key in list(state) if key.startswith(f"{part}.{name}.")}
            for key, value in own.items():
                _, marker, tensor = key.partition(".base_layer.")
                if marker:
                    state[f"{part}.{name}.{tensor}"] = value
            state[f"{part}.{name}.weight"] = merged_weight(layer)
    return state


def _adapted_layers(encoder: nn.Module) -> dict[str, nn.Module]:
    from peft.tuners.lora import LoraLayer

    modules = encoder.named_modules(remove_duplicate=False)
    return {name: module for name, module in modules if isinstance(module, LoraLayer)}


@torch.no_grad()
def merged_weight(layer: nn.Module) -> torch.Tensor:
    """Return W + alpha / rank * B A of a layer of peft, which stays as it is."""
    return layer.get_base_layer().weight + layer.get_delta_weight(NAME)


def _save_adapter(encoder: nn.Module, lora: Lora, folder: Path) -> None:
    from peft import get_peft_model_state_dict

    folder.mkdir(parents=True)
    # "auto" would ask the hub about the base
    state = get_peft_model_state_dict(
        adapted_module(encoder), adapter_name=NAME, save_embedding_layers=False
    )
    written = {f"{PREFIX}{key}": value.contiguous() for key, value in state.items()}
    save_file(written, folder / WEIGHTS, {"format": "pt"})
    follow_umask(folder / WEIGHTS)
    config = _peft_config(lora)
    config.inference_mode = True
    config.target_modules = list(lora.layers)  # a set of peft's has another order in each process
    config.save_pretrained(folder)
    write_json(folder / BASE, asdict(lora.base))


def saved_apart(folder: Path) -> list[str]:
    """Return the encoders of a model folder that are adapters beside a base."""
    return [part for part in PARTS if (folder / ADAPTERS / part / BASE).is_file()]


def check_bases(folder: Path, architecture: dict[str, Any]) -> None:
    """Compare the encoders that config.json describes with their bases, before they are built.

    A damaged config.json could ask for any amount of memory, so its sizes are compared with the
    base, whose weights exist.

    Args:
        folder: Of a saved model.
        architecture: Content of its config.json.

    Raises:
        UserError: A base is absent, or of another size.
    """
    for part in saved_apart(folder):
        place, described = folder / ADAPTERS / part, dict(architecture[part])
        base = _read_base(place)
        with _needed_by(place, base):
            found = _size_mistake(base, part, described, folder)
        if found:
            raise UserError(
                f"{place} is an adapter of {base.name}, which is of another size than config.json"
                f" says ({found}); copy the folder again"
            )


def _size_mistake(base: Base, part: str, described: dict[str, Any], folder: Path) -> str | None:
    """Return the first difference of an encoder that config.json describes and its base."""
    other = _whole_model(base, folder) if base.kind == "model" else None
    kind = described.pop("name", None)  # of an audio encoder
    if kind in (None, "huggingface"):
        if other is not None:
            own = other.architecture[part]
        elif kind is None:
            own = text_architecture(base.name, dropout=0.0)
        else:
            own = huggingface_arguments(base.name)
        return _first_difference(described, own)
    with torch.device("meta"):  # shapes cost nothing there
        planned = _num_numbers(AUDIO_ENCODERS[kind](**described))
    # a number takes a byte or more
    most = Path(base.name).stat().st_size if other is None else _num_numbers(other.audio_encoder)
    return f"{planned:.3g} numbers" if planned > most else None


def _num_numbers(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in module.state_dict().values())


def _first_difference(described: Any, own: Any, name: str = "") -> str | None:
    """Return the first whole number that differs, as `name=value`; settings of one are left out."""
    if isinstance(described, dict) and isinstance(own, dict):
        pairs = [(described[key], own[key], key) for key in described if key in own]
    elif isinstance(described, list | tuple) and isinstance(own, list | tuple):
        if len(described) != len(own):
            return f"{len(described)} {name}"
        pairs = [(one, other, name) for one, other in zip(described, own, strict=True)]
    else:
        is_size = int in (type(described), type(own)) or name == "model_type"
        return f"{name}={described}" if is_size and described != own else None
    return next(filter(None, (_first_difference(*pair) for pair in pairs)), None)


def _whole_model(base: Base, folder: Path) -> Any:
    from retrieval.models.pretrained.load import load_pretrained  # which imports DualEncoder

    return load_pretrained(base.name, folder / "tokenizer")


def _read_base(place: Path) -> Base:
    try:
        base = Base(**read_json(place / BASE))
        if not all(isinstance(value, str) for value in asdict(base).values()):
            raise TypeError("a value is not text")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{place / BASE} cannot be read ({one_line(error)}); copy it again"
        ) from None
    return base


@contextmanager
def _needed_by(place: Path, base: Base) -> Iterator[None]:
    """Name the adapter and its base in the error of a base that does not load."""
    try:
        yield
    except Exception as error:  # of the hub, of transformers and of settings that do not fit
        raise UserError(
            f"{place} is an adapter of {base.name}, which does not load here: put it there"
            f" ({one_line(error, longest=200)})"
        ) from None


def load_adapters(model: nn.Module, folder: Path) -> None:
    """Load the base of each encoder that was saved as an adapter, and merge the adapter into it.

    Args:
        model: The DualEncoder, without adapters.
        folder: Of the saved model.

    Raises:
        UserError: A base is absent or has changed, or files are damaged.
    """
    for part in saved_apart(folder):
        place = folder / ADAPTERS / part
        encoder, base = getattr(model, part), _read_base(place)
        lora, state = _read_adapter(place, encoder)
        with _needed_by(place, base):
            if base.kind == "model":
                other = _whole_model(base, folder)
                encoder.load_state_dict(getattr(other, part).state_dict())
            elif part == "text_encoder":
                encoder.load_pretrained(base.name)
            else:
                encoder.load_official(base.name)
        if weights_digest(encoder) != base.sha256:
            raise UserError(
                f"{place} is an adapter of {base.name}, whose weights have changed since: put the"
                " version there that it was trained with"
            )
        _merge(adapted_module(encoder), lora, state, place)


def _read_adapter(place: Path, encoder: nn.Module) -> tuple[Lora, dict[str, torch.Tensor]]:
    """Read the files of an adapter: only the settings that `_save_adapter` writes."""
    try:
        settings = read_json(place / CONFIG)
        lora = Lora(
            int(settings["r"]), int(settings["lora_alpha"]), 0.0, (*settings["target_modules"],)
        )
        state = load_file(place / WEIGHTS)
    except Exception as error:  # of JSON, safetensors and wrong types
        raise UserError(
            f"adapter {place} cannot be read ({one_line(error)}); copy it again"
        ) from None
    layers = adaptable_layers(adapted_module(encoder))
    ranks = {value.shape[:1] for key, value in state.items() if ".lora_A." in key}
    found = ""
    if not lora.layers or not layers.keys() >= set(lora.layers):
        found = "names layers that the encoder does not have"
    elif ranks != {(lora.rank,)}:  # before memory is taken for it
        found = f"says r={lora.rank}, its weights are of another rank"
    if found:
        raise UserError(f"adapter {place}: {CONFIG} {found}; copy the folder again")
    return lora, state


def _merge(host: nn.Module, lora: Lora, state: dict[str, torch.Tensor], place: Path) -> None:
    with needs_extra("lora"):
        from peft import set_peft_model_state_dict
    trainable = [parameter for parameter in host.parameters() if parameter.requires_grad]
    try:
        _inject(host, lora)
        report = set_peft_model_state_dict(
            host, {key.removeprefix(PREFIX): value for key, value in state.items()}, NAME
        )
        missing = [key for key in report.missing_keys if ".lora_" in key]
        found = f"{missing[0]} is missing" if missing else ""
        if report.unexpected_keys:
            found = f"{report.unexpected_keys[0]} is too many"
    except (ValueError, RuntimeError) as error:  # of another shape
        found = one_line(error)
    if found:
        raise UserError(f"adapter {place} does not fit its {CONFIG} ({found}); copy it again")
    layers = _adapted_layers(host)
    for layer in {id(layer): layer for layer in layers.values()}.values():
        layer.get_base_layer().weight.data = merged_weight(layer)
    for name, layer in layers.items():
        host.set_submodule(name, layer.get_base_layer())
    del host.peft_config
    for parameter in trainable:  # injecting froze them
        parameter.requires_grad_()
