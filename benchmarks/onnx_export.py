"""The ONNX export at full size: seconds, megabytes, differences to PyTorch and speed of both.

    python -m benchmarks.onnx_export [--work DIR]    # 2 GB of disk, 8 GiB of memory, some minutes
    python -m benchmarks.onnx_export --clap          # CLAP of transformers in its default shapes
    python -m benchmarks.onnx_export --quick         # tiny sizes: shows that it runs

The model of configs/tap.yaml with random weights: ATST-Frame base, roberta-large, TAP; or CLAP, as
laion/clap-htsat-unfused. Then clips of 30 s and captions go through both, alternating, with
OMP_NUM_THREADS threads.
"""

import argparse
import tempfile
import time
from pathlib import Path

import onnxruntime
import torch
import transformers

from benchmarks.full_size import hardware, work_folder
from benchmarks.timing import alternate
from benchmarks.training_step import make_captions, make_model
from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser
from retrieval.base.processes import peak_memory
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.pretrained import load_pretrained
from retrieval.sharing.export.onnx_files import export_onnx

NUM_CLIPS, CLIP_SECONDS, NUM_CAPTIONS, ROUNDS = 2, 30.0, 16, 3


def make_clap() -> DualEncoder:
    """Make CLAP in the default shapes of transformers, with random weights; it knows WORDS."""
    tokenizer = make_model(quick=True)[0].text_encoder.tokenizer
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        transformers.ClapModel(transformers.ClapConfig()).save_pretrained(folder)
        transformers.ClapFeatureExtractor(truncation="rand_trunc").save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return load_pretrained(folder)


def compare(model: DualEncoder, folder: Path) -> None:
    """Print seconds of PyTorch and of ONNX Runtime for the same clips, captions and scores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    graphs = {
        name: onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), options)
        for name in ("audio", "text", "score")
    }
    seconds_of_clip = min(CLIP_SECONDS, model.clip_seconds)
    num_samples = round(seconds_of_clip * model.sample_rate)
    waveform = 0.1 * torch.randn(NUM_CLIPS, num_samples, generator=torch.Generator().manual_seed(0))
    lengths = torch.full((NUM_CLIPS,), num_samples)
    captions = make_captions(NUM_CAPTIONS)
    tokens = model.text_encoder.tokens(captions)
    frames, mask = model.encode_audio(waveform, lengths)
    text = model.encode_text(captions)
    inputs = {
        "audio": {"waveform": waveform, "lengths": lengths},
        "text": {name: tokens[name] for name in ("input_ids", "attention_mask")},
        "score": {"text": text, "frames": frames, "mask": mask},
    }
    ways = {
        "audio": lambda: model.encode_audio(waveform, lengths),
        "text": lambda: model.encode_text(captions),
        "score": lambda: model.score(text, frames, mask),
    }
    print(
        f"seconds for {NUM_CLIPS} clips of {seconds_of_clip:g} s and {NUM_CAPTIONS} captions,"
        f" fastest of {ROUNDS} rounds"
    )
    for name, torch_way in ways.items():
        given = {key: value.numpy() for key, value in inputs[name].items()}
        both = {
            "PyTorch": torch_way,
            "ONNX Runtime": lambda name=name, given=given: graphs[name].run(None, given),
        }
        seconds, _ = alternate(both, ROUNDS)
        print(
            f"{name}: " + ", ".join(f"{way} {min(times):.3f} s" for way, times in seconds.items())
        )


@torch.no_grad()
def main() -> int:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, help="folder for the temporary folder (default: the system's)"
    )
    parser.add_argument("--clap", action="store_true", help="CLAP in place of configs/tap.yaml")
    parser.add_argument("--quick", action="store_true", help="a tiny model of configs/tap.yaml")
    arguments = parser.parse_args()
    if arguments.clap and arguments.quick:
        parser.error("--clap has its default shapes: leave out --quick")
    work = work_folder(arguments.work)
    model = make_clap() if arguments.clap else make_model(arguments.quick)[0].eval()
    name = f"configs/tap.yaml{' in miniature' if arguments.quick else ''}"
    print(
        f"{'CLAP' if arguments.clap else name}, {torch.get_num_threads()} thread(s); {hardware()}",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="onnx_export_", dir=work) as name:
        folder, start = Path(name) / "onnx", time.perf_counter()
        about = export_onnx(model, folder, {})
        print(f"exported and checked in {time.perf_counter() - start:.1f} s")
        for graph in about["graphs"].values():
            print(
                f"{graph['file']}: {graph['bytes'] / 1e6:.1f} MB in"
                f" {len(list(folder.glob(graph['file'] + '*')))} file(s)"
            )
        print(
            "largest differences: "
            + ", ".join(
                f"{part} {found:.1e}" for part, found in about["differences_to_pytorch"].items()
            )
        )
        compare(model, folder)
    # kB -> GiB
    print(f"peak memory {peak_memory() / 2**30:.1f} GiB")
    return 0


if __name__ == "__main__":
    run_main(main)
