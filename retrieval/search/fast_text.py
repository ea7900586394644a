"""The text tower in 8 bit with ONNX Runtime, for queries on a CPU: roberta-large takes a fifth of PyTorch's time, and vectors that differ a little.

    INDEX/fast_text/text.onnx    written at the first use; an index belongs to one model, and so does this

Weights of matrix products are int8, one scale an output; activations are quantised as they come. Measured in benchmarks/search.py.
"""

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from retrieval.errors import UserError, one_line
from retrieval.export.onnx_files import open_session, text_part, write_graph
from retrieval.files import whole_folder
from retrieval.models import DualEncoder
from retrieval.search.writer import FAST_TEXT

GRAPH = "text.onnx"


def fast_text_encoder(index: Path, model: DualEncoder) -> Callable[[list[str]], torch.Tensor]:
    """In place of model.encode_text: captions -> (N, D), not normalised. Raises UserError where it cannot be made."""
    path = index / FAST_TEXT / GRAPH
    if not path.is_file():
        _write(index, model)
    try:
        session = open_session(path)
    except Exception as error:  # of onnxruntime's own kinds
        raise UserError(f"{path} does not load ({one_line(error)}); delete {path.parent}, it is made again") from None
    return _Encoder(model, session)


class _Encoder:
    def __init__(self, model: DualEncoder, session: onnxruntime.InferenceSession):
        self.model, self.session = model, session

    def __call__(self, captions: list[str]) -> torch.Tensor:
        tokens = self.model.text_encoder.tokens(captions)
        inputs = {name: tokens[name].numpy() for name in ("input_ids", "attention_mask")}
        return torch.from_numpy(self.session.run(None, inputs)[0])


def _write(index: Path, model: DualEncoder) -> None:
    with whole_folder(index / FAST_TEXT, "the text encoder in 8 bit") as folder, tempfile.TemporaryDirectory(dir=index) as name, torch.no_grad():
        _, tower, inputs, axes, outputs = text_part(model)
        whole = Path(name) / GRAPH
        write_graph(whole, tower.eval(), inputs, axes, outputs)
        logging.disable(logging.WARNING)  # advice that concerns convolutions
        try:
            quantize_dynamic(whole, folder / GRAPH, per_channel=True, weight_type=QuantType.QInt8, use_external_data_format=True)
        finally:
            logging.disable(logging.NOTSET)
