"""Classify the clips of a cache by labels that the model has not been trained on.

    python -m retrieval.zero_shot --checkpoint runs/tap/best --cache DIR --labels FILE
        [--template "This is a sound of {}."] [--output FILE]

A clip gets the label whose sentence fits it best. FILE is either a CSV `file_name,label` of the
right labels, with several rows for a clip with several labels: then accuracies are printed. Or it
holds one label per line, and --output writes predictions. `_` in a label is read as a blank; put a
label with commas into quotes.

With several --template the score of a label is the mean of its sentences' scores. This equals
CLIP's average of text embeddings, and holds for text-aware attention as well. The clips need no
captions (data_prep/build_folder.py --without-captions).
"""

import argparse
import csv
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retrieval.base.errors import OneLineParser, UserError, one_line
from retrieval.base.files import atomic_writer, check_not_among, check_outputs
from retrieval.base.launch import check_environment
from retrieval.base.progress import set_quiet, silence_transformers
from retrieval.base.sound_files import normalise_name
from retrieval.evaluation.metrics.text_audio_retrieval.ranking import (
    average_precision,
    ranks_of_both_directions,
    recall,
)
from retrieval.evaluation.options import (
    CHECKPOINT_HELP,
    TEXT_ENCODER_HELP,
    check_checkpoints,
)
from retrieval.evaluation.relevance import quoted

if TYPE_CHECKING:
    from retrieval.data import ClipSplit

TEMPLATE = "This is a sound of {}."
COLUMNS = ("file_name", "label")
# First fields of tables that are not a list of labels: usual names of these columns, and AudioSet's
# own index,mid,display_name.
HEADER_WORDS = {
    *COLUMNS,
    *("filename", "file", "fname", "path", "mid", "display_name"),
    *("labels", "category", "class", "class_name", "target"),
}


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    set_quiet(arguments.quiet)
    labels, labels_of_file = read_labels(arguments.labels)
    if labels_of_file is None and not arguments.output:
        raise UserError(
            f"--labels {arguments.labels} does not say which clip has which label: add --output"
            " FILE for the predictions"
        )
    check_environment()
    # Below the checks, because it takes seconds to import.
    from retrieval.evaluation.score_matrix import Scorer

    silence_transformers()
    scorer = Scorer([arguments.checkpoint], arguments.cache, arguments.text_encoder)
    split = scorer.cache.split(arguments.split, need_captions=False)
    right = labels_of_clips(labels_of_file, split) if labels_of_file else None
    sentences = [
        template.format(as_text(label)) for template in arguments.template for label in labels
    ]
    scores = scorer.matrix(sentences, split).numpy()  # (K L, B)
    scores = scores.reshape(len(arguments.template), len(labels), -1).mean(axis=0)  # (L, B)
    if not scorer.accelerator.is_main_process:
        return 0
    if right is not None:
        num_clips = sum(map(bool, right))
        chance = 100 * chance_of_top_1(right, len(labels))
        print(f"{num_clips} clips, {len(labels)} labels, %; chance, top-1: {chance:.2f}")
        if num_clips < len(right):
            print(f"{len(right) - num_clips} clips that --labels does not name are left out")
        numbers = [[labels.index(label) for label in names] for names in right]
        for name, value in accuracies(scores, numbers).items():
            print(f"{name:<26}{100 * value:8.2f}")
    if arguments.output:
        write_predictions(arguments.output, labels, split.file_names, scores)
        print(f"written: {arguments.output}")
    return 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help=CHECKPOINT_HELP)
    add("--text-encoder", type=Path, metavar="NAME", help=TEXT_ENCODER_HELP)
    add(
        "--cache",
        type=Path,
        help="Arrow cache; default: data.cache in the config.yaml beside the model folder",
    )
    add("--split", default="evaluation", help="default: evaluation")
    add(
        "--labels",
        type=Path,
        required=True,
        metavar="FILE",
        help="CSV file_name,label, or one label per line",
    )
    add(
        "--template",
        action="append",
        metavar="TEXT",
        help=f"sentence with {{}} for the label; default: {TEMPLATE}",
    )
    add("--output", type=Path, metavar="FILE", help="CSV of predictions: file_name,label,score")
    add("--quiet", action="store_true", help="show no progress")
    arguments = parser.parse_args(argv)
    arguments.template = arguments.template or [TEMPLATE]
    for template in arguments.template:
        if template.count("{}") != 1 or template.count("{") + template.count("}") != 2:
            raise UserError(
                f"--template {template!r}: must hold {{}} once, where the label goes, and no other"
                " braces"
            )
    check_checkpoints([arguments.checkpoint])
    if arguments.output:
        check_outputs([arguments.output])
        check_not_among("--output", arguments.output, [arguments.labels])
    return arguments


def as_text(label: str) -> str:
    """Spell a label as it stands in a sentence."""
    return " ".join(label.replace("_", " ").split())


def read_labels(path: Path) -> tuple[list[str], dict[str, list[str]] | None]:
    """Read a list of labels, or a table of the clips' right labels.

    Returns:
        Labels in order of appearance; from a table also the labels of each file name, else None.

    Raises:
        UserError: The file cannot be read, has one label only, or one label in two spellings.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader(file, skipinitialspace=True), [])
        if set(COLUMNS) <= {field.strip() for field in header}:
            labels_of_file = _read_table(path)
            labels = [label for names in labels_of_file.values() for label in names]
        else:
            labels_of_file, labels = None, _read_list(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--labels {path} cannot be read ({one_line(error)})") from None
    labels = list(dict.fromkeys(labels))
    if len(labels) < 2:
        raise UserError(
            f"--labels {path} has {len(labels)} different label(s); two are needed to choose from"
        )
    first_of_text: dict[str, str] = {}
    for label in labels:
        if not as_text(label):
            raise UserError(f"--labels {path} has a label without text: {label!r}; remove it")
        if (first := first_of_text.setdefault(as_text(label), label)) != label:
            raise UserError(
                f"--labels {path}: {first!r} and {label!r} are read as one label, since _ is a"
                " blank; spell it one way"
            )
    return labels, labels_of_file


def _read_table(path: Path) -> dict[str, list[str]]:
    """Read the labels of each file name. Raises UserError for an incomplete row."""
    labels_of_file: dict[str, list[str]] = {}
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, skipinitialspace=True)
        header = [field.strip() for field in next(reader)]
        for row in reader:
            fields = [field.strip() for field in row]
            if not any(fields):
                continue
            place = f"--labels {path}, line {reader.line_num}"
            if len(fields) > len(header):
                raise UserError(
                    f"{place}: {len(fields)} fields, expected {len(header)}; put a label with"
                    " commas into quotes"
                )
            values = dict(zip(header, fields, strict=False))
            name, label = (values.get(column) for column in COLUMNS)
            if not name or not label:
                raise UserError(f"{place}: a row lacks its {'label' if name else 'file_name'}")
            labels_of_file.setdefault(name, []).append(label)
    return labels_of_file


def _read_list(path: Path) -> list[str]:
    """Read one label per line.

    Raises UserError for a table: named columns, or the same number of them in every line.
    """
    lines = [
        line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()
    ]
    for mark in ",;\t" if lines else "":
        rows = [next(csv.reader([line], delimiter=mark, skipinitialspace=True)) for line in lines]
        has_header = bool({field.strip().lower() for field in rows[0]} & HEADER_WORDS)
        num_fields = {len(row) for row in rows}
        if has_header or (len(num_fields) == 1 and num_fields != {1}):
            raise UserError(
                f"--labels {path} looks like a table, its first line is {lines[0][:60]!r}: expected"
                f" a CSV with the columns {','.join(COLUMNS)}, or a list without a header, one"
                " label per line, where a label with commas stands in quotes"
            )
    return [next(csv.reader([line]))[0] if line[0] == line[-1] == '"' else line for line in lines]


def labels_of_clips(labels_of_file: dict[str, list[str]], split: "ClipSplit") -> list[list[str]]:
    """Return the right labels of each clip; a list may be empty.

    Raises:
        UserError: The split lacks some of the files.
    """
    known: dict[str, list[str]] = {}
    for name, labels in labels_of_file.items():
        known.setdefault(normalise_name(name), []).extend(labels)
    names = [normalise_name(name) for name in split.file_names]
    present = set(names)
    unknown = [name for name in labels_of_file if normalise_name(name) not in present]
    if unknown:
        raise UserError(
            f"--labels names {len(unknown)} of {len(labels_of_file)} files that split"
            f" {split.name!r} of the cache lacks: {quoted(unknown)}; leave out their rows, or build"
            " a cache of all files (data_prep/build_folder.py --without-captions)"
        )
    return [known.get(name, []) for name in names]


def accuracies(scores: np.ndarray, right: list[list[int]]) -> dict[str, float]:
    """Compute the accuracies of a classification. Ties count against the clip.

    Args:
        scores: (L, B), labels by clips.
        right: For each clip its labels. Clips without a label do not count.

    Returns:
        Fractions. "top-1", "top-5": one of the clip's labels is the best, or among the five best.
        "top-1, class-balanced": top-1 of the clips of each label, then the mean over labels.
        "mAP over labels": each label ranks all clips; mean of the average precisions.
    """
    clips = [clip for clip, labels in enumerate(right) if labels]
    right = [right[clip] for clip in clips]
    ranks = ranks_of_both_directions(scores[:, clips].T, right)
    # here the queries are the clips, then the labels
    of_clips, of_labels = ranks["text_to_audio"], ranks["audio_to_text"]
    top_1 = [recall(query, 1) for query in of_clips]
    balanced = [
        np.mean([hit for hit, labels in zip(top_1, right, strict=True) if label in labels])
        for label in sorted({label for labels in right for label in labels})
    ]
    precisions = [average_precision(query, len(clips)) for query in of_labels]
    return {
        "top-1": float(np.mean(top_1)),
        "top-5": float(np.mean([recall(query, 5) for query in of_clips])),
        "top-1, class-balanced": float(np.mean(balanced)),
        "mAP over labels": float(np.mean(precisions)),
    }


def chance_of_top_1(right: list[list[str]], num_labels: int) -> float:
    """Return the expected top-1 of a random label: the mean share of right labels.

    Clips without a label do not count.
    """
    return float(np.mean([len(set(labels)) / num_labels for labels in right if labels]))


def write_predictions(
    path: Path, labels: list[str], file_names: list[str], scores: np.ndarray
) -> None:
    """Write a CSV file_name,label,score with the best label of each clip, from scores (L, B)."""
    with atomic_writer(path) as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "score"])
        for name, best, clip in zip(file_names, scores.argmax(axis=0), scores.T, strict=True):
            writer.writerow([name, labels[best], f"{clip[best]:.6f}"])
