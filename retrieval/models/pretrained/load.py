"""Load any checkpoint as a DualEncoder: of this project, of salsa, or of transformers."""

import re
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from retrieval.base.checkpoints import check_checkpoint, hub_name, is_own_folder
from retrieval.base.errors import UserError, one_line
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.hub import OUT_OF_REACH, hub_answers
from retrieval.models.pretrained.huggingface import load_huggingface, transformers_config
from retrieval.models.pretrained.salsa import load_salsa_checkpoint
from retrieval.models.record import TrainingRecord, without_folders

PICKLED = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "onnx/*"]
PICKLED_WITHOUT_BIN = [pattern for pattern in PICKLED if pattern != "*.bin"]
COMMIT = re.compile("[0-9a-f]{40}")


def load_pretrained(checkpoint: str | Path, text_encoder: str | Path | None = None) -> DualEncoder:
    """Load a checkpoint of any kind.

    Args:
        checkpoint: Model folder of train.py; folder of a CLAP or PE-Audio of transformers; name of
            either on the Hugging Face hub, user/name or user/name@revision; or a .ckpt of salsa.
        text_encoder: Tokenizer of a .ckpt, a folder or hub name; None: roberta-large.

    Returns:
        The model in eval mode, on the CPU.

    Raises:
        UserError: It is absent, damaged or of another kind.
    """
    path, is_download = local_checkpoint(checkpoint), hub_name(checkpoint) is not None
    try:
        model = _load(path, text_encoder)
    except UserError as error:
        if not is_download:
            raise
        # the name that the user gave in place of the folder of the download
        raise UserError(str(error).replace(str(path), str(checkpoint))) from None
    if model.record == TrainingRecord() and not is_own_folder(path):
        model.record = TrainingRecord(converted_from=without_folders(str(checkpoint)))
    return model


def _load(path: Path, text_encoder: str | Path | None) -> DualEncoder:
    if path.suffix in (".safetensors", ".json", ".bin"):
        raise UserError(
            f"checkpoint {path} is a file of a model folder: give the folder {path.parent}"
        )
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
        if type(error).__name__ == "IncompleteSnapshotError":  # of huggingface_hub 2
            reason = "it is out of reach, and an earlier download of it broke off"
    raise UserError(
        f"checkpoint {checkpoint} is not a folder here and the Hugging Face hub did not give it"
        f" ({reason})"
    )


def exact_name(checkpoint: str | Path) -> str:
    """Return a checkpoint's absolute path, or user/name@commit for a hub model.

    Raises:
        UserError: As local_checkpoint.
    """
    path, found = local_checkpoint(checkpoint), hub_name(checkpoint)
    return str(path.resolve()) if found is None else f"{found.name}@{path.name}"


def _download(name: str, revision: str | None) -> str:
    """Download config, tokenizer and weights; weights in pickles only if there are no others."""
    if revision and COMMIT.fullmatch(revision):
        try:  # a commit does not change: no question to the hub
            return _downloaded_before(name, revision)
        except LocalEntryNotFoundError:
            pass
    if not hub_answers():
        return _downloaded_before(name, revision)
    files = HfApi().list_repo_files(name, revision=revision)
    has_safetensors = any(file.endswith(".safetensors") for file in files)
    ignored = PICKLED if has_safetensors else PICKLED_WITHOUT_BIN
    return snapshot_download(name, revision=revision, ignore_patterns=ignored)


def _downloaded_before(name: str, revision: str | None) -> str:
    """Return the folder of a whole earlier download. Raises LocalEntryNotFoundError."""
    settings = {"revision": revision, "local_files_only": True}
    folder = snapshot_download(name, ignore_patterns=PICKLED, **settings)
    if not any(Path(folder).glob("*.safetensors")):
        snapshot_download(name, ignore_patterns=PICKLED_WITHOUT_BIN, **settings)
    return folder
