"""Write the sample corpus: synthesised sound scenes with true captions, in Clotho's layout.

    python data_prep/make_sample_corpus.py --output data/sample

    data/sample/development/*.wav                    44.1 kHz, mono, 16 bits, 4-20 s
    data/sample/clotho_captions_development.csv      UTF-8, five captions per clip
    data/sample/clotho_metadata_development.csv      ISO-8859-1
    ... the same for validation and evaluation ...
    data/sample/clotho_moments_development.csv       UTF-8, when each caption's events are heard
    data/sample/scenes.json                          events of every clip and of every caption

Same seed and sizes, same bytes, for any number of processes: a clip's random numbers depend only on
(seed, split, index). The synthesis computes in float64 and rounds to 16 bits at the end, so that
other processors and numpy builds give the same files unless numpy changes its generators. The
corpus appears under its name only when it is complete.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # import from the repository, and nothing from this folder
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(path for path in sys.path if Path(path).resolve() != here)]

from data_prep.command import run  # first: from here on Ctrl-C prints one line

# isort: split

import csv
import json
import wave
from typing import Any, TextIO

import numpy as np

from data_prep.cache.moments import clean
from data_prep.corpora.clotho_files import CAPTION_COLUMNS, METADATA_COLUMNS
from data_prep.corpora.moments_csv import COLUMNS as MOMENT_COLUMNS
from data_prep.parallel import ordered_map
from data_prep.sample_corpus.captions import write_captions
from data_prep.sample_corpus.events import EVENTS
from data_prep.sample_corpus.file_names import file_name
from data_prep.sample_corpus.scenes import Scene, plan_scene, render_scene
from data_prep.sample_corpus.signals import SAMPLE_RATE
from data_prep.seeds import generator
from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError
from retrieval.base.files import atomic_writer, read_json
from retrieval.base.folders import whole_folder
from retrieval.base.processes import usable_cores
from retrieval.base.progress import bar, set_quiet
from retrieval.data.moments import MomentQuery
from retrieval.data.schema import SPLITS

VERSION = 1  # raise it with every change of the bytes: an older corpus is then replaced
CC0 = "http://creativecommons.org/publicdomain/zero/1.0/"
Task = tuple[Path, Scene, tuple[int, ...]]  # file, scene, key of its random numbers


def main(arguments: list[str] | None = None) -> int:
    parser = OneLineParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("data/sample"), metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--sizes",
        type=int,
        nargs=3,
        default=[300, 60, 60],
        metavar=("DEVELOPMENT", "VALIDATION", "EVALUATION"),
        help="clips per split",
    )
    parser.add_argument(
        "--num-proc", type=int, default=usable_cores(), metavar="N", help="processes"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a sample corpus of another seed, size or version",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    options = parser.parse_args(arguments)
    set_quiet(options.quiet)
    settings = options.output, options.seed, options.sizes, options.num_proc, options.overwrite
    return run(lambda: make_corpus(*settings))


def make_corpus(
    output: Path, seed: int, sizes: list[int], num_proc: int, overwrite: bool = False
) -> None:
    """Write the corpus to `output`, or reuse an equal one. Raises UserError."""
    if seed < 0:
        raise UserError(f"--seed {seed}: must be 0 or more")
    if min(sizes) < 1:
        raise UserError(f"--sizes {' '.join(map(str, sizes))}: every split needs at least one clip")
    if num_proc < 1:
        raise UserError(f"--num-proc {num_proc}: must be 1 or more")
    settings = {"version": VERSION, "seed": seed, "sizes": dict(zip(SPLITS, sizes))}
    if found := _reusable(output, settings, overwrite):
        _add_moments(output, found["clips"])
        print(f"{output} holds this sample corpus already ({sum(sizes)} clips): reused")
        return
    # replaces an empty folder, or a sample corpus that --overwrite gives up
    with whole_folder(output, "the corpus") as folder:
        clips = _write(folder, settings, num_proc)
    minutes = sum(clip["num_samples"] for clip in clips) / SAMPLE_RATE / 60
    print(f"{output}: {len(clips)} clips, {minutes:.0f} minutes, {len(EVENTS)} kinds of event")


def _reusable(output: Path, settings: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """Return scenes.json if the wanted corpus is there. Raises UserError if something else is."""
    if not output.exists() and not output.is_symlink():
        return None
    if not output.is_dir():
        raise UserError(f"{output} is not a folder; give another --output")
    if not any(output.iterdir()):
        return None
    try:
        found = read_json(output / "scenes.json")
        files = [output / clip["split"] / clip["file_name"] for clip in found["clips"]]
        different = [f"{key} {found[key]}" for key in settings if found[key] != settings[key]]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{output} is not empty and holds no sample corpus (no readable scenes.json); give"
            " another --output"
        ) from None
    for table in ("captions", "metadata"):
        files += [output / f"clotho_{table}_{split}.csv" for split in SPLITS]
    missing = [path.name for path in files if not path.is_file()]
    if missing and not different:
        different = [f"{len(missing)} files missing, first {missing[0]!r}"]
    if different and not overwrite:
        raise UserError(
            f"{output} holds another sample corpus ({', '.join(different)}); add --overwrite to"
            " replace it, or give another --output"
        )
    return None if different else found


def _add_moments(output: Path, clips: list[dict[str, Any]]) -> None:
    """Write missing tables of moments: corpora of earlier versions have none."""
    for split in SPLITS:
        path = output / f"clotho_moments_{split}.csv"
        if not path.exists():
            with atomic_writer(path) as file:
                _write_moments(file, [clip for clip in clips if clip["split"] == split])


def _write(folder: Path, settings: dict[str, Any], num_proc: int) -> list[dict[str, Any]]:
    taken: set[str] = set()
    tasks: list[Task] = []
    for split_number, (split, size) in enumerate(settings["sizes"].items()):
        (folder / split).mkdir(parents=True)
        for index in range(size):
            key = settings["seed"], split_number, index
            rng = generator(*key, 0)
            scene = plan_scene(rng)
            tasks.append((folder / split / file_name(rng, scene, taken), scene, (*key, 1)))
    with bar(total=len(tasks), desc="sound scenes", unit="clip") as progress:
        clips = []
        for clip in ordered_map(_render, tasks, num_proc, chunksize=4):
            clips.append(clip)
            progress.update()
    for split in SPLITS:
        _write_tables(folder, split, [clip for clip in clips if clip["split"] == split])
    text = json.dumps({**settings, "clips": clips}, ensure_ascii=False, indent=1)
    (folder / "scenes.json").write_text(text + "\n", encoding="utf-8")
    return clips


def _render(task: Task) -> dict[str, Any]:
    """Write one WAV; return its entry of scenes.json."""
    path, scene, key = task
    rng = generator(*key)
    mix, _, _ = render_scene(rng, scene)
    samples = np.round(mix * 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, len(samples), "NONE", "not compressed"))
        file.writeframes(samples.tobytes())
    captions = write_captions(rng, scene)
    events = [
        {**vars(event), "onset": round(event.onset, 3), "duration": round(event.duration, 3)}
        for event in scene.events
    ]
    return {
        "split": path.parent.name,
        "file_name": path.name,
        "num_samples": len(samples),
        "background": scene.background,
        "events": events,
        "captions": [vars(caption) for caption in captions],
    }


def _write_tables(folder: Path, split: str, clips: list[dict[str, Any]]) -> None:
    captions_csv = folder / f"clotho_captions_{split}.csv"
    with open(captions_csv, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file_name", *CAPTION_COLUMNS])
        for clip in clips:
            texts = [caption["text"] for caption in clip["captions"]]
            table.writerow([clip["file_name"], *texts])
    with open(folder / f"clotho_moments_{split}.csv", "w", encoding="utf-8", newline="") as file:
        _write_moments(file, clips)
    metadata_csv = folder / f"clotho_metadata_{split}.csv"
    with open(metadata_csv, "w", encoding="iso-8859-1", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file_name", *METADATA_COLUMNS])
        for clip in clips:
            keywords = ";".join(EVENTS[event["kind"]].keyword for event in clip["events"])
            place = "Not found", "Not found", f"[0, {clip['num_samples']}]"
            table.writerow([clip["file_name"], keywords, *place, "synthesised", CC0])


def _write_moments(file: TextIO, clips: list[dict[str, Any]]) -> None:
    """Write a query for each caption of a split, with a window for each event that it names.

    A qid is <split>_<clip>_<caption>_<events named>of<events of the scene>, such as
    evaluation_017_4_1of3. Clips and captions count from 1, in the order of the captions' table.
    """
    table = csv.writer(file, lineterminator="\n")
    table.writerow([*MOMENT_COLUMNS, "qid"])
    for number, clip in enumerate(clips, start=1):
        seconds = clip["num_samples"] / SAMPLE_RATE
        for index, caption in enumerate(clip["captions"], start=1):
            named = [clip["events"][event] for event in caption["events"]]
            windows = tuple((event["onset"], event["onset"] + event["duration"]) for event in named)
            qid = f"{clip['split']}_{number:03d}_{index}_{len(named)}of{len(clip['events'])}"
            (query,), _ = clean([MomentQuery(qid, caption["text"], windows)], seconds)
            for start, end in query.windows:
                table.writerow([clip["file_name"], query.query, f"{start:.3f}", f"{end:.3f}", qid])


if __name__ == "__main__":
    run_main(main)
