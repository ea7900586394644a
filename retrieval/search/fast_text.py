"""The text tower in 8 bit with ONNX Runtime, for queries on a CPU: roberta-large takes a fifth of
PyTorch's time, and vectors that differ a little.

    INDEX/fast_text/text.onnx         written at the first use, under the index's lock
    INDEX/fast_text/made_from.json    sha256 of the files of its model

Weights of matrix products are int8, one scale an output; activations are quantised as they come.
Measured in benchmarks/search.py.
"""

import json
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from retrieval.base.errors import UserError, one_line
from retrieval.base.folders import whole_folder
from retrieval.base.json_files import read_json
from retrieval.models.dual_encoder import DualEncoder
from retrieval.search.model_identity import contents_of
from retrieval.search.writer import FAST_TEXT, locked
from retrieval.sharing.export.onnx_files import open_session, text_part, write_graph

GRAPH, MADE_FROM = "text.onnx", "made_from.json"


def fast_text_encoder(
    index: Path, model: DualEncoder, identity: dict[str, Any]
) -> Callable[[list[str]], torch.Tensor]:
    """In place of model.encode_text: captions -> (N, D), not normalised. identity: of the model
    (model_identity). Raises UserError.
    """
    path, made_from = index / FAST_TEXT / GRAPH, contents_of(identity)
    if not _is_of(path, made_from):
        with locked(index):
            if not _is_of(path, made_from):  # another process has made it meanwhile
                _write(index, model, made_from)
    try:
        session = open_session(path)
    except Exception as error:  # of onnxruntime's own kinds
        raise UserError(
            f"{path} does not load ({one_line(error)}); delete {path.parent}, it is made again"
        ) from None
    return _Encoder(model, session)


def _is_of(path: Path, made_from: dict[str, str]) -> bool:
    try:
        return path.is_file() and read_json(path.with_name(MADE_FROM)) == made_from
    except (OSError, ValueError):
        return False


class _Encoder:
    def __init__(self, model: DualEncoder, session: onnxruntime.InferenceSession):
        self.model, self.session = model, session

    def __call__(self, captions: list[str]) -> torch.Tensor:
        tokens = self.model.text_encoder.tokens(captions)
        inputs = {name: tokens[name].numpy() for name in ("input_ids", "attention_mask")}
        return torch.from_numpy(self.session.run(None, inputs)[0])


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
