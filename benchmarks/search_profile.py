"""Profile search at full size: time by stage, to index an hour and of a query.

    python -m benchmarks.search_profile [--model tap|mean|clap] [--minutes 8] [--work DIR]
    python -m benchmarks.search_profile --part query [--clips 10000]
    python -m benchmarks.search_profile --quick    # tiny sizes: shows that it runs

Models have random weights and the sizes of configs/tap.yaml, configs/baseline.yaml or
laion/clap-htsat-unfused (the defaults of transformers' ClapConfig).

--part index makes recordings of modulated noise: one of half the --minutes and the others of one
minute; in turns WAV at 44.1 kHz in stereo, FLAC, MP3, and WAV at 32 kHz. --part query makes an
index of --clips excerpts with random frames (with tap 16 GB of disk for 10,000).

torch.profiler records the operators of the main thread, and stages around functions of search. The
time of a stage is divided into matrix products (attention's and convolutions too), other operators,
and the rest: Python, NumPy, files, waiting. Decoders are processes of their own, whose processor
time the system counts.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.markdown import table
from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError
from retrieval.base.interrupts import watch_sigterm
from retrieval.base.matrix_products import fastest_product

MODELS, PARTS = ("tap", "mean", "clap"), ("index", "query")
BATCH = 16  # excerpts, as the command
NUM_WARM = 3  # queries before those that count
FORMATS = {  # ending: Hz, channels, format and subtype of soundfile
    "stereo.wav": (44_100, 2, "WAV", "PCM_16"),
    "flac": (44_100, 2, "FLAC", "PCM_16"),
    "mp3": (44_100, 2, "MP3", "MPEG_LAYER_III"),
    "wav": (32_000, 1, "WAV", "PCM_16"),
}
PRODUCTS = {
    *("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::mv", "aten::addmv"),
    *("aten::mkldnn_convolution", "aten::_scaled_dot_product_flash_attention_for_cpu"),
}
KINDS = ("products", "operators", "rest")
ROOT = "other"
QUICK_AUDIO = {
    "spec_size": 64,
    "num_mel_bins": 16,
    "window_size": 4,
    "depths": [1, 1],
    "num_attention_heads": [2, 2],
    "patch_embeds_hidden_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
}
QUICK_TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def write_clap(folder: Path, quick: bool) -> None:
    """Write CLAP with random weights as transformers does."""
    import torch
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor

    from benchmarks.training_step import make_tokenizer

    torch.manual_seed(0)
    sizes = {"audio_config": QUICK_AUDIO, "text_config": QUICK_TEXT} if quick else {}
    ClapModel(ClapConfig(**sizes)).save_pretrained(folder)
    mels = {"feature_size": 16, "hop_length": 1920} if quick else {}
    extractor = ClapFeatureExtractor(truncation="rand_trunc", **mels)
    ClapProcessor(extractor, make_tokenizer()).save_pretrained(folder)


def write_model(folder: Path, kind: str, quick: bool) -> None:
    """Write a model of one of MODELS, with random weights."""
    from benchmarks.training_step import make_model
    from retrieval.models.dual_encoder import DualEncoder

    if kind == "clap":
        write_clap(folder, quick)
        return
    model = make_model(quick)[0]
    if kind == "mean":
        tokenizer = model.text_encoder.tokenizer
        model = DualEncoder(**model.architecture | {"pooling": {"name": "mean"}})
        model.text_encoder.tokenizer = tokenizer
    model.save_pretrained(folder)


def write_recordings(folder: Path, minutes: int) -> None:
    """Write recordings of `minutes` together, in all FORMATS."""
    import soundfile

    folder.mkdir()
    random, long = np.random.default_rng(0), max(1, minutes // 2)
    for number, length in enumerate([long] + [1] * (minutes - long)):
        ending = list(FORMATS)[number % len(FORMATS)]
        rate, channels, kind, subtype = FORMATS[ending]
        path = folder / f"{number:03}.{ending}"
        swell = (1 + np.sin(np.arange(60 * rate) / rate))[:, None].astype(np.float32)
        with soundfile.SoundFile(path, "w", rate, channels, subtype=subtype, format=kind) as file:
            for _ in range(length):
                noise = random.standard_normal((60 * rate, channels), dtype=np.float32)
                file.write(0.05 * swell * noise)


@contextmanager
def staged(stages: dict[str, tuple[Any, str]]) -> Iterator[None]:
    """Record the calls of functions as stages: name to (owner, attribute).

    A name may have a number behind "/", for several functions of one stage.
    """
    from torch.profiler import record_function

    def wrapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            with record_function(name):
                return function(*arguments, **named)

        return call

    with ExitStack() as stack:
        for name, (owner, attribute) in stages.items():
            call = wrapped(name.partition("/")[0], getattr(owner, attribute))
            stack.enter_context(mock.patch.object(owner, attribute, call))
        yield


def profiled(
    work: Callable[[], Any], stages: dict[str, tuple[Any, str]]
) -> tuple[list[dict[str, Counter[str]]], Counter[str]]:
    """Run `work`.

    Returns:
        Seconds by stage and kind (KINDS) for each call of the stage ROOT, in order.
        Seconds by operator, in all these calls.
    """
    from torch.profiler import ProfilerActivity, profile

    with staged(stages), profile(activities=[ProfilerActivity.CPU], acc_events=True) as recorded:
        work()
    calls: dict[int, dict[str, Counter[str]]] = {}
    operators: Counter[str] = Counter()
    for event in recorded.events():
        stage, outer = "", event
        while outer is not None and outer.name != ROOT:
            stage = stage or (outer.name if outer.name in stages else "")
            outer = outer.cpu_parent
        if outer is None:
            continue  # outside of ROOT, or of another thread
        seconds, kind = event.self_cpu_time_total / 1e6, "rest"
        if "::" in event.name:
            kind = "products" if event.name in PRODUCTS else "operators"
            operators[event.name] += seconds
        calls.setdefault(id(outer), defaultdict(Counter))[stage or ROOT][kind] += seconds
    return list(calls.values()), operators


def stage_table(seconds: dict[str, Counter[str]], unit: float, name: str) -> str:
    """Return a Markdown table of stages; unit: number to multiply seconds by."""
    whole = sum(kinds.total() for kinds in seconds.values())
    lines = []
    rows = sorted(seconds.items(), key=lambda row: -row[1].total())
    sums: Counter[str] = sum((kinds for _, kinds in rows), Counter())
    for stage, kinds in [*rows, ("**all**", sums)]:
        share = f"{100 * kinds.total() / whole:.1f} %"
        cells = [f"{unit * kinds[kind]:.1f}" for kind in KINDS]
        lines.append([stage, f"{unit * kinds.total():.1f}", share, *cells])
    return table([name, "all", "share", *KINDS], lines)


def processor_seconds() -> tuple[float, float]:
    """Return the processor time of this process and of its decoders, in s."""
    from retrieval.base import decoder_process

    tick, decoders = os.sysconf("SC_CLK_TCK"), 0
    for decoder in decoder_process._all:
        fields = Path(f"/proc/{decoder._process.pid}/stat").read_text().rpartition(")")[2].split()
        decoders += int(fields[11]) + int(fields[12])  # user and system
    return time.process_time(), decoders / tick


def profile_index(folder: Path, arguments: argparse.Namespace) -> None:
    """Index recordings twice, without and with the profiler; print stages an hour of recordings."""
    import torch
    import torchaudio
    from torch.utils.flop_counter import FlopCounterMode

    from retrieval.models.pretrained import load_pretrained
    from retrieval.search import AudioIndex, update
    from retrieval.search.encoder import ExcerptEncoder
    from retrieval.search.local.writer import IndexWriter

    checkpoint, recordings = folder / "model", folder / "recordings"
    write_recordings(recordings, arguments.minutes)
    hours, precision = arguments.minutes / 60, arguments.mixed_precision
    model = load_pretrained(checkpoint)
    encoder = type(model.audio_encoder)
    stages = {
        "batches: collect, pad, check": (ExcerptEncoder, "encode"),
        "resample to the encoder's rate": (torchaudio.functional, "resample"),
        "mel front end": (encoder, "_features" if hasattr(encoder, "_features") else "log_mel"),
        "audio encoder": (encoder, "forward"),
        "first-stage vectors": (type(model.pooling), "clip_vectors"),
        "code and write": (IndexWriter, "append"),
        "commit": (IndexWriter, "commit"),
        ROOT: (update, "update_index"),  # reads and waits for sounds itself
    }
    measured: dict[str, float] = {}
    update_index = update.update_index

    def timed(*given: Any) -> Any:
        before, start = processor_seconds(), time.perf_counter()
        result = update_index(*given)
        after, measured["wall"] = processor_seconds(), time.perf_counter() - start
        measured["own"], measured["decoders"] = after[0] - before[0], after[1] - before[1]
        return result

    def build() -> None:
        place = folder / "index"
        AudioIndex.build(recordings, checkpoint, place, mixed_precision=precision, batch_size=BATCH)
        shutil.rmtree(place)

    with mock.patch.object(update, "update_index", timed):
        build()
    (found,), operators = profiled(build, stages)
    wall, own, decoders = (measured[name] / hours for name in ("wall", "own", "decoders"))
    profiler = sum(kinds.total() for kinds in found.values()) / hours
    print(
        f"index of {arguments.minutes} min, precision {precision}: an hour of recordings takes"
        f" {wall:.0f} s, of processor time {own:.0f} s and in decoders {decoders:.0f} s; with the"
        f" profiler {profiler:.0f} s"
    )
    print(stage_table(found, 1 / hours, "s for an hour"))
    most = ", ".join(f"{name} {own / hours:.1f}" for name, own in operators.most_common(8))
    print(f"operators, s: {most}")
    samples = torch.zeros(1, round(model.sample_rate * excerpt_seconds(model)))
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model.encode_audio(samples, torch.tensor([samples.shape[1]]))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    excerpt, peak = flops.get_total_flops() / 1e9, fastest_product(dtype, 2048, repeats=6) / 1e9
    seconds = excerpt / peak * 7200 / excerpt_seconds(model)  # they overlap by half
    print(
        f"an excerpt: {excerpt:.0f} GFLOP; the products of an hour: {seconds:.0f} s at the peak of"
        f" this machine, {peak:.0f} GFLOP/s"
    )


def excerpt_seconds(model: Any) -> float:
    return min(model.clip_seconds, model.pooling.longest_excerpt)


def profile_queries(folder: Path, arguments: argparse.Namespace) -> None:
    """Ask an index of random vectors and frames; print the stages of a query."""
    from benchmarks.search import write_index
    from benchmarks.training_step import make_captions
    from retrieval.models.text import TextEncoder
    from retrieval.search import AudioIndex
    from retrieval.search.two_stage import TwoStage

    path = folder / "index"
    write_index(path, folder / "model", arguments.clips)
    queries = make_captions(arguments.queries + NUM_WARM)
    for name, fast_text in (("PyTorch", False), ("8 bit", True)):
        index = AudioIndex.open(path, fast_text=fast_text)
        stages = {
            "tokenise": (TextEncoder, "tokens"),
            "text encoder": (index, "_encode_text"),
            "first stage": (type(index.store), "nearest"),
            "read frames": (TwoStage, "_keys"),
            "TAP's scores": (TwoStage, "rescore"),
            "moments": (TwoStage, "heard"),
            "answers": (AudioIndex, "_hits"),
            ROOT: (AudioIndex, "search"),
        }
        took = []

        def ask(index: AudioIndex = index, took: list[float] = took) -> None:
            for query in queries:
                start = time.perf_counter()
                index.search(query)
                took.append(1000 * (time.perf_counter() - start))

        calls, _ = profiled(ask, stages)
        print(
            f"text encoder {name}, {arguments.clips:,} excerpts: first query {took[0]:.0f} ms,"
            f" later ones median {statistics.median(took[NUM_WARM:]):.0f} ms, longest"
            f" {max(took[NUM_WARM:]):.0f} ms, with the profiler"
        )
        mean: dict[str, Counter[str]] = defaultdict(Counter)
        for call in calls[NUM_WARM:]:
            for stage, kinds in call.items():
                for kind, seconds in kinds.items():
                    mean[stage][kind] += seconds / (len(calls) - NUM_WARM)
        print(stage_table(mean, 1000, "ms of a query, mean"))


def main() -> int:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", choices=MODELS, default="tap")
    add("--part", choices=PARTS, help="default: both")
    add("--minutes", type=int, help="of recordings to index; default: 8, with --quick 2")
    add("--mixed-precision", choices=("no", "bf16"), default="no", help="of the indexing encoder")
    add("--clips", type=int, help="in the index to query; default: 10000, with --quick 200")
    add("--queries", type=int, help="default: 30, with --quick 3")
    add("--work", type=Path, metavar="DIR", help="folder for the temporary folder")
    add("--quick", action="store_true", help="tiny models")
    arguments = parser.parse_args()
    quick, full = {"minutes": 2, "clips": 200, "queries": 3}, {"minutes": 8, "clips": 10_000}
    for name, default in (quick if arguments.quick else full | {"queries": 30}).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)}: must be 1 or more")
    from benchmarks.full_size import hardware, set_quiet_and_offline, work_folder

    set_quiet_and_offline()
    work = work_folder(arguments.work)
    parts = [arguments.part] if arguments.part else PARTS
    needed = 0.1 if arguments.quick else 4.0  # GB, models and recordings
    if "query" in parts and arguments.model != "clap" and not arguments.quick:
        needed += 1.2e-3 * arguments.clips
    if shutil.disk_usage(work).free / 1e9 < needed:
        raise UserError(f"{work} has less than {needed:.1f} GB free: give another --work DIR")
    with tempfile.TemporaryDirectory(prefix="search_profile_", dir=work) as name:
        folder = Path(name)
        (folder / "model").mkdir()
        write_model(folder / "model", arguments.model, arguments.quick)
        print(f"{arguments.model}, random weights; {hardware()}")
        if "index" in parts:
            profile_index(folder, arguments)
        if "query" in parts:
            profile_queries(folder, arguments)
    return 0


if __name__ == "__main__":
    watch_sigterm()
    run_main(main)
