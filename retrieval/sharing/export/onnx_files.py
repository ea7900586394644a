"""ONNX graphs of a model, checked against PyTorch, in a folder.

audio.onnx, text.onnx, score.onnx, the tokenizer, export.json, README.md.

Letters: B clips, S samples, T frames, N captions, L tokens, D = dim.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.export import Dim

from retrieval.base.errors import UserError, one_line
from retrieval.base.extras import needs_extra
from retrieval.base.folders import whole_folder
from retrieval.base.progress import bar
from retrieval.models.dual_encoder import DualEncoder, check_finite, eval_mode
from retrieval.sharing.export.checks import ABOUT, check_folder, check_room
from retrieval.sharing.export.graphs import AudioTower, Score, TextTower
from retrieval.sharing.export.readme import AS_WRITTEN, NORMALISED, SIMILARITIES, onnx_readme

TOLERANCE = 1e-4  # of a difference to PyTorch: absolute, or over the largest number if above 1
OPSET = 18
# larger weights lie in a file beside the graph: a graph file holds at most 2 GiB
EXTERNAL_BYTES = 2**30
LIBRARIES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")
SEED = 0
MOST_TOKENS = 256  # of a caption of the check, for text encoders with thousands of positions
# name, module, example inputs, their free axes, names of the outputs
Part = tuple[str, nn.Module, dict[str, Tensor], dict[str, dict[int, Any]], tuple[str, ...]]


def export_onnx(
    model: DualEncoder, output: Path, source: dict[str, Any], overwrite: bool = False
) -> dict[str, Any]:
    """Write a model as ONNX graphs.

    Args:
        model: Moved to the CPU.
        output: Folder that is made.
        source: Name of the model, for export.json.
        overwrite: Replace an earlier export.

    Returns:
        The content of export.json.

    Raises:
        UserError: A graph cannot be written, or differs from PyTorch by more than TOLERANCE;
            `output` is then as before.
    """
    check_folder(output, overwrite)
    check_finite(model, "the model", "export")
    model.pooling.check_searchable()
    num_bytes = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    check_room(output, 1.1 * num_bytes)
    model = model.cpu()
    steps = bar(total=6, desc="exporting", unit="step")
    with (
        eval_mode(model),
        torch.no_grad(),
        whole_folder(output, "the ONNX graphs") as folder,
        steps as progress,
    ):
        graphs = {}
        for name, module, arguments, axes, outputs in parts(model):
            path = folder / f"{name}.onnx"
            graphs[name] = write_graph(path, module.eval(), arguments, axes, outputs)
            progress.update()
        differences = {}
        for name, found in _differences(model, folder):
            differences[name] = float(np.maximum(found, differences.get(name, 0.0)))  # keeps NaN
        progress.update(3)
        wrong = {name: found for name, found in differences.items() if not found <= TOLERANCE}
        if wrong:
            named = ", ".join(f"{name} by {found:.2g}" for name, found in wrong.items())
            raise UserError(
                f"the ONNX graphs differ from PyTorch, {named}, more than {TOLERANCE:g}: nothing"
                f" was written to {output}"
            )
        model.text_encoder.tokenizer.save_pretrained(str(folder / "tokenizer"))
        grid, encoder = model.windows, model.text_encoder
        export = {
            "source": source,
            "audio_encoder": model.architecture["audio_encoder"]["name"],
            "text_encoder": model.architecture["text_encoder"]["model_type"],
            "pooling": model.architecture["pooling"]["name"],
            "dim": model.architecture["dim"],
            "sample_rate": model.sample_rate,
            "clip_seconds": model.clip_seconds,
            "window_seconds": grid.window_samples / model.sample_rate,
            "hop_seconds": grid.hop_samples / model.sample_rate,
            "frames_per_window": grid.frames_per_window,
            "waveform": (
                "float32 in [-1, 1], mono, zeros after a clip's `lengths` samples; the longest clip"
                " fills its row"
            ),
            "captions": AS_WRITTEN if encoder.as_written else NORMALISED,
            "padding_side": "right",
            "max_tokens": encoder.max_tokens,
            "similarity": model.pooling.similarity,
            "score": f"{SIMILARITIES[model.pooling.similarity]}, rows are captions, columns clips",
            "opset": OPSET,
            "graphs": graphs,
            "differences_to_pytorch": differences,
            "tolerance": TOLERANCE,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "versions": {name: version(name) for name in LIBRARIES},
        }
        (folder / ABOUT).write_text(json.dumps(export, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(onnx_readme(export), encoding="utf-8")
    return export


def parts(model: DualEncoder) -> Iterator[Part]:
    """Return the three graphs to write."""
    grid = model.windows
    clips, captions, frames = (Dim(name, min=1) for name in ("clips", "captions", "frames"))
    inputs = {
        "waveform": torch.randn(2, grid.clip_samples) * 0.1,
        "lengths": torch.tensor([grid.clip_samples, grid.window_samples // 2 + 1]),
    }
    axes = {"waveform": {0: clips, 1: Dim("samples", min=1)}, "lengths": {0: clips}}
    yield "audio", AudioTower(model), inputs, axes, ("frames", "mask")
    encoded, mask = model.encode_audio(*inputs.values())
    yield text_part(model)
    inputs = {"text": model.encode_text(CAPTIONS[:3]), "frames": encoded, "mask": mask}
    free = {0: clips, 1: frames} if model.pooling.keeps_frames else {0: clips}
    yield (
        "score",
        Score(model.pooling),
        inputs,
        {"text": {0: captions}, "frames": free, "mask": free},
        ("scores",),
    )


def text_part(model: DualEncoder) -> Part:
    """Return the graph of the text tower.

    Its inputs are input_ids and attention_mask int64 (N, L), its output is text (N, D).
    """
    tokens = model.text_encoder.tokens(CAPTIONS[:3])
    inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    axes = {name: {0: Dim("captions", min=1), 1: Dim("tokens", min=1)} for name in inputs}
    return "text", TextTower(model), inputs, axes, ("text",)


def write_graph(
    path: Path,
    module: nn.Module,
    arguments: dict[str, Tensor],
    axes: dict[str, dict[int, Any]],
    outputs: tuple[str, ...],
) -> dict[str, Any]:
    """Write one graph.

    Args:
        path: File of the graph; large weights are written beside it.
        module: In eval mode.
        arguments: Example inputs by name, in the order of forward().
        axes: Free axes of each input, as torch.export takes them.
        outputs: Names of the outputs.

    Returns:
        {"file", "bytes", "inputs", "outputs"}, with type and shape of each input and output.

    Raises:
        UserError: The module cannot be written as a graph.
    """
    with needs_extra("export"):  # torch.onnx imports them, too late for a plain error
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    num_bytes = sum(
        tensor.numel() * tensor.element_size() for tensor in module.state_dict().values()
    )
    try:
        with _silence():
            torch.onnx.export(
                module,
                tuple(arguments.values()),
                str(path),
                input_names=list(arguments),
                output_names=list(outputs),
                dynamic_shapes=axes,
                opset_version=OPSET,
                dynamo=True,
                external_data=num_bytes > EXTERNAL_BYTES,
                verbose=False,
            )
    except OSError:
        raise
    # torch.export, onnxscript and the libraries below raise their own kinds
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # torch.onnx wraps it in pages of advice
            cause = cause.__cause__
        reason = one_line(cause, longest=300)
        raise UserError(
            f"the {path.stem} part of this model cannot be written as ONNX ({reason})"
        ) from None
    session = open_session(path)
    size = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
    graph: dict[str, Any] = {"file": path.name, "bytes": size, "inputs": {}, "outputs": {}}
    for kind, values in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        for value in values:
            # a free axis is a name, but the number of frames is a formula of the samples
            shape = [
                axis if isinstance(axis, int) or axis.isidentifier() else "frames"
                for axis in value.shape
            ]
            graph[kind][value.name] = {"type": value.type, "shape": shape}
    return graph


@contextmanager
def _silence() -> Iterator[None]:
    """Hide the exporter's warnings and log lines."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# --- the check ---

CAPTIONS = [
    "A dog barks twice.",
    "Rain",
    (
        "A man speaks while birds sing in the background, then a car passes by on a wet road and"
        " the engine fades slowly into the distance."
    ),
    "someone walks on gravel",
]


def _differences(model: DualEncoder, folder: Path) -> Iterator[tuple[str, float]]:
    """Compare ONNX Runtime with PyTorch on batches of several sizes and clip lengths.

    Yields pairs of a name, such as "frames", and the largest difference of one batch.
    """
    rng = np.random.default_rng(SEED)
    audio, onnx_audio = [], []  # one tower at a time: at full size they take gigabytes
    for encoded, found in check_audio(model, folder / "audio.onnx", rng):
        audio.append(encoded)
        onnx_audio.append(found)
        yield "mask", 0.0 if torch.equal(encoded[1], found[1]) else float("inf")
        yield "frames", difference(encoded[0], found[0])
    texts, onnx_texts = [], []
    for text, found in check_text(model, folder / "text.onnx", rng):
        texts.append(text)
        onnx_texts.append(found)
        yield "text", difference(text, found)
    session = open_session(folder / "score.onnx")
    for (frames, mask), (onnx_frames, onnx_mask) in zip(audio, onnx_audio, strict=True):
        for text, onnx_text in zip(texts, onnx_texts, strict=True):
            scores = model.score(text, frames, mask)
            [found] = _run(session, text=text, frames=frames, mask=mask)
            yield "score", difference(scores, found)
            [found] = _run(session, text=onnx_text, frames=onnx_frames, mask=onnx_mask)
            yield "all three", difference(scores, found)


def check_audio(
    model: DualEncoder, path: Path, rng: np.random.Generator
) -> Iterator[tuple[tuple[Tensor, Tensor], list[Tensor]]]:
    """Yield frames and mask by PyTorch and by the graph, batch by batch."""
    session = open_session(path)
    full, window = model.windows.clip_samples, model.windows.window_samples
    batches = ([full], [full // 3 + 1, 1, full // 2 + 17], [window, window // 5 + 1])
    for batch in (*batches, [window // 2 + 1]):
        waveform, lengths = _clips(batch, model.sample_rate, rng)
        found = _run(session, waveform=waveform, lengths=lengths)
        yield model.encode_audio(waveform, lengths), found


def check_text(
    model: DualEncoder, path: Path, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield texts by PyTorch and by the graph, batch by batch."""
    session = open_session(path)
    for captions in (CAPTIONS[:1], _captions(model, rng), _captions(model, rng)[:2]):
        tokens = model.text_encoder.tokens(captions)
        inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        yield model.encode_text(captions), _run(session, **inputs)[0]


def difference(expected: Tensor, found: Tensor) -> float:
    """Return the largest absolute difference, divided by the largest of `expected` if above 1.

    Infinite for another shape.
    """
    if expected.shape != found.shape:
        return float("inf")
    return float((expected - found).abs().max() / expected.abs().max().clamp_min(1.0))


def _clips(lengths: list[int], sample_rate: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Make sounds from near silence to full scale, each with a tone that fades.

    The last third of a long one is silent.
    """
    waveform = torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        time = np.arange(length) / sample_rate
        sound = 10.0 ** rng.uniform(-3.0, -0.5) * rng.standard_normal(length)
        sound += 0.5 * np.sin(2 * np.pi * rng.uniform(80, 4000) * time) * np.exp(-time)
        if length > 2 * sample_rate:
            sound[-length // 3 :] = 0.0
        waveform[row, :length] = torch.from_numpy(sound.clip(-1.0, 1.0)).float()
    return waveform, torch.tensor(lengths)


def _captions(model: DualEncoder, rng: np.random.Generator) -> list[str]:
    """Return English captions, and random tokens: fewer and more than max_tokens."""
    tokenizer = model.text_encoder.tokenizer
    longest = min(model.text_encoder.max_tokens or 64, MOST_TOKENS)
    captions = list(CAPTIONS)
    for size in (longest // 2 + 1, 2 * longest):
        tokens = rng.integers(len(tokenizer), size=size).tolist()
        captions.append(tokenizer.decode(tokens, skip_special_tokens=True))
    return captions


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Open a graph on the CPU, with as many threads as PyTorch has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # threads that wait would take the cores from PyTorch's
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, **inputs: Tensor) -> list[Tensor]:
    try:
        arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
        return [torch.from_numpy(output) for output in session.run(None, arrays)]
    except Exception as error:  # of onnxruntime's own kinds
        sizes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in inputs.items())
        raise UserError(
            f"ONNX Runtime does not run the graph on {sizes} ({one_line(error, longest=300)}):"
            " nothing was written"
        ) from None
