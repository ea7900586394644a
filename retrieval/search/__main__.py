"""Index a folder of recordings, and find those that a sentence describes, or that sound like
another.

    python -m retrieval.search index FOLDER --checkpoint runs/tap/best --index DIR    # again after changes: only those are encoded
    python -m retrieval.search query "a dog barks twice" --index DIR [-k 10] [--json] [--csv FILE]
    python -m retrieval.search query --audio dog.wav --index DIR                      # more like this
    python -m retrieval.search query --queries FILE --index DIR                       # a query a line, or a CSV with a column caption

Reads WAV, FLAC, Ogg, Opus, MP3, AIFF, M4A, the sound of MP4 and WebM, and more (docs/corpora.md),
under any file name. Files of any length are cut into overlapping excerpts, so that an answer is a
file and a time. An answer has rank, score, file and the seconds that hold half of the attention
that TAP pays to the file's excerpt (other poolings: the excerpt).
"""

import argparse
import csv
import json
import sys
import time
from pathlib import Path, PurePosixPath
from typing import Any

from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError, user_path
from retrieval.base.files import atomic_writer, check_not_among, check_writable
from retrieval.base.launch import check_environment
from retrieval.base.progress import set_quiet, silence_transformers

FILES_LISTED = 20
COLUMNS = (
    "query",
    "rank",
    "score",
    "file",
    "from",
    "to",
    "excerpt_from",
    "excerpt_to",
    "file_seconds",
)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    set_quiet(arguments.quiet)
    check_environment(several=False)
    silence_transformers()  # below the checks, because it takes seconds to import
    return index(arguments) if arguments.command == "index" else query(arguments)


def index(arguments: argparse.Namespace) -> int:
    from retrieval.search.index import AudioIndex

    started = time.monotonic()
    settings = {
        name: getattr(arguments, name)
        for name in ("hop_seconds", "batch_size", "mixed_precision", "overwrite")
    }
    built = AudioIndex.build(arguments.folder, arguments.checkpoint, arguments.index, **settings)
    for file, reason in built.unreadable[:FILES_LISTED]:
        print(f"left out: {_shown(file)}: {reason}", file=sys.stderr)
    if len(built.unreadable) > FILES_LISTED:
        print(
            f"left out: {len(built.unreadable) - FILES_LISTED} more, see"
            f" {arguments.index / 'unreadable.csv'}",
            file=sys.stderr,
        )
    hours = sum(file.seconds for file in built.files) / 3600
    print(
        f"{arguments.index}: {len(built.files):,} files, {hours:.2f} hours; {built.changes} in"
        f" {time.monotonic() - started:.1f} s"
    )
    if passed_over := built.changes.passed_over:
        endings = ", ".join(
            f"{number:,} {ending or 'without ending'}"
            for ending, number in passed_over.most_common(10)
        )
        print(f"passed over: {passed_over.total():,} files that are no sound: {endings}")
    if built.changes.one_channel:
        print(
            f"note: the channels of {built.changes.one_channel:,} of these files cancel each other;"
            " their first channel was used"
        )
    return 0


def query(arguments: argparse.Namespace) -> int:
    from retrieval.search.index import AudioIndex
    from retrieval.search.queries import read_query_file

    queries = (
        read_query_file(arguments.queries)
        if arguments.queries
        else [arguments.text]
        if arguments.text is not None
        else []
    )
    opened = AudioIndex.open(arguments.index, arguments.checkpoint, fast_text=arguments.fast_text)
    if not opened.is_complete:
        print(
            f"note: the last update of {arguments.index} was interrupted, files are missing; run"
            " the index command again",
            file=sys.stderr,
        )
    within = PurePosixPath(arguments.within).as_posix().strip("/.")
    if within and within not in opened.folders:
        some = ", ".join(opened.folders[:FILES_LISTED]) or "none"
        raise UserError(
            f"--within {arguments.within}: the index has no files below such a folder; it has:"
            f" {some}"
        )
    filters = {
        "within": within,
        "min_seconds": arguments.min_seconds,
        "max_seconds": arguments.max_seconds,
    }
    if arguments.audio:
        answers = [
            (str(arguments.audio), opened.search_audio(arguments.audio, arguments.k, **filters))
        ]
    else:
        for text in queries:
            if note := opened.notes(text):
                print(f"note: {note}", file=sys.stderr)
        answers = list(zip(queries, opened.search_many(queries, arguments.k, **filters)))
    missing = {}  # in order, once
    for file in sorted({hit.file for _, hits in answers for hit in hits}):
        try:
            opened.path_of(file)
        except UserError as error:
            missing[f"note: {error}"] = None
    if missing:
        print(*missing, sep="\n", file=sys.stderr)
    write_answers(answers, arguments)
    return 0


def write_answers(answers: list[tuple[str, list]], arguments: argparse.Namespace) -> None:
    rows = [(text, *row) for text, hits in answers for row in map(_row, hits)]
    if arguments.csv:
        with atomic_writer(arguments.csv) as file:
            csv.writer(file).writerows([COLUMNS, *rows])
    if arguments.json:
        content = [
            {"query": text, "hits": [dict(zip(COLUMNS[1:], _row(hit))) for hit in hits]}
            for text, hits in answers
        ]
        print(json.dumps(content, indent=2, ensure_ascii=False))
        return
    for text, hits in answers:
        if len(answers) > 1 or not hits:
            print(f"{text}:" + ("" if hits else " nothing found"))
        for hit in hits:
            print(
                f"{hit.rank:3}  {hit.score:6.3f} "
                f" {_time(hit.attended_from):>8}-{_time(hit.attended_to):<8}  {_shown(hit.file)}"
            )
    if arguments.csv:
        print(f"written: {arguments.csv}")


def _row(hit: Any) -> tuple[Any, ...]:
    times = hit.attended_from, hit.attended_to, hit.start, hit.end, hit.seconds
    return hit.rank, round(hit.score, 6), hit.file, *(round(seconds, 2) for seconds in times)


def _shown(file: str) -> str:
    """Without what would break the line or speak to the terminal."""
    return "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in file
    )


def _time(seconds: float) -> str:
    """0:07.3, 1:02:03.4"""
    tenths = round(10 * seconds)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest / 10:04.1f}" if hours else f"{minutes}:{rest / 10:04.1f}"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m retrieval.search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="index|query")
    making = commands.add_parser("index", help="make an index, or bring it up to date")
    making.add_argument(
        "folder",
        type=_path,
        metavar="FOLDER",
        help="recordings, in any sub-folders; after a move, the new folder",
    )
    making.add_argument(
        "--checkpoint",
        type=_path,
        metavar="DIR",
        help="model folder; default: that of the index that is there",
    )
    making.add_argument(
        "--hop-seconds",
        type=float,
        help=(
            "from one excerpt of a long file to the next; default: half of the model's clip_seconds"
        ),
    )
    making.add_argument("--batch-size", type=int, default=16, help="excerpts encoded at once")
    making.add_argument(
        "--mixed-precision",
        choices=["auto", "no", "bf16", "fp16"],
        default="auto",
        help="of the encoder",
    )
    making.add_argument(
        "--overwrite", action="store_true", help="forget what the index holds, and make it anew"
    )
    asking = commands.add_parser("query", help="search an index")
    asking.add_argument("text", nargs="?", help="a sentence")
    asking.add_argument(
        "--audio", type=_path, metavar="FILE", help="a sound in place of the sentence"
    )
    asking.add_argument(
        "--queries",
        type=_path,
        metavar="FILE",
        help="several sentences: a line each, or a CSV with a column caption",
    )
    asking.add_argument(
        "--checkpoint",
        type=_path,
        metavar="DIR",
        help="where the index's model is now; default: where it was",
    )
    asking.add_argument("-k", type=int, default=10, help="answers to a query")
    asking.add_argument(
        "--within",
        default="",
        metavar="SUBFOLDER",
        help="only files below this one, relative to the indexed folder",
    )
    asking.add_argument(
        "--min-seconds", type=float, default=0.0, help="only files of this length or longer"
    )
    asking.add_argument(
        "--max-seconds",
        type=float,
        default=float("inf"),
        help="only files of this length or shorter",
    )
    asking.add_argument(
        "--fast-text",
        action="store_true",
        help="text encoder in 8 bit, on a CPU; made at the first use",
    )
    asking.add_argument("--json", action="store_true", help="print JSON")
    asking.add_argument("--csv", type=_path, metavar="FILE", help="write the answers to a file too")
    for command in (making, asking):
        command.add_argument(
            "--index", type=_path, required=True, metavar="DIR", help="folder of the index"
        )
        command.add_argument("--quiet", action="store_true", help="no progress bars")
    arguments = parser.parse_args(argv)
    if arguments.command == "index" and arguments.batch_size < 1:
        parser.error(f"--batch-size must be at least 1, found {arguments.batch_size}")
    if arguments.command == "query":
        check_query_arguments(arguments, parser)
    return arguments


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("is empty; give a path")
    return user_path(text)


def check_query_arguments(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if (
        sum(asked is not None for asked in (arguments.text, arguments.audio, arguments.queries))
        != 1
    ):
        parser.error(
            "give one thing to search for: a sentence in quotes, or --audio FILE, or --queries"
            ' FILE; for example: query "a dog barks"'
        )
    if arguments.k < 1:
        parser.error(f"-k must be at least 1, found {arguments.k}")
    if not arguments.min_seconds <= arguments.max_seconds:
        parser.error(
            f"--min-seconds {arguments.min_seconds:g} is not below --max-seconds"
            f" {arguments.max_seconds:g}"
        )
    if arguments.csv:
        check_writable(arguments.csv.parent)
        if arguments.csv.is_dir():
            parser.error(f"--csv {arguments.csv} is a folder; give a file")
        check_not_among(
            "--csv", arguments.csv, [file for file in (arguments.audio, arguments.queries) if file]
        )


if __name__ == "__main__":
    run_main(main)
