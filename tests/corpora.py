"""Tiny corpora for the tests of data_prep, sounds of 0.1 s and tables, and builds of them."""

import csv
import json
from pathlib import Path
from types import ModuleType

import av
import datasets
import numpy as np
import soundfile

AUDIOCAPS_COLUMNS = ["audiocap_id", "youtube_id", "start_time", "caption"]


def write_csv(path: Path, header: list[str], rows: list[list], encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_sound(path: Path, seconds: float = 0.1) -> Path:
    """Noise at 16 kHz in the format of its ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(0).uniform(-0.1, 0.1, round(16_000 * seconds))
    if path.suffix == ".m4a":
        write_by_ffmpeg(path, samples.astype(np.float32)[:, None], 16_000, "aac", container="mp4")
    else:
        soundfile.write(path, samples, 16_000)
    return path


BIT_RATES = {"libopencore_amrnb": 12_200, "libmp3lame": 64_000}  # bit/s


def write_by_ffmpeg(
    path: Path,
    samples: np.ndarray,
    rate: int,
    codec: str,
    container: str | None = None,
    **options: str,
) -> Path:
    """Encode samples float32 (S, C) with an encoder and a muxer of FFmpeg, and its options."""
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[samples.shape[1]]
    with av.open(str(path), "w", format=container, options=options) as target:
        stream = target.add_stream(codec, rate=rate)
        stream.layout, stream.bit_rate = layout, BIT_RATES.get(codec, 128_000)
        resampler = av.AudioResampler(
            format=stream.codec_context.format or "fltp", layout=layout, rate=rate
        )
        size = stream.codec_context.frame_size or 1024
        for start in range(0, len(samples), size):
            # (C, S)
            block = np.ascontiguousarray(samples[start : start + size].T, dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate, start
            for converted in resampler.resample(frame):
                target.mux(stream.encode(converted))
        target.mux(stream.encode(None))
    return path


def truncate(path: Path) -> None:
    """The second half of the file is lost."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_json(root: Path, source: str, content: object, name: str = "final.json") -> None:
    """A JSON file of WavCaps; text is written as it is."""
    folder = root / "json_files" / source
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def write_wavcaps(root: Path, source: str, entries: list[dict]) -> Path:
    """WavCaps' JSON file of a source, and a sound for each entry."""
    write_json(root, source, {"num_captions_per_audio": 1, "data": entries})
    for entry in entries:
        write_sound(root / "audio" / source / f"{str(entry['id']).removesuffix('.wav')}.flac")
    return root


def run_build(script: ModuleType, defaults: dict[str, object], *arguments: object) -> int:
    """Return the exit code of a build at 16 kHz without worker processes.

    The options of `arguments` take the place of those of `defaults`.
    """
    words = [*map(str, arguments)]
    defaults = {"--num-proc": 1, "--sample-rate": 16_000} | defaults
    for option, value in defaults.items():
        if option not in words:
            words = [option, str(value), *words]
    try:
        return script.main(words)
    except SystemExit as end:  # argparse's errors
        return end.code


def load(cache: Path, split: str = "evaluation") -> datasets.Dataset:
    return datasets.load_from_disk(str(cache))[split]


def read_info(cache: Path) -> dict:
    return json.loads((cache / "cache.json").read_text(encoding="utf-8"))


def reasons(items: list[dict]) -> dict[str, str]:
    """File name -> reason, of a list in cache.json."""
    assert len({item["file_name"] for item in items}) == len(items)
    return {item["file_name"]: item["reason"] for item in items}


def error_line(capsys) -> str:
    """The error: exactly one line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def assert_refused(code: int, expected: str, cache: Path, capsys) -> None:
    """Exit code 2, one line that holds `expected`, and no cache."""
    assert code == 2
    line = error_line(capsys)
    assert expected in line, line
    assert not cache.exists()


def running_processes() -> dict[int, tuple[str, int]]:
    """Process id -> state letter, parent's id."""
    processes = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # ended meanwhile
            continue
        processes[int(path.parent.name)] = (state, int(parent))
    return processes
