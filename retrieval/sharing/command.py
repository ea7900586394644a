"""Renew the card of a trained model, and upload the model to the Hugging Face hub.

    python -m retrieval.sharing card --checkpoint runs/tap/best [--license cc-by-4.0]
    python -m retrieval.sharing convert --checkpoint laion/clap-htsat-unfused --output DIR
    python -m retrieval.sharing push --checkpoint runs/tap/best --repo user/name \\
        [--private] [--license cc-by-4.0]

train.py writes the card, README.md in the model folder: results, training data, settings. `card`
writes it anew, with a licence, with the scores of RUN/metrics.json, and for models of earlier
versions. `convert` makes a model folder of this project from a pretrained model: CLAP or PE-Audio,
in a folder or on the hub, or a .ckpt of salsa. `push` uploads weights, configuration, tokenizer and
card as they are in the folder. Everybody then loads the model by
`DualEncoder.from_pretrained("user/name")`. From Python: `model.push_to_hub("user/name")`. The token
comes from `hf auth login` or HF_TOKEN.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from retrieval.base.checkpoints import hub_name, is_own_folder
from retrieval.base.errors import OneLineParser, UserError
from retrieval.base.files import check_writable, read_json
from retrieval.base.folders import check_has_name, whole_folder
from retrieval.base.launch import check_environment
from retrieval.evaluation.options import CHECKPOINT_HELP, TEXT_ENCODER_HELP

UPLOADED = (
    *("README.md", "about.json", "config.json", "model.safetensors", "tokenizer/*"),
    "adapters/*/*",
)
LICENSE = re.compile(r"[a-z0-9][a-z0-9.\-]*")  # as the hub writes them: cc-by-4.0, mit, other


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    check_environment(several=False)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if arguments.command == "card":
        renew_card(arguments.checkpoint, arguments.license, arguments.overwrite)
        print(f"written: {arguments.checkpoint / 'README.md'}")
    elif arguments.command == "convert":
        convert(arguments.checkpoint, arguments.output, arguments.text_encoder, arguments.license)
        print(f"written: {arguments.output}")
    else:
        from huggingface_hub.utils import disable_progress_bars

        if arguments.quiet or not sys.stderr.isatty():
            disable_progress_bars()
        address = push(arguments.checkpoint, arguments.repo, arguments.private, arguments.license)
        size = sum(
            path.stat().st_size
            for pattern in UPLOADED
            for path in arguments.checkpoint.glob(pattern)
        )
        print(f"uploaded: {arguments.checkpoint} to {address} ({size / 1e6:.1f} MB)")
    return 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m retrieval.sharing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    card = commands.add_parser("card", help="write the model card anew")
    card.add_argument(
        "--overwrite", action="store_true", help="replace also a card that was edited by hand"
    )
    upload = commands.add_parser("push", help="upload the model folder")
    upload.add_argument(
        "--repo", required=True, metavar="USER/NAME", help="repository; made if it does not exist"
    )
    upload.add_argument(
        "--private", action="store_true", help="only the owner sees a new repository"
    )
    upload.add_argument("--quiet", action="store_true", help="no progress")
    convert = commands.add_parser(
        "convert", help="make a model folder of this project from a pretrained model"
    )
    convert.add_argument("--checkpoint", type=Path, required=True, help=CHECKPOINT_HELP)
    convert.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder")
    convert.add_argument("--text-encoder", type=Path, metavar="NAME", help=TEXT_ENCODER_HELP)
    for command in (card, upload):
        command.add_argument(
            "--checkpoint", type=Path, required=True, help="model folder, such as runs/tap/best"
        )
    for command in (card, upload, convert):
        command.add_argument(
            "--license",
            help="licence of the model, as the hub writes it: cc-by-4.0, mit, apache-2.0, other",
        )
    arguments = parser.parse_args(argv)
    if arguments.license is not None and not LICENSE.fullmatch(arguments.license):
        parser.error(
            f"--license {arguments.license!r} is not an identifier of the hub, such as cc-by-4.0,"
            " mit or other: lower case, no blanks"
        )
    return arguments


def renew_card(folder: Path, license: str | None = None, overwrite: bool = False) -> None:
    """Write README.md and about.json of a model folder anew.

    A model of an earlier version, without about.json, is described from its run folder: the
    settings in RUN/config.yaml, the caches that they name, and the scores in RUN/metrics.json, as
    far as these are there.

    Args:
        folder: The model folder.
        license: Of the model, as the hub writes it; None keeps the one that is set.
        overwrite: Replace a card that was edited by hand.

    Raises:
        UserError: The folder holds no model, or its card was edited by hand.
    """
    from retrieval.config import read_config
    from retrieval.models.card import CARD, is_unedited, write_card
    from retrieval.models.record import ScoreRecord, TrainingRecord, read_record, without_folders
    from retrieval.training.splits import open_splits

    architecture, record = read_architecture(folder), read_record(folder)
    if not is_unedited(folder, record) and not overwrite:
        raise UserError(
            f"{folder / CARD} was edited by hand: edit `license` in its first lines there, or write"
            " it anew by `card --overwrite`"
        )
    run, name = folder.resolve().parent, folder.resolve().name
    if record == TrainingRecord() and (run / "config.yaml").is_file():
        config = read_config(run)
        try:
            data = open_splits(config).records()
        except UserError:
            data = []
        settings = without_folders(config.model_dump())
        commit = _read_if_there(run / "environment.json").get("git_commit")
        record = TrainingRecord(data=data, settings=settings, git_commit=commit)
    final = _read_if_there(run / "metrics.json")
    if record.validation is None and name == "best" and "validation_mAP@10" in final:
        metrics = {"text_to_audio": {"mAP@10": final["validation_mAP@10"]}}
        scores = ScoreRecord(epoch=final.get("best_epoch"), metrics=metrics)
        record = record.updated(validation=scores)
    if record.evaluation is None and isinstance(final.get(name), dict):
        record = record.updated(evaluation=ScoreRecord(metrics=final[name]))
    if license:
        record = record.updated(license=license)
    write_card(folder, architecture, record)


def push(folder: Path, repo: str, private: bool = False, license: str | None = None) -> str:
    """Upload a model folder to the hub.

    The model is loaded first: if it does not load here, it loads nowhere.

    Args:
        folder: The model folder.
        repo: USER/NAME, made if it does not exist.
        private: Only its owner sees a new repository.
        license: Of the model, as the hub writes it; the card is then written anew.

    Returns:
        The address of the repository.

    Raises:
        UserError: The model does not load or is not finite, or the hub refuses it.
    """
    from huggingface_hub import HfApi

    from retrieval.models.dual_encoder import DualEncoder, check_finite
    from retrieval.models.hub import explained_upload

    check_is_folder(folder)
    check_finite(DualEncoder.from_pretrained(folder), str(folder), "share")
    with explained_upload(repo):
        if license or not (folder / "README.md").exists():
            renew_card(folder, license)
        api = HfApi()
        # None: the account's settings decide
        repo_id = api.create_repo(repo, private=True if private else None, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=list(UPLOADED),
            commit_message="Upload of a retrieval model",
        )
        return str(commit.repo_url)


def convert(
    checkpoint: Path,
    output: Path,
    text_encoder: Path | None = None,
    license: str | None = None,
) -> None:
    """Make a model folder of any checkpoint; it is there whole or not at all.

    Args:
        checkpoint: As load_pretrained takes it.
        output: The new folder.
        text_encoder: Tokenizer of a .ckpt, a folder or hub name; None: roberta-large.
        license: Of the model, as the hub writes it, for its card.

    Raises:
        UserError: The checkpoint does not load, or `output` exists or cannot be written.
    """
    from retrieval.models.pretrained import load_pretrained

    check_has_name(output)
    check_writable(output.parent)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output} exists: give a new folder")
    model = load_pretrained(checkpoint, text_encoder)
    if license:
        model.record = model.record.updated(license=license)
    with whole_folder(output, "the model") as folder:
        model.save_pretrained(folder)


def read_architecture(folder: Path) -> dict[str, Any]:
    """Read config.json of a model folder; raises UserError if it holds no model."""
    from retrieval.models.dual_encoder import check_folder

    check_is_folder(folder)
    check_folder(folder)
    return read_json(folder / "config.json")


def check_is_folder(checkpoint: Path) -> None:
    """Raise UserError if the checkpoint is not a folder that this project may have written."""
    if hub_name(checkpoint) or (checkpoint.exists() and not is_own_folder(checkpoint)):
        raise UserError(
            f"checkpoint {checkpoint} is not a model folder of this project: make one by"
            f" `python -m retrieval.sharing convert --checkpoint {checkpoint} --output DIR`, and"
            " give that"
        )
    if not checkpoint.is_dir():
        raise UserError(
            f"checkpoint {checkpoint} does not exist, or is not a folder; train.py writes RUN/best"
            " and RUN/last"
        )


def _read_if_there(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}
