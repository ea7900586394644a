"""Let a language model write five more captions for every clip, or queries in other styles.

    cd data/clotho_v2
    mv clotho_captions_development.csv original_captions_development.csv
    cd ../..
    python data_prep/generate_captions.py --endpoint http://localhost:11434/v1 --model phi4 \\
        --input data/clotho_v2/original_captions_development.csv \\
        --output data/clotho_v2/clotho_captions_development.csv
    python data_prep/build_clotho.py --root data/clotho_v2 --overwrite

Reads a CSV as Clotho's (`file_name,caption_1..`), asks a server that speaks OpenAI's chat
completions, and writes the same CSV with `caption_6..caption_10`. The environment variable
CAPTIONS_API_KEY holds the key, if the server wants one.

A new caption has 5 to 25 words in Latin letters with the punctuation of a sentence. Copies of
others are refused, and so are digits and other numerals, brackets, HTML, markdown, addresses, emoji
and talk of the task (captions/paraphrases.py). Missing captions are asked for again with another
seed, up to 5 times per clip and run; so is an answer that takes longer than --timeout or has more
than 1 MB.

With --styles it asks for queries in other styles, one for each clip and style, and writes a CSV
`file_name,caption,style` for evaluate.py --captions (captions/styles.py):

    python data_prep/generate_captions.py --endpoint http://localhost:11434/v1 --model phi4 \\
        --styles tags questions paraphrases negated \\
        --input data/clotho_v2/clotho_captions_evaluation.csv --output styles.csv
    python evaluate.py --checkpoint runs/tap/best --captions styles.csv

Every finished clip is one line of `OUTPUT.jsonl`, and the same command goes on from there however
it ended. A clip whose captions have changed since is asked anew; a journal of another model,
temperature or prompt is refused. OUTPUT appears when all is done. At most 1 % of the clips may be
short of captions (they are listed; their fields are empty): more are an error, unless
`--allow-missing`. The same command with --overwrite asks only for the missing ones. Exit code 0, 2
(error, one line), 130 (interrupted).
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # import from the repository, and nothing from this folder
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(path for path in sys.path if Path(path).resolve() != here)]

from data_prep.command import run  # first: from here on Ctrl-C prints one line

# isort: split

import argparse
import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.pool import ThreadPool
from typing import Any, BinaryIO

from data_prep.captions.chat_endpoint import BadAnswer, ChatEndpoint, ServerFailure
from data_prep.captions.paraphrases import PROMPT, fault, listed_texts, new_captions, question
from data_prep.captions.styles import STYLES, Style
from data_prep.corpora.clotho_files import rows_by_name
from data_prep.corpora.csv_files import caption_columns, one_spaced
from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError
from retrieval.base.files import FINISHED_PARTS_ARE_KEPT, atomic_path, disk_errors
from retrieval.base.folders import check_has_name
from retrieval.base.locks import try_lock
from retrieval.base.progress import bar, set_quiet

NUM_CAPTIONS = 5  # new ones a clip, without --styles
MAX_TRIES = 5  # answers a clip and run
MAX_MISSING = 0.01  # of the clips
MAX_FAILED_IN_A_ROW = 10  # clips: no use in going on
MORE = ""  # style of the new captions without --styles; the journal leaves it out
STYLE_OF = {MORE: Style(PROMPT, NUM_CAPTIONS, fault), **STYLES}


@dataclass
class Clip:
    """A line of the journal."""

    file_name: str
    captions: list[str]
    new: list[str]
    num_asked: int = 0  # answers so far, in all runs; seed of the last one
    style: str = MORE  # of `new`

    @property
    def num_missing(self) -> int:
        return STYLE_OF[self.style].num_captions - len(self.new)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input", type=Path, required=True, help="CSV with file_name, caption_1, ..."
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="CSV to write; the journal lies beside it"
    )
    parser.add_argument(
        "--endpoint", required=True, help="URL of the server, such as http://localhost:11434/v1"
    )
    parser.add_argument("--model", required=True, help="its name at the server, such as phi4")
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        help="of the sampling (default: 0.8; some models take 1 only)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=300,
        help="seconds for one answer, to its last byte (default: 300)",
    )
    parser.add_argument(
        "--num-parallel", type=int, default=8, help="questions at a time (default: 8)"
    )
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        help="write the CSV also when more than 1 %% of the clips lack captions",
    )
    parser.add_argument(
        "--styles",
        nargs="+",
        choices=STYLES,
        default=[],
        help="write file_name,caption,style instead, one text for each clip and style",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output that is there")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    return parser.parse_args(argv)


def generate(arguments: argparse.Namespace) -> None:
    check_arguments(arguments)
    rows = list(rows_by_name(arguments.input, ("caption_1",)).values())
    model, temperature = arguments.model, arguments.temperature
    endpoint = ChatEndpoint(
        arguments.endpoint, model, temperature, arguments.timeout, arguments.num_parallel
    )
    # of all styles, so that a later run may add one
    prompt = "\n\n".join(style.prompt for style in STYLES.values()) if arguments.styles else PROMPT
    settings = {"model": model, "temperature": temperature, "prompt": prompt}
    output = arguments.output.resolve()
    with disk_errors(output.parent, FINISHED_PARTS_ARE_KEPT):
        output.parent.mkdir(parents=True, exist_ok=True)
        with open_journal(output.with_name(f"{output.name}.jsonl"), settings) as (journal, entries):
            styles = arguments.styles or [MORE]
            clips = [restored_clip(row, style, entries) for row in rows for style in styles]
            reasons = ask_all(endpoint, clips, journal, arguments.num_parallel)
            report_missing(clips, reasons, arguments.allow_missing)
            if arguments.styles:
                write_styles(output, clips)
            else:
                write_csv(output, rows, clips)
    print(f"captions: {arguments.output}")


def check_arguments(arguments: argparse.Namespace) -> None:
    check_has_name(arguments.output)
    if len(set(arguments.styles)) < len(arguments.styles):
        raise UserError(f"--styles names one twice: {' '.join(arguments.styles)}")
    if arguments.num_parallel < 1:
        raise UserError(f"--num-parallel {arguments.num_parallel}: expected 1 or more")
    if not 0 < arguments.timeout <= 86_400:
        raise UserError(
            f"--timeout {arguments.timeout}: expected seconds above 0, and a day (86400) at most"
        )
    if not 0 <= arguments.temperature <= 2:
        raise UserError(f"--temperature {arguments.temperature}: expected 0 to 2")
    if arguments.output.resolve() == arguments.input.resolve():
        raise UserError(
            f"--output {arguments.output} is the input: give it another name, the captions of"
            " before are kept"
        )
    if arguments.output.is_dir():
        raise UserError(f"--output {arguments.output} is a folder, expected a file")
    if arguments.output.exists() and not arguments.overwrite:
        raise UserError(
            f"--output {arguments.output} is there already: add --overwrite to replace it"
        )


@contextmanager
def open_journal(
    path: Path, settings: dict[str, Any]
) -> Iterator[tuple[BinaryIO, dict[tuple[str, str], dict[str, Any]]]]:
    """Open the journal, and make or check its first line, which holds `settings`.

    Yields:
        The file, to append to, and its entries by file name and style.

    Raises:
        UserError: The file is not a journal, one of other settings, or in use.
    """
    first = json.dumps(settings).encode() + b"\n"
    with path.open("a+b") as file:
        if not try_lock(file):
            raise UserError(f"another run is writing {path}: wait for it to end")
        file.seek(0)
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]  # a killed run leaves half a line
        lines = whole.splitlines()
        if lines:
            is_journal = read_line(lines[0]).keys() == settings.keys()
        else:
            is_journal = first.startswith(content)
        if not is_journal:
            raise UserError(
                f"{path} is not a journal of this command: remove it, or choose another --output"
            )
        if len(lines) > 1:
            found = read_line(lines[0])
            for name in (name for name in settings if found[name] != settings[name]):
                values = "" if name == "prompt" else f" ({found[name]}, not {settings[name]})"
                raise UserError(
                    f"{path} was made with another {name}{values}: remove it to begin anew, or"
                    " choose another --output"
                )
            file.truncate(len(whole))
        else:  # no clip yet: the run may have failed for its settings
            file.truncate(0)
            file.write(first)
        entries = [entry for line in lines[1:] if has_clip_shape(entry := read_line(line))]
        yield file, {(entry["file_name"], entry.get("style", MORE)): entry for entry in entries}


def read_line(line: bytes) -> dict[str, Any]:
    """Return the JSON object of a line, an empty one for other lines."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    return entry if isinstance(entry, dict) else {}


def has_clip_shape(entry: dict[str, Any]) -> bool:
    """Return False for a damaged entry; its clip is asked again."""
    types = {"file_name": str, "captions": list, "new": list, "num_asked": int}
    types |= {"style": str} if "style" in entry else {}
    if {name: type(value) for name, value in entry.items()} != types:
        return False
    return all(isinstance(text, str) for text in entry["new"])


def restored_clip(
    row: dict[str, str], style: str, entries: dict[tuple[str, str], dict[str, Any]]
) -> Clip:
    """Return the clip of `row`, with the journal's new captions if they are of these captions."""
    captions = [text for column in caption_columns(row) if (text := one_spaced(row[column]))]
    clip = Clip(row["file_name"], captions, [], style=style)
    entry = entries.get((clip.file_name, style))
    if entry is not None and entry["captions"] == captions:
        kind = STYLE_OF[style]
        clip.new, _ = new_captions(entry["new"], captions, kind.num_captions, kind.fault)
        clip.num_asked = entry["num_asked"]
    return clip


def journal_line(clip: Clip) -> bytes:
    entry = asdict(clip)
    if clip.style == MORE:
        del entry["style"]
    return json.dumps(entry).encode() + b"\n"


def ask_all(
    endpoint: ChatEndpoint, clips: list[Clip], journal: BinaryIO, num_parallel: int
) -> dict[tuple[str, str], str]:
    """Complete the clips, and write them to the journal.

    Returns:
        Reason for each incomplete clip, by file name and style.
    """
    todo = [clip for clip in clips if clip.num_missing and clip.captions]
    num_ready = sum(not clip.num_missing for clip in clips)
    if num_ready:
        print(f"going on with an earlier run: {num_ready} of {len(clips)} clips are ready")
    reasons = {
        (clip.file_name, clip.style): "no captions to begin with"
        for clip in clips
        if not clip.captions
    }
    num_failed = 0
    # its threads are daemons: Ctrl-C does not wait for answers
    progress = bar(total=len(clips), desc="captions", unit="clip", initial=num_ready)
    with ThreadPool(min(num_parallel, max(1, len(todo)))) as threads, progress:
        for clip, reason in threads.imap_unordered(lambda clip: ask_clip(endpoint, clip), todo):
            journal.write(journal_line(clip))
            journal.flush()
            progress.update()
            num_failed = num_failed + 1 if reason else 0
            if num_failed == MAX_FAILED_IN_A_ROW:
                raise UserError(
                    f"stopped after {num_failed} clips in a row without their captions, the last"
                    f" one because {reason}"
                )
            if reason:
                reasons[clip.file_name, clip.style] = reason
    return reasons


def ask_clip(endpoint: ChatEndpoint, clip: Clip) -> tuple[Clip, str]:
    """Ask until the clip is complete, at most MAX_TRIES times.

    Returns:
        The clip, and why it is incomplete (empty: it is complete).
    """
    reason, style = "", STYLE_OF[clip.style]
    for _ in range(MAX_TRIES):
        known, num_missing = clip.captions + clip.new, clip.num_missing
        clip.num_asked += 1
        try:
            answer = endpoint.ask(question(known, num_missing, style.prompt), seed=clip.num_asked)
        except BadAnswer as error:
            reason = str(error)
            continue
        except ServerFailure as error:
            return clip, str(error)
        new, reason = new_captions(listed_texts(answer), known, num_missing, style.fault)
        clip.new += new
        if not clip.num_missing:
            return clip, ""
    return clip, reason


def report_missing(
    clips: list[Clip], reasons: dict[tuple[str, str], str], allow_missing: bool
) -> None:
    """List the clips that are short of captions. Raises UserError for too many."""
    for clip in clips:
        if reason := reasons.get((clip.file_name, clip.style)):
            found = f"{len(clip.new)} of {STYLE_OF[clip.style].num_captions} new captions"
            style = f", {clip.style}" if clip.style else ""
            print(f"{clip.file_name}{style}: {found}: {reason}")
    num_new = sum(len(clip.new) for clip in clips)
    # with --styles a clip counts once for each style
    num_files = len({clip.file_name for clip in clips})
    unit = "clips" if num_files == len(clips) else f"styles of {num_files} clips"
    short = f"{len(reasons)} of them are short of captions"
    print(f"{num_new} new captions for {len(clips)} {unit}; {short}")
    if len(reasons) > MAX_MISSING * len(clips) and not allow_missing:
        remedy = "run the same command again to ask for the missing ones, or add --allow-missing"
        raise UserError(
            f"{len(reasons)} of {len(clips)} {unit} are short of captions, more than"
            f" {MAX_MISSING:.0%}: {remedy}"
        )


def write_csv(output: Path, rows: list[dict[str, str]], clips: list[Clip]) -> None:
    """Write the rows with the new captions, in columns that continue the numbers."""
    first = int(caption_columns(rows[0])[-1].removeprefix("caption_")) + 1
    columns = [f"caption_{number}" for number in range(first, first + NUM_CAPTIONS)]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*rows[0], *columns], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        row | dict(zip(columns, clip.new, strict=False))
        for row, clip in zip(rows, clips, strict=True)
    )
    with atomic_path(output) as temporary:
        temporary.write_bytes(text.getvalue().encode())


def write_styles(output: Path, clips: list[Clip]) -> None:
    """Write file_name,caption,style, clip by clip."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file_name", "caption", "style"])
    writer.writerows([clip.file_name, new, clip.style] for clip in clips for new in clip.new)
    with atomic_path(output) as temporary:
        temporary.write_bytes(text.getvalue().encode())


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    set_quiet(arguments.quiet)
    return run(lambda: generate(arguments))


if __name__ == "__main__":
    run_main(main)
