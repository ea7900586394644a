"""Any folder of audio files, with captions or without -> Arrow cache.

    python data_prep/build_folder.py --audio recordings     # dog.wav, and dog.txt with captions
    python data_prep/build_folder.py --audio recordings --csv captions.csv \\
        --fractions 0.8 0.1 0.1 --seed 1
    python data_prep/build_folder.py --audio recordings --csv captions.csv --split evaluation \\
        --output data/mine
    python data_prep/build_folder.py --audio recordings --without-captions     # search, labels
    python data_prep/build_folder.py --audio recordings --moments moments.csv  # when sounds occur

The CSV has the columns `file_name` (relative to `--audio`, with sub-folders) and `caption`, or
`caption_1`, `caption_2`, ...; rows of one file are one clip. A column `split` (development,
validation, evaluation) gives the split of a clip. Without it, all clips go to `--split`, or are
divided by `--fractions`: by clip, so that no recording is in two splits, and always in the same way
for the same files and seed. With `--without-captions` every sound file is a clip, and captions are
ignored. `--moments` reads `file_name,query,start,end`, times in seconds or as 1:23.5, optionally
`qid` and `split`; a clip without captions takes its queries as captions. Sounds are found under
any file name, including films (docs/corpora.md). Writes `<audio>/cache`. Exit code 0, 2 (error, one
line), 130 (interrupted: the same command goes on).
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # import from the repository, and nothing from this folder
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(path for path in sys.path if Path(path).resolve() != here)]

from data_prep.command import run  # first: from here on Ctrl-C prints one line

# isort: split

import argparse
import unicodedata
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath

from data_prep.cache.build_command import (
    add_fractions,
    build_from_plans,
    build_parser,
    check_fractions,
    check_options,
    check_output,
)
from data_prep.cache.shards import Clip
from data_prep.cache.split_plan import Skipped, SplitPlan
from data_prep.corpora.audio_files import audio_of_corpus, best_of, passed_over_note, readable_name
from data_prep.corpora.csv_files import caption_columns, one_spaced, read_csv
from data_prep.corpora.moments_csv import read_moments_csv
from retrieval.base.command import run_main
from retrieval.base.errors import UserError
from retrieval.base.progress import set_quiet
from retrieval.base.sound_files import why_unreadable, without_ending
from retrieval.data.moments import MomentQuery
from retrieval.data.schema import DEVELOPMENT, EVALUATION, SPLITS


@dataclass
class _Captions:
    """Captions and queries of a file, and its split: empty before it is assigned."""

    texts: list[str]
    split: str = ""
    moments: tuple[MomentQuery, ...] = ()


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = build_parser(__doc__)
    parser.add_argument(
        "--audio", type=Path, required=True, help="folder with the audio files, in any sub-folders"
    )
    sources = parser.add_mutually_exclusive_group()
    sources.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="captions (default: a .txt file of the same name beside each audio file)",
    )
    sources.add_argument(
        "--without-captions", action="store_true", help="every audio file is a clip that has none"
    )
    moments_help = "times: file_name,query,start,end, a row for each window, optionally qid, split"
    parser.add_argument("--moments", type=Path, metavar="FILE", help=moments_help)
    parser.add_argument("--output", type=Path, help="cache folder to write (default: AUDIO/cache)")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "--split",
        choices=SPLITS,
        help="where all clips go (default: development, or evaluation without captions)",
    )
    add_fractions(ways)
    parser.add_argument("--seed", type=int, help="of --fractions (default: 0)")
    return parser.parse_args(argv)


def build(arguments: argparse.Namespace) -> None:
    check_options(arguments)
    check_fractions(arguments.fractions, arguments.seed)
    output = arguments.output or arguments.audio / "cache"
    sources = {"--audio": arguments.audio, "--csv": arguments.csv, "--moments": arguments.moments}
    check_output(output, {option: path for option, path in sources.items() if path})
    found = audio_of_corpus(arguments.audio, "--audio")
    files: dict[str, Path] = {}  # by name as in a CSV: slashes, and accents as one character
    for path in found.paths:
        name = _name(readable_name(str(path.relative_to(arguments.audio))))
        if name in files:
            raise UserError(
                f"{arguments.audio}: two files are named {name!r}, in two spellings: rename one of"
                " them"
            )
        files[name] = path
    if arguments.without_captions:
        captions = {name: _Captions([]) for name in files}
    elif arguments.csv:
        captions = _captions_of_csv(arguments.csv)
    else:
        captions = _captions_of_text_files(files, required=not arguments.moments)
    if arguments.moments:
        _add_moments(captions, arguments)
    _assign_splits(captions, arguments)
    plans = [_plan(split, captions, files, arguments) for split in SPLITS]
    plans = [plan for plan in plans if plan.clips or plan.lost]
    unused = [name for name in files if name not in captions]
    plans[0].unused += [Skipped(plans[0].name, name, "no captions") for name in unused]
    if not arguments.csv:
        found.passed_over.pop(".txt", None)  # they hold captions
    plans[0].notes += passed_over_note(found)
    build_from_plans("folder", output, plans, arguments)


def _captions_of_csv(path: Path) -> dict[str, _Captions]:
    """Return the captions of each file name, in the order of the CSV."""
    rows = read_csv(path, ("file_name",), ["utf-8-sig"])
    if not rows:
        raise UserError(f"{path} has no rows")
    columns = [column for column in rows[0] if column == "caption"] + caption_columns(rows[0])
    if not columns:
        raise UserError(
            f"{path}: expected a column caption, or caption_1, caption_2, ...; found:"
            f" {', '.join(rows[0])}"
        )
    captions: dict[str, _Captions] = {}
    for row in rows:
        split, name = row.get("split", "").strip(), _name(row["file_name"])
        if "split" in row and split not in SPLITS:
            raise UserError(
                f"{path}: split {split!r} of {row['file_name']!r} is none of {', '.join(SPLITS)},"
                " as train, val, test are called here"
            )
        clip = captions.setdefault(name, _Captions([], split))
        if clip.split != split:
            raise UserError(
                f"{path}: {row['file_name']!r} is in {clip.split} and in {split}; a clip belongs to"
                " one split"
            )
        clip.texts += [text for column in columns if (text := one_spaced(row[column]))]
    return captions


def _captions_of_text_files(files: dict[str, Path], required: bool) -> dict[str, _Captions]:
    names_of_text_file: dict[Path, list[str]] = {}
    for name, path in files.items():
        text_file = path.with_name(f"{without_ending(path.name)}.txt")
        names_of_text_file.setdefault(text_file, []).append(name)
    captions = {}
    for text_file, names in names_of_text_file.items():
        if not text_file.is_file():
            continue
        try:
            lines = text_file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise UserError(f"{text_file} cannot be read: {reason}") from None
        # dog.wav and dog.m4a are one clip
        best = best_of([files[name] for name in names])
        name = next(name for name in names if files[name] == best)
        captions[name] = _Captions([text for line in lines if (text := one_spaced(line))])
    if required and not captions:
        raise UserError(
            "no audio file has a .txt file of the same name beside it: write one caption per line"
            " there, or give --csv, --moments or --without-captions"
        )
    return captions


def _add_moments(captions: dict[str, _Captions], arguments: argparse.Namespace) -> None:
    """Add the queries of --moments; a clip without captions takes them as captions."""
    for name, file in read_moments_csv(arguments.moments, _name).items():
        clip = captions.setdefault(name, _Captions([], file.split))
        if file.split and clip.split and file.split != clip.split:
            raise UserError(
                f"{arguments.moments}, line {file.line}: {name!r} is in {file.split}, in"
                f" {clip.split} by {arguments.csv}; a clip belongs to one split"
            )
        clip.split = clip.split or file.split
        clip.moments = tuple(file.queries)
        if not clip.texts and not arguments.without_captions:
            heard = (query for query in file.queries if any(s < e for s, e in query.windows))
            clip.texts = list(dict.fromkeys(query.query for query in heard))


def _assign_splits(captions: dict[str, _Captions], arguments: argparse.Namespace) -> None:
    if any(clip.split for clip in captions.values()):
        tables = " or ".join(str(path) for path in (arguments.csv, arguments.moments) if path)
        if arguments.split or arguments.fractions:
            raise UserError(
                f"{tables} has a column split: leave out --split and --fractions, or remove the"
                " column"
            )
        if bare := [name for name, clip in captions.items() if not clip.split]:
            raise UserError(
                f"{len(bare)} clips have no split, first {bare[0]!r}: {tables} has a column split;"
                " name them there, or remove the column"
            )
        return
    usual = EVALUATION if arguments.without_captions else DEVELOPMENT
    splits = dict.fromkeys(captions, arguments.split or usual)
    if arguments.fractions:
        seed = arguments.seed or 0
        # a digest's order does not depend on the order of the files
        names = sorted(captions, key=lambda name: sha256(f"{seed}\n{name}".encode()).digest())
        ends = [round(sum(arguments.fractions[: number + 1]) * len(names)) for number in range(3)]
        for split, share, start, end in zip(SPLITS, arguments.fractions, [0, *ends], ends):
            if share and start == end:
                raise UserError(
                    f"--fractions: {share:g} of {len(names)} clips gives no clip for {split}; give"
                    " more clips or a larger share"
                )
            splits.update(dict.fromkeys(names[start:end], split))
    for name, clip in captions.items():
        clip.split = splits[name]


def _plan(
    split: str,
    captions: dict[str, _Captions],
    files: dict[str, Path],
    arguments: argparse.Namespace,
) -> SplitPlan:
    plan, need_captions = SplitPlan(split, clips=[]), not arguments.without_captions
    for name, clip in captions.items():
        if clip.split != split:
            continue
        if name not in files:
            plan.lost.append(Skipped(split, name, _why_not_found(name, arguments.audio)))
        elif need_captions and not clip.texts:
            without_window = "none of its queries has a window"
            reason = without_window if clip.moments else "all captions are empty"
            plan.lost.append(Skipped(split, name, reason))
        elif reason := why_unreadable(files[name]):
            plan.lost.append(Skipped(split, name, reason))
        else:
            path, texts = str(files[name]), tuple(clip.texts)
            plan.clips.append(Clip(f"{split}/{name}", name, path, texts, {}, clip.moments))
    return plan


def _why_not_found(name: str, audio: Path) -> str:
    """Return why a name in the CSV has no file; an existing file is not called absent."""
    path = audio / name
    if not path.exists():
        return "named in the CSV, no such audio file"
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return "named in the CSV by another path: give one that is relative to --audio and below it"
    if not path.is_file():
        return "named in the CSV, is not a file"
    if any(part.startswith(".") for part in PurePosixPath(name).parts):
        return "named in the CSV, is hidden: its name, or that of its folder, begins with a dot"
    return "named in the CSV, exists, but is not a sound file by its ending or its first bytes"


def _name(text: str) -> str:
    return str(PurePosixPath(unicodedata.normalize("NFC", text.strip()).replace("\\", "/")))


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    set_quiet(arguments.quiet)
    return run(lambda: build(arguments))


if __name__ == "__main__":
    run_main(main)
