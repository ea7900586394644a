"""Text tower in 8 bit with ONNX Runtime, for queries on a CPU.

    INDEX/fast_text/text.onnx         written at the first use, under the index's lock
    INDEX/fast_text/made_from.json    sha256 of the files of its model

Weights of matrix products are int8, with a scale for each output; activations are quantised at run
time. roberta-large takes a fifth of PyTorch's time, and its vectors differ a little. Measured in
benchmarks/search.py.
"""

import json
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from retrieval.base.errors import UserError, one_line
from retrieval.base.files import read_json
from retrieval.base.folders import MADE_FROM, whole_folder
from retrieval.models.dual_encoder import DualEncoder
from retrieval.search.local.writer import FAST_TEXT, locked
from retrieval.search.model_identity import ModelIdentity
from retrieval.sharing.export.onnx_files import open_session, text_part, write_graph

GRAPH = "text.onnx"


def fast_text_encoder(
    index: Path, model: DualEncoder, identity: ModelIdentity
) -> Callable[[list[str]], torch.Tensor]:
    """Return a replacement of model.encode_text, in 8 bit.

    Args:
        index: Folder of an index, which keeps the encoder.
        model: The model of the index, on the CPU.
        identity: Of that model.

    Returns:
        Function from N captions to vectors float32 (N, D), not normalised.

    Raises:
        UserError: The encoder cannot be written, or the kept one does not load.
    """
    folder = index / FAST_TEXT

    def is_made() -> bool:
        try:
            return (folder / GRAPH).is_file() and read_json(folder / MADE_FROM) == identity.digests
        except (OSError, ValueError):
            return False

    if not is_made():
        with locked(index):
            if not is_made():  # another process may have made it meanwhile
                _write(index, model, identity.digests)
    try:
        session = open_session(folder / GRAPH)
    except Exception as error:  # of onnxruntime's own kinds
        raise UserError(
            f"{folder / GRAPH} does not load ({one_line(error)}); delete {folder}, it is made again"
        ) from None

    def encode(captions: list[str]) -> torch.Tensor:
        tokens = model.text_encoder.tokens(captions)
        inputs = {name: tokens[name].numpy() for name in ("input_ids", "attention_mask")}
        return torch.from_numpy(session.run(None, inputs)[0])

    return encode


def _write(index: Path, model: DualEncoder, made_from: dict[str, str]) -> None:
    temporary = tempfile.TemporaryDirectory(dir=index, prefix=f".{FAST_TEXT}.")
    with (
        whole_folder(index / FAST_TEXT, "the text encoder in 8 bit") as folder,
        temporary as name,
        torch.no_grad(),
    ):
        _, tower, inputs, axes, outputs = text_part(model)
        whole = Path(name) / GRAPH
        write_graph(whole, tower.eval(), inputs, axes, outputs)
        logging.disable(logging.WARNING)  # advice that concerns convolutions
        try:
            quantize_dynamic(
                whole,
                folder / GRAPH,
                per_channel=True,
                weight_type=QuantType.QInt8,
                use_external_data_format=True,
            )
        finally:
            logging.disable(logging.NOTSET)
        (folder / MADE_FROM).write_text(json.dumps(made_from), encoding="utf-8")
