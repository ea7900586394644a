"""Load models of transformers that score text against audio: CLAP and PE-Audio, with all parts.

The vectors and scores are those of the original; docs/pretrained.md says how they were compared.
Captions are taken as written. Clips may be up to CLIP_SECONDS long:

- CLAP hears 10 s. The original cuts a longer clip at a random place; here the vectors of windows of
  10 s are averaged, each weighted by its length.
- PE-Audio hears the whole clip. Its scores are dot products, as in the original. The frame-level
  model gives a vector every 40 ms, and a clip's score is the average over its frames.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from retrieval.base.checkpoints import foreign_config
from retrieval.base.errors import UserError, one_line
from retrieval.models.audio.huggingface import PE_AUDIO_OF_VIDEO, huggingface_arguments
from retrieval.models.dual_encoder import DualEncoder, check_size
from retrieval.models.hub import OWN_CODE, loading, without_code
from retrieval.models.text import load_tokenizer

CLIP_SECONDS = 60.0


@dataclass(frozen=True)
class Family:
    """A kind of model of audio and text.

    Attributes:
        model: Its class in transformers.
        names: Prefixes of weight names here -> those of the original.
        architecture: From its config.json the arguments of DualEncoder that are its own.
        learnt: From the original, its temperature and the parameters of its loss.
    """

    model: type[PreTrainedModel]
    names: dict[str, str]
    architecture: Callable[[PreTrainedConfig], dict[str, Any]]
    learnt: Callable[[PreTrainedModel], dict[str, float]]


def _clap_architecture(config: PreTrainedConfig) -> dict[str, Any]:
    return {
        "audio_encoder": {"readout": "pooled"},
        "text_readout": "pooled",
        "projection": {"name": "mlp", "activation": config.audio_config.projection_hidden_act},
        "pooling": {"name": "average", "similarity": "cosine"},
        "dim": config.projection_dim,
    }


def _clap_learnt(model: PreTrainedModel) -> dict[str, float]:
    # of text against audio: training has one temperature for both directions
    return {"temperature": 1 / model.logit_scale_t.exp().item()}


def _pe_architecture(config: PreTrainedConfig) -> dict[str, Any]:
    is_frame_level = "PeAudioFrameLevelModel" in (config.architectures or ())
    return {
        "audio_encoder": {"readout": "frames" if is_frame_level else "pooled"},
        "text_readout": "first",
        "projection": {"name": "norm_linear", "eps": 1e-6},
        "pooling": {"name": "average", "similarity": "dot"},
        "dim": config.text_config.hidden_size,
        "loss_parameters": {"scale": 0.0, "bias": 0.0},
    }


def _pe_learnt(model: PreTrainedModel) -> dict[str, float]:
    scale = model.text_audio_logit_scale.item()
    temperature = 1 / scale if scale > 0 else 1.0  # 0 in a model that was never trained
    return {"temperature": temperature, "loss_parameters.bias": model.text_audio_logit_bias.item()}


FAMILIES: dict[str, Family] = {
    "clap": Family(
        model=transformers.ClapModel,
        names={
            "audio_encoder.model.": "audio_model.",
            "text_encoder.model.": "text_model.",
            "audio_projection.": "audio_projection.",
            "text_projection.": "text_projection.",
        },
        architecture=_clap_architecture,
        learnt=_clap_learnt,
    ),
    "pe_audio": Family(
        model=transformers.PeAudioModel,
        names={
            "audio_encoder.model.": "audio_encoder.",
            "text_encoder.model.": "text_model.",
            "audio_projection.": "audio_head.",
            "text_projection.": "text_audio_head.",
        },
        architecture=_pe_architecture,
        learnt=_pe_learnt,
    ),
}
AGAIN = "copy or download it again"
HALVES = ("clap_audio_model", "clap_text_model", "pe_audio_encoder")


def transformers_config(folder: Path) -> PreTrainedConfig | None:
    """Return the config of a folder with a model of transformers; None for any other folder.

    Raises:
        UserError: It is a model that does not score text against audio, or its config is damaged.
    """
    content = foreign_config(folder)
    if content is None:
        return None  # DualEncoder.from_pretrained says what is missing
    kind = content.get("model_type")
    if kind not in (*FAMILIES, "pe_audio_video"):
        found = f"is a {kind}, which does not score text against audio"
        if kind in HALVES:
            found = f"is a {kind}, one half of a model of audio and text"
        elif "auto_map" in content:
            found = OWN_CODE
        raise UserError(
            f"checkpoint {folder} {found}; take a folder that train.py wrote, or a model of type"
            f" {', '.join(FAMILIES)} or pe_audio_video, such as laion/clap-htsat-unfused"
        )
    try:
        return AutoConfig.from_pretrained(str(folder), **loading(folder, "checkpoint"))
    except Exception as error:
        reason = one_line(error, longest=200)
        raise UserError(f"checkpoint {folder} does not load ({reason}); {AGAIN}") from None


def load_huggingface(folder: Path, config: PreTrainedConfig) -> DualEncoder:
    """Load a model of transformers as a DualEncoder.

    Args:
        folder: With weights, preprocessor and tokenizer, as transformers saves them.
        config: Of its config.json, by transformers_config.

    Returns:
        The model in eval mode, in float32.

    Raises:
        UserError: A part is absent or damaged.
    """
    settings: dict[str, Any] = loading(folder, "checkpoint")
    if config.model_type == "pe_audio_video":
        config, settings = config.audio_config, settings | PE_AUDIO_OF_VIDEO
    family = FAMILIES[config.model_type]
    own = family.architecture(config)
    audio = huggingface_arguments(str(folder)) | own.pop("audio_encoder")
    tokenizer = load_tokenizer(folder, config.text_config.vocab_size)
    extractor = audio["feature_extractor"]
    rate = extractor["sampling_rate"]
    seconds = clip_seconds = CLIP_SECONDS
    if config.model_type == "clap":
        seconds = extractor.get("max_length_s", 10)
    elif hop := extractor.get("hop_length"):  # PE-Audio hears the whole clip, of whole frames
        most = min(int(CLIP_SECONDS * rate) // hop, config.audio_config.max_position_embeddings)
        seconds = clip_seconds = most * hop / max(rate, 1)
    architecture = {
        "audio_encoder": {"name": "huggingface", **audio},
        "text_encoder": without_code(config.text_config.to_dict()),
        "sample_rate": rate,
        "clip_seconds": clip_seconds,
        "window_seconds": seconds,
        "hop_seconds": seconds,
        "max_tokens": None,
        "temperature": 1.0,
        "text_as_written": True,
        **own,
    }
    try:
        if files := sorted(folder.glob("*.safetensors")):
            check_size(architecture, files)
        model = DualEncoder(**architecture)
    except UserError:
        raise
    except Exception as error:  # damaged files, sizes of 0 and others that no model can have
        raise UserError(f"it does not load ({one_line(error, longest=200)}); {AGAIN}") from None
    try:
        source, report = family.model.from_pretrained(
            str(folder),
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are listed in the report
            **settings,
        )
    except Exception as error:
        reason = one_line(error, longest=200)
        if "weights_only" in reason:
            reason = "a pickle with other objects than tensors, of which nothing was run"
        raise UserError(f"it does not load ({reason}); {AGAIN}") from None
    if report["mismatched_keys"]:
        key, found, expected = sorted(report["mismatched_keys"])[0]
        raise UserError(
            f"its weight {key} has the shape {list(found)} and not {list(expected)}, as its"
            f" config.json says; {AGAIN}"
        )
    # transformers fills missing weights with random numbers
    if missing := sorted(report["missing_keys"]):
        lacks = f"it lacks {len(missing)} weights of a {config.model_type}, first {missing[0]}"
        raise UserError(f"{lacks}; {AGAIN}, or take a model with an audio and a text side")
    state, theirs = model.state_dict(), source.state_dict()
    for key in state:
        for ours, other in family.names.items():
            if key.startswith(ours):
                state[key] = theirs[other + key.removeprefix(ours)]
    state |= {key: torch.tensor(value) for key, value in family.learnt(source).items()}
    if bad := [key for key, value in state.items() if not value.isfinite().all()]:
        raise UserError(f"its weight {bad[0]} is not finite (NaN or infinite); {AGAIN}")
    model.load_state_dict(state)
    model.text_encoder.tokenizer = tokenizer
    return model.eval()
