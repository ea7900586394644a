"""Time to index recordings by CLAP, and of a query: `search index --checkpoint` at its real size.

    python -m benchmarks.pretrained_search [--minutes 10] [--queries 50] [--work DIR]
    python -m benchmarks.pretrained_search --quick    # tiny sizes: shows that it runs

The model has the shapes of laion/clap-htsat-unfused (the defaults of transformers' ClapConfig) and
random weights; it takes 1.5 GB of disk. The recordings are noise of 1 minute each in stereo at
44.1 kHz, so excerpts of 10 s begin every 5 s. It prints:

- the seconds that an hour of recordings takes, from the loaded model to the finished index, and the
  processor time, which other programs on the machine change less;
- the parts of the encoder and of its log-mel spectrograms in a batch of excerpts;
- milliseconds of a query, with PyTorch's text encoder and in 8 bit.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError
from retrieval.base.progress import set_quiet, silence_transformers

RATE = 44_100  # Hz, of the recordings
BATCH = 16  # excerpts, as the command
NUM_WARM = 3  # first queries, not counted
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


def write_model(folder: Path, quick: bool) -> int:
    """Write CLAP with random weights as transformers does; return the number of its weights."""
    import torch
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor

    from benchmarks.training_step import make_tokenizer

    torch.manual_seed(0)
    sizes = {"audio_config": QUICK_AUDIO, "text_config": QUICK_TEXT} if quick else {}
    model = ClapModel(ClapConfig(**sizes))
    model.save_pretrained(folder)
    mels = {"feature_size": 16, "hop_length": 1920} if quick else {}
    extractor = ClapFeatureExtractor(truncation="rand_trunc", **mels)
    ClapProcessor(extractor, make_tokenizer()).save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def write_recordings(folder: Path, minutes: int) -> None:
    import soundfile

    folder.mkdir()
    random = np.random.default_rng(0)
    for minute in range(minutes):
        samples = 0.1 * random.standard_normal((60 * RATE, 2), dtype=np.float32)
        soundfile.write(folder / f"{minute:04}.wav", samples, RATE)


def share_of_the_encoder(checkpoint: Path) -> tuple[float, float]:
    """Return the seconds of a batch of excerpts, and those of the transformer in it."""
    import torch

    from retrieval.models.pretrained import load_pretrained

    model, begun, inside = load_pretrained(checkpoint), [0.0], []
    transformer = model.audio_encoder.model
    transformer.register_forward_pre_hook(lambda *_: begun.__setitem__(0, time.perf_counter()))
    transformer.register_forward_hook(lambda *_: inside.append(time.perf_counter() - begun[0]))
    waveform = 0.1 * torch.randn(BATCH, 10 * model.sample_rate)
    lengths, whole = torch.full((BATCH,), waveform.shape[1]), []
    with torch.no_grad():
        for _ in range(3):
            start = time.perf_counter()
            model.encode_audio(waveform, lengths)
            whole.append(time.perf_counter() - start)
    fastest = int(np.argmin(whole))
    return whole[fastest], inside[fastest]


def benchmark(folder: Path, arguments: argparse.Namespace) -> int:
    import torch

    from benchmarks.training_step import make_captions
    from retrieval.search import AudioIndex, update

    checkpoint, recordings = folder / "clap", folder / "recordings"
    num_weights = write_model(checkpoint, arguments.quick)
    write_recordings(recordings, arguments.minutes)
    print(f"CLAP, {num_weights / 1e6:.1f} million weights; {torch.get_num_threads()} threads")
    load, loaded = update.load_model, [0.0, 0.0]

    def timed_load(*names):
        model = load(*names)
        loaded[:] = time.perf_counter(), time.process_time()
        return model

    update.load_model = timed_load
    try:
        AudioIndex.build(recordings, checkpoint, folder / "index")
    finally:
        update.load_model = load
    seconds, busy = time.perf_counter() - loaded[0], time.process_time() - loaded[1]
    hours = arguments.minutes / 60
    print(
        f"index: {seconds:.1f} s for {arguments.minutes} min, {seconds / hours:.0f} s per hour;"
        f" {busy / hours:.0f} s of processor time per hour"
    )
    whole, inside = share_of_the_encoder(checkpoint)
    print(
        f"a batch of {BATCH} excerpts of 10 s: {whole:.2f} s, of which the transformer"
        f" {100 * inside / whole:.0f} %, log-mel spectrograms and the rest {whole - inside:.2f} s"
    )
    queries = make_captions(arguments.queries + NUM_WARM)
    for name, fast_text in (("PyTorch", False), ("8 bit", True)):
        index = AudioIndex.open(folder / "index", fast_text=fast_text)
        times = []
        for query in queries:
            start = time.perf_counter()
            index.search(query)
            times.append(1000 * (time.perf_counter() - start))
        times = times[NUM_WARM:]
        print(
            f"a query, text encoder {name}: median {statistics.median(times):.0f} ms, longest"
            f" {max(times):.0f} ms"
        )
    return 0


def main() -> int:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=int, help="of recordings; default: 10, with --quick 1")
    parser.add_argument("--queries", type=int, help="default: 50, with --quick 3")
    parser.add_argument("--work", type=Path, help="folder for the temporary folder")
    parser.add_argument("--quick", action="store_true", help="tiny model")
    arguments = parser.parse_args()
    defaults = {"minutes": 1, "queries": 3} if arguments.quick else {"minutes": 10, "queries": 50}
    for name, default in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)}: must be 1 or more")
    from benchmarks.full_size import work_folder

    os.environ["HF_HUB_OFFLINE"] = "1"
    silence_transformers()
    set_quiet(True)
    work = work_folder(arguments.work)
    with tempfile.TemporaryDirectory(prefix="pretrained_search_", dir=work) as name:
        return benchmark(Path(name), arguments)


if __name__ == "__main__":
    run_main(main)
