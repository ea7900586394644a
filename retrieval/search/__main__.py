"""Index recordings; then search them by a sentence or a sound.

    python -m retrieval.search index FOLDER --checkpoint runs/tap/best --index DIR
    python -m retrieval.search index FOLDER --checkpoint laion/clap-htsat-unfused --index DIR
    python -m retrieval.search query "a dog barks twice" --index DIR [-k 10] [--json] [--csv FILE]
    python -m retrieval.search query "rain" --without "thunder" --also "wind" 0.5 --index DIR
    python -m retrieval.search query --audio dog.wav --index DIR    # more like this
    python -m retrieval.search query --queries FILE --index DIR     # one per line, or a CSV
    python -m retrieval.search query TEXT --index DIR --labels audacity --output FOLDER
    python -m retrieval.search query TEXT --index DIR --clips FOLDER
    python -m retrieval.search query TEXT --file meeting.wav --checkpoint MODEL    # no index
    python -m retrieval.search mark wren --index DIR --query "a wren" --right FILE --wrong FILE
    python -m retrieval.search detect wren --index DIR     # all excerpts that it finds
    python -m retrieval.search detectors --index DIR       # list them

Run `index` again after changes: it encodes only new and changed recordings. It reads WAV, FLAC,
Ogg, Opus, MP3, AIFF, M4A, the sound of MP4 and WebM, and more (docs/corpora.md), under any file
name. It cuts long files into overlapping excerpts. An answer is a file, and the stretches of it
where the sentence is heard. With CLAP, and if the query is a sound, the stretch is the excerpt.
"""

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError, counted, printable, user_path
from retrieval.base.files import atomic_writer, check_not_among, check_writable
from retrieval.base.launch import check_environment
from retrieval.base.progress import set_quiet, silence_transformers
from retrieval.search.place_options import add_place, check_store_arguments

if TYPE_CHECKING:
    from retrieval.moments.spans import Moment
    from retrieval.search.hits import Hit
    from retrieval.search.index import AudioIndex
    from retrieval.search.queries import Query

FILES_LISTED = 20
LONGEST_VALUE_SHOWN = 40  # characters
COPIES_SHOWN = 3
COLUMNS = ("query", "rank", "score", "file", "from", "to", "excerpt_from", "excerpt_to")
COLUMNS += ("file_seconds", "moments", "matches")
METHODS = ("auto", "head", "contribution", "runs")  # those of retrieval.moments.locator
LABELS = ("audacity", "raven", "csv", "json")  # FORMATS of retrieval.moments.export


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    set_quiet(arguments.quiet)
    check_environment(several=False)
    silence_transformers()  # below the checks, because it takes seconds to import
    if arguments.command == "index":
        return index(arguments)
    if arguments.command == "query":
        return query_file(arguments) if arguments.file else query(arguments)
    from retrieval.search.feedback import commands as detector_commands

    if arguments.command == "detectors":
        return detector_commands.list_detectors(arguments)
    if arguments.command == "mark":
        opened = open_index(arguments)
        check_not_of_index("--output", arguments.output, opened)
        return detector_commands.mark(arguments, opened)
    return detect(arguments)


def index(arguments: argparse.Namespace) -> int:
    from retrieval.search.index import AudioIndex

    started = time.monotonic()
    built = AudioIndex.build(
        arguments.folder,
        arguments.checkpoint,
        arguments.index,
        text_encoder=arguments.text_encoder,
        excerpt_seconds=arguments.excerpt_seconds,
        hop_seconds=arguments.hop_seconds,
        frames=arguments.frames,
        frames_per_second=arguments.frames_per_second,
        batch_size=arguments.batch_size,
        mixed_precision=arguments.mixed_precision,
        overwrite=arguments.overwrite,
        frames_store=arguments.frames_store,
        shard=arguments.shard,
        metadata=arguments.metadata,
    )
    unreadable = built.changes.unreadable  # of this shard
    for file, reason in unreadable[:FILES_LISTED]:
        print(f"left out: {printable(file)}: {reason}", file=sys.stderr)
    if (num_more := len(unreadable) - FILES_LISTED) > 0:
        is_folder = isinstance(arguments.index, Path)
        see = f", see {arguments.index / 'unreadable.csv'}" if is_folder else ""
        print(f"left out: {num_more} more{see}", file=sys.stderr)
    hours, took = built.seconds / 3600, time.monotonic() - started
    of_shard = f"shard {arguments.shard}: " if arguments.shard else ""
    counts = f"{counted(built.num_files, 'file')}, {hours:.2f} hours; {of_shard}{built.changes}"
    print(f"{arguments.index}: {counts} in {took:.1f} s")
    if metadata := built.changes.metadata:
        kinds = ", ".join(f"{printable(name)} ({kind})" for name, kind in metadata.columns.items())
        num_known = sum(built.file(file) is not None for file in metadata.fields)
        print(f"metadata: of {num_known:,} of {counted(built.num_files, 'file')}; columns: {kinds}")
        if metadata.num_unknown:
            first = ", ".join(metadata.unknown)
            more = ", ..." if metadata.num_unknown > len(metadata.unknown) else ""
            print(
                f"note: the folder has no file for {counted(metadata.num_unknown, 'row')} of"
                f" {arguments.metadata}: {first}{more}"
            )
    if (found := built.store.meta.approximate) is not None:
        print(f"large index: {found}")
    if built.unrelated_score is not None:
        print(f"unrelated sentences reach a score of {built.unrelated_score:.3f}")
    elif not built.is_complete:
        print("note: other shards are not indexed yet; the index is complete when all are")
    elif built.num_files:
        print(
            "note: the model knows the words of too few general sentences to measure the score that"
            " unrelated ones reach; answers are not compared with it"
        )
    if passed_over := built.changes.passed_over:
        common = passed_over.most_common(10)
        endings = ", ".join(f"{number:,} {ending or 'without ending'}" for ending, number in common)
        num_files = counted(passed_over.total(), "file")
        print(f"passed over, since not sound: {num_files}: {endings}")
    if built.changes.one_channel:
        print(
            f"note: the channels of {counted(built.changes.one_channel, 'file')} cancel each other;"
            " the first channel was used"
        )
    return 0


def query(arguments: argparse.Namespace) -> int:
    from retrieval.search.queries import read_query_file

    queries = read_query_file(arguments.queries) if arguments.queries else [asked(arguments)]
    filters = filters_of(arguments)
    opened = open_index(arguments)
    check_outputs_of_index(arguments, opened)
    check_within(arguments, filters["within"], opened)
    for text in queries:
        if note := opened.notes(text):
            print(f"note: {note}", file=sys.stderr)
    fold = not arguments.all_copies
    least = arguments.min_score
    hits = opened.search_many(queries, arguments.k, min_score=least, fold=fold, **filters)
    answers = [(str(text), own) for text, own in zip(queries, hits, strict=True)]
    unrelated = None if arguments.audio else opened.unrelated_score  # not compared with sounds
    finish_index(answers, opened, arguments, unrelated)
    return 0


def detect(arguments: argparse.Namespace) -> int:
    """Print and write all excerpts that a detector finds."""
    from retrieval.search.feedback.commands import folder_of

    detector, filters = folder_of(arguments).load(arguments.name), filters_of(arguments)
    opened = open_index(arguments)
    check_outputs_of_index(arguments, opened)
    check_within(arguments, filters["within"], opened)
    hits = opened.detect(detector, arguments.min_probability, **filters)
    finish_index([(arguments.name, hits)], opened, arguments)
    return 0


def open_index(arguments: argparse.Namespace) -> "AudioIndex":
    """Open the index of --index; note if it is not complete."""
    from retrieval.search.index import AudioIndex

    opened = AudioIndex.open(
        arguments.index,
        arguments.checkpoint,
        text_encoder=arguments.text_encoder,
        fast_text=arguments.fast_text,
        frames_store=arguments.frames_store,
    )
    if not opened.is_complete:
        reason = "its last update was interrupted; run the index command again"
        if not isinstance(arguments.index, Path):
            reason = "a shard is missing or was interrupted; run the index command for each shard"
        print(f"note: files of {arguments.index} are missing: {reason}", file=sys.stderr)
    return opened


def filters_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the filters of a search. Raises UserError for a wrong --where."""
    from retrieval.search.metadata import parse_where

    limits = {"min_seconds": arguments.min_seconds, "max_seconds": arguments.max_seconds}
    return {"within": arguments.within, **limits, "where": parse_where(arguments.where)}


def check_within(arguments: argparse.Namespace, within: str, index: "AudioIndex") -> None:
    """Raise UserError if the index has no files below the folder of --within."""
    from retrieval.search.filters import Filters

    folder = Filters(within).folder
    if folder and folder not in index.folders:
        raise UserError(
            f"--within {arguments.within}: the index has no files below such a folder; it has:"
            f" {', '.join(index.folders[:FILES_LISTED]) or 'none'}"
        )


def check_outputs_of_index(arguments: argparse.Namespace, index: "AudioIndex") -> None:
    """Raise UserError if an output is a recording of the index, or lies in its own folder."""
    outputs = {"--csv": arguments.csv, "--output": arguments.output, "--clips": arguments.clips}
    for option, path in outputs.items():
        check_not_of_index(option, path, index)


def finish_index(
    answers: list[tuple[str, list["Hit"]]],
    index: "AudioIndex",
    arguments: argparse.Namespace,
    unrelated_score: float | None = None,
) -> None:
    """Write and print answers of an index; note files that no longer exist.

    unrelated_score: score that unrelated sentences reach; None: not compared.
    """
    notes, gone = {}, set()  # notes in order, each once
    for file in sorted({hit.file for _, hits in answers for hit in hits}):
        try:
            index.path_of(file)
        except UserError as error:
            notes[f"note: {error}"] = None
            gone.add(file)
    for note in notes:
        print(note, file=sys.stderr)
    columns = list(index.store.columns)
    finish(answers, index.path_of, gone, arguments, columns, unrelated_score)


def asked(arguments: argparse.Namespace) -> "Query":
    """Return the query that the options describe. Raises UserError."""
    from retrieval.search.queries import Query

    weight = 1.0 if arguments.audio_weight is None else arguments.audio_weight
    given = {"also": arguments.also, "without": arguments.without, "audio": arguments.audio}
    return Query.of(arguments.text, **given, audio_weight=weight)


def query_file(arguments: argparse.Namespace) -> int:
    from retrieval.search.model_identity import load_model
    from retrieval.search.one_file import announced_seconds, find_moments
    from retrieval.search.queries import query_notes, read_query_file

    queries = read_query_file(arguments.queries) if arguments.queries else [arguments.text]
    announced_seconds(arguments.file)  # a wrong name is said before a model is loaded
    model = load_model(arguments.checkpoint, arguments.text_encoder)
    method = None if arguments.method == "auto" else arguments.method
    found = find_moments(arguments.file, queries, model, method=method, k=arguments.k)
    of_words = (query_notes(text, model.text_encoder) for text in queries)
    for note in (*filter(None, of_words), *found.notes()):
        print(f"note: {note}", file=sys.stderr)
    # a name that is not UTF-8 can be read, but not written
    name = os.fsencode(arguments.file.name).decode("utf-8", "replace")
    answers = list(zip(queries, found.hits(name), strict=True))
    finish(answers, lambda _: arguments.file, set(), arguments)
    return 0


def finish(
    answers: list[tuple[str, list["Hit"]]],
    path_of: Callable[[str], Path],
    gone: set[str],
    arguments: argparse.Namespace,
    columns: Sequence[str] = (),
    unrelated_score: float | None = None,
) -> None:
    """Write and print answers.

    Args:
        answers: Each query with its answers.
        path_of: Returns the path of an answer's file.
        gone: Files that no longer exist.
        arguments: Arguments of the command.
        columns: Columns of metadata.
        unrelated_score: Score that unrelated sentences reach; None: not compared.
    """
    written = export(answers, path_of, gone, arguments)
    write_answers(answers, arguments, columns, unrelated_score)
    if not arguments.json:
        for line in written:
            print(f"written: {line}")


def check_not_of_index(option: str, path: Path | None, index: "AudioIndex") -> None:
    """Raise UserError if an output is a recording of the index, or lies in its own folder."""
    resolved = path and path.resolve()
    if resolved and resolved.is_relative_to(index.place.folder.resolve()):
        raise UserError(f"{option} {path} lies in the folder of the index: give another place")
    if resolved and resolved.is_relative_to(index.folder):
        name = resolved.relative_to(index.folder).as_posix()
        if index.file(name):
            raise UserError(f"{option} {path} is a recording of the index: give another name")


def export(
    answers: list[tuple[str, list["Hit"]]],
    path_of: Callable[[str], Path],
    gone: set[str],
    arguments: argparse.Namespace,
) -> list[str]:
    """Write the stretches of the answers as --labels and --clips; return what was written."""
    if not arguments.labels and not arguments.clips:
        return []
    from retrieval.moments.export import write_clips, write_labels
    from retrieval.search.hits import detected_stretches, stretches_of

    stretches = detected_stretches if arguments.command == "detect" else stretches_of
    found = [own for text, hits in answers for own in stretches(text, hits)]
    least = getattr(arguments, "min_score", None)  # detect has none
    if least is None and (num_others := sum(not own.is_match for own in found)):
        print(
            f"note: answers that do not match have {num_others:,} of the {len(found):,} exported"
            " stretches; --min-score SCORE leaves answers out",
            file=sys.stderr,
        )
    there = [own for own in found if own.file not in gone]
    written = []
    if arguments.clips:  # first: its folder must be new, and may hold the others
        clips = write_clips(arguments.clips, there, path_of)
        written.append(f"{arguments.clips}, {counted(len(clips), 'clip')}")
    if arguments.labels:
        own = there if arguments.labels == "raven" else found
        files = write_labels(arguments.labels, arguments.output, own, path_of)
        is_folder = arguments.output not in files
        written.append(f"{arguments.output}" + f", {counted(len(files), 'file')}" * is_folder)
    return written


def write_answers(
    answers: list[tuple[str, list["Hit"]]],
    arguments: argparse.Namespace,
    columns: Sequence[str],
    unrelated_score: float | None,
) -> None:
    """Print answers as lines or JSON, and write them to --csv; arguments: see `finish`."""
    from retrieval.search.metadata import as_written, fields_as_written

    def row(hit: "Hit") -> tuple:
        times = hit.attended_from, hit.attended_to, hit.start, hit.end, hit.seconds
        return hit.rank, round(hit.score, 6), hit.file, *(round(time, 2) for time in times)

    def judged(hit: "Hit") -> float:
        return round(hit.score if hit.judged_score is None else hit.judged_score, 6)

    def spans(hit: "Hit") -> str:
        return " ".join(f"{own.start:.2f}-{own.end:.2f}" for own in hit.moments)

    def objects(hit: "Hit") -> list[dict[str, float]]:
        rounded = [(round(one.start, 2), round(one.end, 2), one.score) for one in hit.moments]
        return [{"from": start, "to": end, "score": round(own, 6)} for start, end, own in rounded]

    if arguments.csv:
        rows = [
            (
                *(text, *row(hit), spans(hit), str(hit.is_match).lower()),
                *(as_written(hit.metadata.get(name, "")) for name in columns),
            )
            for text, hits in answers
            for hit in hits
        ]
        with atomic_writer(arguments.csv) as file:
            csv.writer(file).writerows([(*COLUMNS, *columns), *rows])
    if arguments.json:
        content = []
        for text, hits in answers:
            rows = [
                dict(zip(COLUMNS[1:], (*row(hit), objects(hit), hit.is_match), strict=True))
                | ({"metadata": fields_as_written(hit.metadata)} if columns else {})
                | ({"copies": list(hit.copies)} if hit.copies else {})
                | ({} if hit.judged_score is None else {"judged_score": judged(hit)})
                for hit in hits
            ]
            limit = None if unrelated_score is None else round(unrelated_score, 6)
            limits = {"unrelated_score": limit} if arguments.command == "query" else {}
            content.append({"query": text, **limits, "hits": rows})
        print(json.dumps(content, indent=2, ensure_ascii=False))
        return
    least = getattr(arguments, "min_score", None)  # detect has none
    limit = "" if least is None else f" with a score of {least:g} or more"
    has_line = unrelated_score is not None and least is None  # a score of the user's: no line
    for text, hits in answers:
        if len(answers) > 1 or not hits:
            print(f"{text}:" + ("" if hits else f" nothing found{limit}"))
        several = any(len(hit.moments) > 1 for hit in hits) and not arguments.moments
        last_match = max((hit.rank for hit in hits if hit.is_match), default=0)
        subtracts = any(hit.judged_score is not None for hit in hits)
        if hits and not last_match and has_line:
            wanted = "by the wanted sentences alone, " if subtracts else ""
            print(
                f"nothing matches {text!r}: {wanted}the best answer has"
                f" {max(map(judged, hits)):.3f}, unrelated sentences reach {unrelated_score:.3f};"
                " the nearest:"
            )
        for hit in hits:
            if 0 < last_match == hit.rank - 1 and has_line:
                wanted = ", judged by the wanted sentences alone" if subtracts else ""
                print(
                    f"---  no better than unrelated sentences, which reach {unrelated_score:.3f}"
                    f"{wanted}:"
                )
            first, *others = hit.moments
            more = f"{f'(+{len(others)})' if others else '':5}" if several else ""
            about = ", ".join(map(shown, hit.metadata.values()))
            about = f"  ({about})" if about else ""
            if hit.copies:
                same = ", ".join(map(printable, hit.copies[:COPIES_SHOWN]))
                about += f"  (= {same}{', ...' if len(hit.copies) > COPIES_SHOWN else ''})"
            file = printable(hit.file)
            print(f"{hit.rank:3}  {hit.score:6.3f}  {place(first)}{more}  {file}{about}")
            for moment in others if arguments.moments else ():
                print(f"{'':3}  {moment.score:6.3f}  {place(moment)}")
    if arguments.csv:
        print(f"written: {arguments.csv}")


def place(moment: "Moment") -> str:
    return f"{clock(moment.start):>8}-{clock(moment.end):<8}"


def shown(value: str | float) -> str:
    """Format a value of metadata; long texts are cut."""
    text = printable(value) if isinstance(value, str) else f"{value:.10g}"
    return text if len(text) <= LONGEST_VALUE_SHOWN else f"{text[:LONGEST_VALUE_SHOWN]}..."


def clock(seconds: float) -> str:
    """Format seconds as 0:07.3 or 1:02:03.4."""
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
    metavar = "index|query|mark|detect|detectors"
    commands = parser.add_subparsers(dest="command", required=True, metavar=metavar)
    making = commands.add_parser("index", help="make an index, or bring it up to date")
    add = making.add_argument
    folder = "folder of the recordings, with sub-folders; after a move, the new folder"
    add("folder", type=path_argument, metavar="FOLDER", help=folder)
    checkpoint = (
        "model folder; or CLAP or PE-Audio by folder or hub name, such as"
        " laion/clap-htsat-unfused; or a .ckpt of salsa; default: the model of the existing index"
    )
    add("--checkpoint", type=path_argument, metavar="MODEL", help=checkpoint)
    excerpt = "longest excerpt, s; default: the model's clip_seconds; CLAP and PE-Audio: 10"
    add("--excerpt-seconds", type=float, help=excerpt)
    hop = "distance of the excerpts of a long file, s; default: half of an excerpt"
    add("--hop-seconds", type=float, help=hop)
    frames = (
        "frames to keep, by which answers say when in an excerpt; int8: half the bytes of float16;"
        " none: excerpts only; default: float16 if the model has several frames a window"
    )
    add("--frames", choices=["float16", "int8", "none"], help=frames)
    rate = "keep averages of neighbouring frames, about R a second; default: all frames"
    add("--frames-per-second", type=float, metavar="R", help=rate)
    metadata = (
        "CSV with a column file_name; its other columns become filters; default: keep those of the"
        " index"
    )
    add("--metadata", type=path_argument, metavar="FILE", help=metadata)
    add("--batch-size", type=int, default=16, help="number of excerpts encoded at once")
    precisions = ["auto", "no", "bf16", "fp16"]
    add("--mixed-precision", choices=precisions, default="auto", help="precision of the encoder")
    add("--overwrite", action="store_true", help="delete the content of the index; make it anew")
    asking = commands.add_parser("query", help="search in an index, or in one file")
    add = asking.add_argument
    add("text", nargs="?", help="the sentence to search for")
    audio = "sound to search for, without or with a sentence"
    add("--audio", type=path_argument, metavar="FILE", help=audio)
    also = "another sentence that should be heard; its weight relative to the first (default: 1)"
    metavar = ("SENTENCE", "WEIGHT")
    add("--also", nargs="+", action="append", default=[], metavar=metavar, help=also)
    without = "a sentence that should not be heard; may be repeated"
    add("--without", action="append", default=[], metavar="SENTENCE", help=without)
    weight = "weight of the sound relative to the sentence (default: 1)"
    add("--audio-weight", type=float, metavar="WEIGHT", help=weight)
    queries = "file of sentences: one per line, or a CSV with a column caption"
    add("--queries", type=path_argument, metavar="FILE", help=queries)
    checkpoint = (
        "present place of the index's model; default: where it was. With --file: the model, as for"
        " index"
    )
    add("--checkpoint", type=path_argument, metavar="MODEL", help=checkpoint)
    one = "search in this one file, without an index; needs --checkpoint"
    add("--file", type=path_argument, metavar="FILE", help=one)
    method = "way to find moments with --file (docs/search.md); default: auto"
    add("--method", choices=METHODS, help=method)
    add("-k", type=int, default=10, help="number of answers to a query (default: 10)")
    copies = "show each copy of a recording as an answer; default: copies are one answer"
    add("--all-copies", action="store_true", help=copies)
    least = "leave out answers with a lower score (docs/search.md)"
    add("--min-score", type=float, metavar="SCORE", help=least)
    fast = "on a CPU, use a text encoder in 8 bit; it is made at the first use"
    add("--fast-text", action="store_true", help=fast)
    add_answer_options(asking)
    marking, detecting, listing = add_detector_commands(commands)
    shard = (
        "with --store: update only this share of the files, such as 3/16; other processes do the"
        " others"
    )
    making.add_argument("--shard", metavar="NUMBER/OF", help=shard)
    for command in (making, asking, marking, detecting, listing):
        add_place(command, is_required=command is not asking)
        command.add_argument("--quiet", action="store_true", help="no progress bars")
        if command is listing:
            continue
        default = "roberta-large" if command is making else "as when the index was made"
        tokenizer = f"tokenizer for a .ckpt, by folder or hub name; default: {default}"
        command.add_argument("--text-encoder", type=path_argument, metavar="NAME", help=tokenizer)
    arguments = parser.parse_args(argv)
    if arguments.command != "query":
        check_store_arguments(arguments, parser)
    if arguments.command == "index" and arguments.batch_size < 1:
        parser.error(f"--batch-size must be at least 1, found {arguments.batch_size}")
    if arguments.command == "query":
        check_query_arguments(arguments, parser)
    if arguments.command == "mark":
        check_export_arguments(arguments, parser, [own for own in [arguments.marks] if own])
    if arguments.command == "detect":
        probability = arguments.min_probability
        if probability is not None and not 0 <= probability <= 1:
            parser.error(f"--min-probability must be between 0 and 1, found {probability:g}")
        check_answer_arguments(arguments, parser, [])
    return arguments


def add_answer_options(command: argparse.ArgumentParser) -> None:
    """Add the options that filter answers and write them."""
    add = command.add_argument
    within = "only files in this sub-folder of the indexed folder"
    add("--within", default="", metavar="SUBFOLDER", help=within)
    add("--min-seconds", type=float, default=0.0, help="only files of this length or longer")
    longest = "only files of this length or shorter"
    add("--max-seconds", type=float, default=float("inf"), help=longest)
    where = (
        "only files with this metadata, such as place=forest or year=2020..2024; may be repeated: a"
        " column given twice accepts both values"
    )
    add("--where", action="append", default=[], metavar="COLUMN=VALUE", help=where)
    add("--moments", action="store_true", help="print all stretches of an answer, one per line")
    add("--json", action="store_true", help="print JSON")
    add("--csv", type=path_argument, metavar="FILE", help="also write the answers to this file")
    labels = (
        "also write the stretches to --output: label tracks of Audacity or selection tables of"
        " Raven, a file for each recording; or one CSV or JSON"
    )
    add("--labels", choices=LABELS, help=labels)
    output = "for --labels: folder of the tracks or tables, or file of the CSV or JSON"
    add("--output", type=path_argument, metavar="PATH", help=output)
    clips = "also write each stretch as a WAV into this new folder"
    add("--clips", type=path_argument, metavar="FOLDER", help=clips)


def add_detector_commands(commands: argparse._SubParsersAction) -> list[argparse.ArgumentParser]:
    """Add the commands mark, detect and detectors."""
    told = {
        "mark": "learn a detector from answers marked right or wrong",
        "detect": "find all excerpts that a detector accepts",
        "detectors": "list the detectors of an index, or delete one",
    }
    made = {name: commands.add_parser(name, help=text) for name, text in told.items()}
    where = "folder of the detectors; default: detectors/ in the index"
    for name, command in made.items():
        command.add_argument("--detectors", type=path_argument, metavar="FOLDER", help=where)
        if name != "detectors":
            command.add_argument("name", metavar="NAME", help="name of the detector")
            model = "present place of the index's model; default: where it was"
            command.add_argument("--checkpoint", type=path_argument, metavar="MODEL", help=model)
            command.set_defaults(fast_text=False)
    add = made["mark"].add_argument
    add("--query", metavar="TEXT", help="sentence that describes the sound, for a new detector")
    right = "right answers: names in the index, or paths; with a time in a long file, FILE@1:02.5"
    add("--right", nargs="+", default=[], metavar="FILE[@START]", help=right)
    add(
        "--wrong",
        nargs="+",
        default=[],
        metavar="FILE[@START]",
        help="wrong answers, in the same form",
    )
    marks = "further marks: a CSV with the columns file, start, end, right"
    add("--marks", type=path_argument, metavar="FILE", help=marks)
    new = "delete the marks of an existing detector of this name"
    add("--overwrite", action="store_true", help=new)
    labels = "also write all marks of the detector to --output; formats as for query"
    add("--labels", choices=LABELS, help=labels)
    add("--output", type=path_argument, metavar="PATH", help="place of the labels, as for query")
    made["mark"].set_defaults(csv=None, clips=None)
    least = "report excerpts with at least this probability; default: the detector's threshold"
    made["detect"].add_argument("--min-probability", type=float, metavar="P", help=least)
    add_answer_options(made["detect"])
    made["detectors"].add_argument("--delete", metavar="NAME", help="delete this detector")
    return list(made.values())


def path_argument(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("is empty; give a path")
    return user_path(text)


def check_query_arguments(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    arguments.also = [weighted_sentence(parser, *own) for own in arguments.also]
    names_one = arguments.text is not None or arguments.audio is not None
    if names_one == (arguments.queries is not None):
        parser.error(
            "give one thing to search for: a sentence in quotes, or --audio FILE, or --queries"
            ' FILE; for example: query "a dog barks"'
        )
    of_one_query = {
        "--also": arguments.also,
        "--without": arguments.without,
        "--audio-weight": arguments.audio_weight is not None,
    }
    given = [option for option, is_given in of_one_query.items() if is_given]
    if arguments.queries and given:
        parser.error(f"{given[0]} belongs to one query, not to --queries")
    if arguments.audio_weight is not None and not arguments.audio:
        parser.error("--audio-weight needs a sound: --audio FILE")
    if arguments.k < 1:
        parser.error(f"-k must be at least 1, found {arguments.k}")
    check_place(arguments, parser)
    files_read = [arguments.audio, arguments.queries, arguments.file]
    files_read = [file for file in files_read if file]
    check_answer_arguments(arguments, parser, files_read)


def check_answer_arguments(
    arguments: argparse.Namespace, parser: argparse.ArgumentParser, files_read: list[Path]
) -> None:
    """Exit with one line if the options of add_answer_options are wrong."""
    if not arguments.min_seconds <= arguments.max_seconds:
        parser.error(
            f"--min-seconds {arguments.min_seconds:g} is not below --max-seconds"
            f" {arguments.max_seconds:g}"
        )
    if arguments.csv:
        check_writable(arguments.csv.parent)
        if arguments.csv.is_dir():
            parser.error(f"--csv {arguments.csv} is a folder; give a file")
        check_not_among("--csv", arguments.csv, files_read)
    check_export_arguments(arguments, parser, files_read)


def weighted_sentence(
    parser: argparse.ArgumentParser, sentence: str, *weights: str
) -> tuple[str, float]:
    """Return the sentence and the weight of an --also; exit with one line if it has no number."""
    try:
        (weight,) = map(float, weights or ("1",))
    except ValueError:
        parser.error(
            f"--also takes a sentence in quotes and a weight, found {' '.join(weights)!r} after"
            f" {sentence!r}; put the first sentence before --also"
        )
    return sentence, weight


def check_place(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Exit with one line unless either an index or a file is searched, with options of its own."""
    if not arguments.index and not arguments.file:
        parser.error(
            "give the place to search: --index DIR, or --store URI, or one file: --file FILE"
            " --checkpoint MODEL"
        )
    if arguments.index and arguments.file:
        parser.error("--index and --file exclude each other: give one of them")
    check_store_arguments(arguments, parser)
    if arguments.index:
        if arguments.method:
            parser.error("--method belongs to --file; an index has its own")
        return
    if not arguments.checkpoint:
        parser.error("--file needs a model: --checkpoint MODEL, such as laion/clap-htsat-unfused")
    of_an_index = {
        "--audio": arguments.audio,
        "--also": arguments.also,
        "--without": arguments.without,
        "--min-score": arguments.min_score is not None,
        "--within": arguments.within,
        "--min-seconds": arguments.min_seconds > 0,
        "--max-seconds": arguments.max_seconds < float("inf"),
        "--where": arguments.where,
        "--all-copies": arguments.all_copies,
        "--fast-text": arguments.fast_text,
    }
    if wrong := [option for option, is_given in of_an_index.items() if is_given]:
        parser.error(f"{wrong[0]} belongs to --index, not to --file")


def check_export_arguments(
    arguments: argparse.Namespace, parser: argparse.ArgumentParser, files_read: list[Path]
) -> None:
    """Exit with one line if --labels, --output or --clips are wrong, before a model is loaded."""
    labels, output, clips = arguments.labels, arguments.output, arguments.clips
    if bool(labels) != bool(output):
        parser.error("--labels FORMAT and --output PATH belong together: give both")
    if output:
        is_table = labels in ("csv", "json")
        if is_table and output.is_dir():
            parser.error(f"--output {output} is a folder; --labels {labels} needs a file")
        if not is_table and output.exists() and not output.is_dir():
            parser.error(f"--output {output} is a file; --labels {labels} needs a folder")
        check_writable(output.parent if is_table else output)
        check_not_among("--output", output, files_read + [path for path in [arguments.csv] if path])
    if clips:
        from retrieval.moments.export import check_clips_folder  # here, because it takes a while

        check_clips_folder(clips)
        if output and clips.resolve() == output.resolve():
            parser.error(f"--clips {clips} is --output too: give another folder")
        check_writable(clips.parent)
    tables = {"--csv": arguments.csv, "--output": output if labels in ("csv", "json") else None}
    for table, file in tables.items():
        for option, path in {"--csv": arguments.csv, "--output": output, "--clips": clips}.items():
            if file and path and option != table and path.resolve().is_relative_to(file.resolve()):
                parser.error(f"{table} {file} is a file, and cannot hold {option} {path}")


if __name__ == "__main__":
    run_main(main)
