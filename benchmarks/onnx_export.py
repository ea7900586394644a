"""The ONNX export at full size: seconds, megabytes, differences to PyTorch and speed of both.

    python -m benchmarks.onnx_export [--work DIR]    # 2 GB of disk, 8 GiB of memory, some minutes
    python -m benchmarks.onnx_export --quick         # tiny sizes: shows that it runs

The model of configs/tap.yaml with random weights: ATST-Frame base, roberta-large, TAP. Then clips
of 30 s and captions go through both, alternating, with OMP_NUM_THREADS threads.
"""

import argparse
import tempfile
import time
from pathlib import Path

import onnxruntime
import torch

from benchmarks.full_size import hardware, work_folder
from benchmarks.timing import alternate
from benchmarks.training_step import make_captions, make_model
from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser
from retrieval.base.processes import peak_memory
from retrieval.models.dual_encoder import DualEncoder
from retrieval.sharing.export.onnx_files import export_onnx

NUM_CLIPS, NUM_CAPTIONS, ROUNDS = 2, 16, 3


def compare(model: DualEncoder, folder: Path) -> None:
    """Print seconds of PyTorch and of ONNX Runtime for the same clips, captions and scores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    graphs = {
        name: onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), options)
        for name in ("audio", "text", "score")
    }
    waveform = 0.1 * torch.randn(
        NUM_CLIPS, model.windows.clip_samples, generator=torch.Generator().manual_seed(0)
    )
    lengths = torch.full((NUM_CLIPS,), model.windows.clip_samples)
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
        f"seconds for {NUM_CLIPS} clips of {model.clip_seconds:g} s and {NUM_CAPTIONS} captions,"
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
    parser.add_argument("--quick", action="store_true", help="a tiny model")
    arguments = parser.parse_args()
    work = work_folder(arguments.work)
    model = make_model(arguments.quick)[0].eval()
    print(
        f"configs/tap.yaml{' in miniature' if arguments.quick else ''}, {torch.get_num_threads()}"
        f" thread(s); {hardware()}",
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
