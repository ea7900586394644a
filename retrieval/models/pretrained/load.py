"""Load any checkpoint as a DualEncoder: of this project, of salsa, or of transformers."""

from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from retrieval.base.checkpoints import check_checkpoint, hub_name
from retrieval.base.errors import UserError, one_line
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.hub import OUT_OF_REACH, hub_answers
from retrieval.models.pretrained.huggingface import load_huggingface, transformers_config
from retrieval.models.pretrained.salsa import load_salsa_checkpoint

PICKLED = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "onnx/*"]


def load_pretrained(checkpoint: str | Path, text_encoder: str | Path | None = None) -> DualEncoder:
    """Load a checkpoint of any kind.

    Args:
        checkpoint: Model folder of train.py; folder of a CLAP or PE-Audio of transformers; name of
            either on the Hugging Face hub, user/name or user/name@revision; or a .ckpt of salsa.
        text_encoder: For a .ckpt: hub model or folder with its tokenizer; None: roberta-large.

    Returns:
        The model in eval mode, on the CPU.

    Raises:
        UserError: It is absent, damaged or of another kind.
    """
    path = local_checkpoint(checkpoint)
    if path.is_file():
        return load_salsa_checkpoint(path, text_encoder)
    config = transformers_config(path)
    if config is None:
        return DualEncoder.from_pretrained(path)
    try:
        return load_huggingface(path, config)
    except UserError as error:  # of one of its encoders, which the message names
        raise UserError(f"checkpoint {path}: {error}") from None


def local_checkpoint(checkpoint: str | Path) -> Path:
    """Return the folder or file of a checkpoint, after downloading it if it is a hub name.

    Raises:
        UserError: There is no such checkpoint, or the hub does not give it.
    """
    check_checkpoint(checkpoint)
    found = hub_name(checkpoint)
    if found is None:
        return Path(checkpoint)
    try:
        return Path(_download(*found))
    except GatedRepoError:
        reason = "it is gated: accept its terms on its page, and log in with `hf auth login`"
    except RevisionNotFoundError:
        reason = f"it has no revision {found.revision}"
    except RepositoryNotFoundError:
        reason = "the hub has no such model, or it is private: then log in with `hf auth login`"
    except Exception as error:  # of the network, and a model that was not downloaded before
        reason = one_line(error, longest=200) if hub_answers() else OUT_OF_REACH
    raise UserError(
        f"checkpoint {checkpoint} is not a folder here and the Hugging Face hub did not give it"
        f" ({reason})"
    )


def _download(name: str, revision: str | None) -> str:
    """Download config, tokenizer and weights; weights in pickles only if there are no others."""
    if not hub_answers():
        return snapshot_download(name, revision=revision, local_files_only=True)
    files = HfApi().list_repo_files(name, revision=revision)
    has_safetensors = any(file.endswith(".safetensors") for file in files)
    ignored = PICKLED if has_safetensors else [own for own in PICKLED if own != "*.bin"]
    return snapshot_download(name, revision=revision, ignore_patterns=ignored)
