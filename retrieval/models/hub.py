"""Hub models and folders: ask the hub once, run no code of a model, explain refusals.

The hub is asked once, since huggingface_hub tries each file six times over 23 s before it gives up.
"""

import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_session, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import AutoConfig, PreTrainedConfig

from retrieval.base.access import check_readable
from retrieval.base.errors import UserError, one_line

logger = logging.getLogger(__name__)


# For every `from_pretrained` and `from_config` of transformers: otherwise they ask on the terminal
# for models with code.
NO_CODE = {"trust_remote_code": False}
# Settings of a config.json that name code: classes next to the weights, and kernels of the hub
# (Python packages).
CODE_SETTINGS = (
    "auto_map",
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
)
OWN_CODE = "brings code of its own, which is not run"
OUT_OF_REACH = "it is out of reach, and nothing was downloaded from it before"
# the setting that names an encoder, and the files of its folder
NEEDED = {
    "text encoder": (
        "text_encoder.name",
        "config.json, tokenizer files and model.safetensors",
    ),
    "audio encoder": (
        "audio_encoder.checkpoint",
        "config.json, preprocessor_config.json and model.safetensors",
    ),
}


def local_files_only(name: str | Path) -> bool:
    """Return True for a folder, and for a hub name while the hub is out of reach.

    Models that were downloaded before then still load.
    """
    return os.path.isdir(name) or not hub_answers()


def loading(name: str | Path, kind: str) -> dict[str, bool]:
    """Return the arguments for every `from_pretrained` of a hub model or folder.

    Args:
        name: Hub name or folder.
        kind: Name of its kind in the message, such as "audio encoder".

    Raises:
        UserError: The user may not read the folder.
    """
    check_readable(name, kind)
    return NO_CODE | {"local_files_only": local_files_only(name)}


def unreachable(kind: str, name: str | Path, error: Exception) -> UserError:
    """Return the error for the text or audio encoder `name`, which raised `error` when loaded.

    Args:
        kind: "text encoder" or "audio encoder".
        name: Hub name or folder.
        error: Of transformers: OSError, ValueError and others, for the same absence.
    """
    if "trust_remote_code" in str(error):
        return UserError(f"{kind} {name} {OWN_CODE}; take another {kind}")
    setting, needed = NEEDED[kind]
    reason = one_line(error, longest=160)
    if Path(name).is_dir():
        return UserError(f"{kind} folder {name} cannot be loaded ({reason}); it needs {needed}")
    if str(name).count("/") > 1:
        return UserError(
            f"{kind} folder {name} does not exist; set {setting} to a folder, or to a hub name"
        )
    if not hub_answers():
        reason = OUT_OF_REACH
    return UserError(
        f"{kind} {str(name)!r} is not a folder here and the Hugging Face hub did not give it"
        f" ({reason}); download it where there is internet (hf download {name} --local-dir"
        f" weights/{Path(name).name}) and set {setting}=weights/{Path(name).name}"
    )


def without_code(architecture: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json without the settings that name code."""
    return {name: value for name, value in architecture.items() if name not in CODE_SETTINGS}


def config_of(architecture: dict[str, Any], kind: str) -> PreTrainedConfig:
    """Return the config for a config.json of a model folder, without the settings that name code.

    Args:
        architecture: Content of the config.json.
        kind: Name of its kind in the message, such as "audio encoder".

    Raises:
        UserError: The model type needs its own code.
    """
    try:
        return AutoConfig.for_model(**without_code(architecture))
    except ValueError:
        if "auto_map" not in architecture:
            raise
        raise UserError(
            f"the {kind} {architecture.get('model_type')} {OWN_CODE}; take another {kind}"
        ) from None


def warn_of_code(kind: str, name: str | Path, config: PreTrainedConfig) -> None:
    """Warn if a model brings its own code and transformers' implementation is used instead."""
    if getattr(config, "auto_map", None):
        logger.warning(
            "%s %s %s: the implementation %s of transformers is used instead",
            kind,
            name,
            OWN_CODE,
            config.model_type,
        )


@functools.cache
def hub_answers() -> bool:
    """Ask the hub once, as huggingface_hub does; False with HF_HUB_OFFLINE=1."""
    try:
        get_session().head(constants.ENDPOINT, timeout=5.0)
    # of httpx or httpx2, depending on the version of huggingface_hub, or OfflineModeIsEnabled
    except Exception:
        return False
    return True


REFUSED = {
    401: "the token is not valid: log in with `hf auth login`, or set HF_TOKEN",
    403: (
        "the token may not write there: make one with write access to that name, or upload to"
        " your own"
    ),
    404: "there is no such place: check the name, and that the token may see it",
    413: "it is too large for that account",
    429: "too many requests: try again later",
}


@contextmanager
def explained_upload(repo: str, token: str | bool | None = None) -> Iterator[None]:
    """Raise UserError for an upload that cannot work, before it, and for one that fails.

    Args:
        repo: user/name.
        token: Of the hub; None takes the one that the user logged in with.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(
            f"{repo!r} is not a name of a repository, which is user/name ({one_line(error)})"
        ) from None
    if not (token if isinstance(token, str) else get_token()):
        raise UserError(
            "uploading needs a token of the Hugging Face hub: log in with `hf auth login`, or set"
            " HF_TOKEN"
        )
    if not hub_answers():
        raise UserError(
            f"the Hugging Face hub, {constants.ENDPOINT}, is out of reach, nothing was uploaded;"
            " check the network and HF_ENDPOINT"
        )
    try:
        yield
    except UserError:
        raise
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = REFUSED.get(status, one_line(error))
        raise UserError(
            f"the Hugging Face hub refused {repo} (status {status}): {reason}"
        ) from None
    # of httpx or httpx2, of the uploaders in Rust, and OSErrors of the network
    except Exception as error:
        raise UserError(
            f"the upload to {repo} broke off ({one_line(error, longest=300)}); run it again:"
            " uploaded parts are kept"
        ) from None
