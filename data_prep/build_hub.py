"""Any dataset of the library `datasets` with sounds and captions -> Arrow cache.

    python data_prep/build_hub.py --dataset OpenSound/AudioCaps --id-column youtube_id start_time \\
        --output data/audiocaps_hub
    python data_prep/build_hub.py --dataset downloads/my_corpus --split development=train \\
        evaluation=test --output data/mine
    python data_prep/build_hub.py --dataset parquet --data-files https://host/a.parquet \\
        --fractions 0.8 0.1 0.1 --output data/mine

The dataset is a name on the Hugging Face hub, a folder (Parquet, audiofolder, WebDataset tars,
JSON, CSV, or written by `save_to_disk`), or a kind of files with `--data-files`. The command finds
columns and splits by their usual names and prints them. Sounds are decoded by this project's own
readers; no code of a dataset runs. Writes `--output`. Exit code 0, 2 (error, one line), 130
(interrupted: the same command goes on). More: docs/corpora.md.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # import from the repository, and nothing from this folder
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(path for path in sys.path if Path(path).resolve() != here)]

from data_prep.command import run  # first: from here on Ctrl-C prints one line

# isort: split

import argparse

from data_prep.cache.arrow_cache import CacheSettings
from data_prep.cache.build_command import (
    CODECS,
    add_fractions,
    build_parser,
    check_fractions,
    check_options,
    check_output,
)
from data_prep.cache.split_plan import print_report
from data_prep.cache.stream import build_from_stream
from data_prep.corpora.exclusions import Exclusions
from retrieval.base.command import run_main
from retrieval.base.errors import UserError
from retrieval.base.progress import set_quiet
from retrieval.data.schema import DEVELOPMENT, SPLITS, VALIDATION


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = build_parser(__doc__)
    dataset_help = (
        "name on the hub, folder, or parquet, webdataset, audiofolder, json, csv or arrow with"
        " --data-files"
    )
    parser.add_argument("--dataset", required=True, help=dataset_help)
    parser.add_argument("--config", help="configuration of the dataset, where it has several")
    parser.add_argument("--revision", help="branch, tag or commit of a dataset on the hub")
    parser.add_argument(
        "--data-files",
        nargs="+",
        metavar="SOURCE",
        help="files or URLs, each perhaps with SPLIT= before it (default: the split train)",
    )
    parser.add_argument(
        "--split",
        nargs="+",
        metavar="OURS=THEIRS",
        help="OURS is development, validation or evaluation; THEIRS is a split of the dataset."
        " Several THEIRS may be joined into one OURS (default: train, validation and test become"
        " the three)",
    )
    add_fractions(parser)
    parser.add_argument("--seed", type=int, help="of --fractions (default: 0)")
    parser.add_argument("--audio-column", metavar="COLUMN", help="sounds (default: found)")
    parser.add_argument(
        "--caption-columns",
        nargs="+",
        metavar="COLUMN",
        help="texts or lists of texts; json.captions is a field of a struct (default: found)",
    )
    parser.add_argument(
        "--caption-separator",
        metavar="TEXT",
        help="a text that stands between several captions in one string",
    )
    parser.add_argument(
        "--id-column",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="rows with the same values there are one clip (default: every row is a clip)",
    )
    parser.add_argument(
        "--keep-columns", nargs="+", default=[], metavar="COLUMN", help="metadata for the cache"
    )
    parser.add_argument("--output", type=Path, required=True, help="cache folder to write")
    parser.add_argument(
        "--streaming",
        action="store_true",
        help="read a dataset of the hub over the network; default: download it first, to the hub's"
        " own cache",
    )
    parser.add_argument(
        "--exclude-clotho",
        type=Path,
        metavar="ROOT",
        help="Clotho's folder: its validation and evaluation clips are left out of development",
    )
    parser.add_argument(
        "--exclude-ids",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="CSV files with a column sound_id: Freesound clips to leave out of development",
    )
    parser.add_argument(
        "--exclude-audiocaps",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="CSV files with a column youtube_id: videos to leave out of development",
    )
    parser.add_argument(
        "--freesound-column",
        metavar="COLUMN",
        help="Freesound ids (default: sound_id or freesound_id, if there)",
    )
    parser.add_argument(
        "--youtube-column",
        metavar="COLUMN",
        help="YouTube ids (default: youtube_id, ytid or video_id, if there)",
    )
    return parser.parse_args(argv)


def build(arguments: argparse.Namespace) -> None:
    check_options(arguments)
    check_fractions(arguments.fractions, arguments.seed)
    folder = Path(arguments.dataset)
    check_output(arguments.output, {"--dataset": folder} if folder.exists() else {})
    if folder.is_dir() and arguments.output.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"--output {arguments.output} lies in the dataset {folder}, and would become part of"
            " it: choose another folder"
        )
    if arguments.caption_separator == "":
        raise UserError("--caption-separator is empty: give the text between two captions")
    exclusions = Exclusions()
    if arguments.exclude_clotho:
        exclusions.add_clotho(arguments.exclude_clotho)
    for path in arguments.exclude_ids:
        exclusions.add_freesound_list(path)
    for path in arguments.exclude_audiocaps:
        exclusions.add_audiocaps(path)

    # here: `datasets` takes a second, and --help and errors above should not wait for it
    from data_prep.corpora.hub_clips import FREESOUND, YOUTUBE, Deal, HubClips, choose_columns
    from data_prep.corpora.hub_dataset import open_dataset

    dataset, splits = open_dataset(
        arguments.dataset,
        arguments.config,
        arguments.revision,
        arguments.data_files,
        arguments.split,
        arguments.streaming,
    )
    deal = None
    if arguments.fractions:
        deal = Deal(dict(zip(SPLITS, arguments.fractions)), arguments.seed or 0)
        splits = deal.splits(dataset.name, splits)
    columns = choose_columns(
        dataset,
        arguments.audio_column,
        arguments.caption_columns,
        arguments.id_column,
        arguments.keep_columns,
        arguments.freesound_column,
        arguments.youtube_column,
        arguments.caption_separator,
    )
    for kind, is_given, option in (
        (FREESOUND, exclusions.has_freesound, "--freesound-column"),
        (YOUTUBE, exclusions.has_youtube, "--youtube-column"),
    ):
        if is_given and kind not in columns.external:
            raise UserError(
                f"clips are to be left out by {kind}, but {dataset.name} has no column of a usual"
                f" name for it: name it with {option}"
            )
    names = "; ".join(f"{ours} = {' + '.join(theirs)}" for ours, theirs in splits.items())
    print(f"{dataset.name} ({dataset.kind}): {names}")
    print(
        f"columns: sounds {columns.audio}; captions {', '.join(columns.captions)};"
        f" {'clips by ' + ', '.join(columns.ids) if columns.ids else 'every row is a clip'}",
        flush=True,
    )
    if DEVELOPMENT in splits and VALIDATION not in splits:
        print(
            "note: train.py needs a validation split, and the dataset has none: give one of its"
            " splits that name, such as --split development=train validation=test, or divide"
            " the clips, such as --fractions 0.8 0.1 0.1",
            flush=True,
        )
    for kind, column in columns.external.items():
        given = exclusions.has_freesound if kind == FREESOUND else exclusions.has_youtube
        if DEVELOPMENT in splits and not given:
            option = "--exclude-clotho" if kind == FREESOUND else "--exclude-audiocaps"
            print(
                f"note: {column} holds {kind}s: to leave out clips that another corpus tests with,"
                f" give {option}",
                flush=True,
            )
    corpus = HubClips(dataset, splits, columns, exclusions, deal)
    codec, max_seconds = CODECS[arguments.codec], arguments.max_seconds or None
    settings = CacheSettings("hub", codec, arguments.sample_rate, max_seconds)
    info, plans = build_from_stream(
        arguments.output,
        settings,
        corpus,
        arguments.num_proc,
        arguments.allow_missing / 100,
        arguments.overwrite,
    )
    print_report(info, plans)
    print(f"cache: {arguments.output}")


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    set_quiet(arguments.quiet)
    return run(lambda: build(arguments))


if __name__ == "__main__":
    run_main(main)
