"""Checkpoints that the real PyTorch Lightning writes: the ancestors' module around a small model,
trained for a step.

Hyper-parameters are what sacred 0.8.3 hands to a captured function: dicts and lists that refuse
changes, pickled as a call of their class with a plain copy. The class is made here and is gone when
the file is read, as sacred is.
"""

import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from retrieval.models.dual_encoder import DualEncoder

SACRED = "sacred_that_is_not_installed"
READ_ONLY = """
class ReadOnlyContainer:
    def __reduce__(self):
        return self.__class__, (self.__copy__(),)

    def _readonly(self, *arguments, **named):
        raise RuntimeError("The configuration is read-only in a captured function!")

class ReadOnlyDict(ReadOnlyContainer, dict):
    __setitem__ = __delitem__ = update = ReadOnlyContainer._readonly

    def __copy__(self):
        return {**self}

    def __deepcopy__(self, memo):
        return dict(self)

class ReadOnlyList(ReadOnlyContainer, list):
    append = extend = __setitem__ = ReadOnlyContainer._readonly

    def __copy__(self):
        return [*self]

    def __deepcopy__(self, memo):
        return list(self)
"""


@contextmanager
def read_only_containers() -> Iterator[types.ModuleType]:
    """A module with ReadOnlyDict and ReadOnlyList, until the end of the block."""
    module = types.ModuleType(SACRED)
    exec(READ_ONLY, module.__dict__)
    sys.modules[SACRED] = module
    try:
        yield module
    finally:
        del sys.modules[SACRED]


def read_only(value: Any, module: types.ModuleType) -> Any:
    if isinstance(value, dict):
        return module.ReadOnlyDict({key: read_only(item, module) for key, item in value.items()})
    return (
        module.ReadOnlyList([read_only(item, module) for item in value])
        if isinstance(value, list)
        else value
    )


class Part(nn.Module):
    """Gives a module a name within another, as the ancestors' wrappers do."""

    def __init__(self, **modules: nn.Module):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)


class AudioRetrievalModel(pl.LightningModule):
    """The parts of `model` under the ancestors' names, with their way to keep hyper-parameters."""

    def __init__(self, model: DualEncoder, **kwargs: Any):
        super().__init__()
        self.save_hyperparameters(kwargs)
        self.audio_embedding_model = Part(model=Part(model=Part(net=model.audio_encoder)))
        self.sentence_embedding_model = model.text_encoder.model
        self.project_audio = nn.Sequential(model.audio_projection)
        self.project_sentence = nn.Sequential(model.text_projection)
        tap = model.pooling
        self.text_aware_pooling = Part(
            w_q=tap.query, w_k=tap.key, w_v=tap.value, w_0=tap.output, layer_norm=tap.norm
        )
        self.tau = nn.Parameter(torch.zeros(1) + 0.05, requires_grad=False)

    def training_step(self, batch: torch.Tensor, _index: int) -> torch.Tensor:
        return (
            sum(
                parameter.square().sum()
                for parameter in self.parameters()
                if parameter.requires_grad
            )
            * batch.mean()
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


def trained(
    model: DualEncoder,
    folder: Path,
    settings: dict[str, Any],
    *callbacks: pl.Callback,
    epochs: int = 1,
) -> pl.Trainer:
    """A Trainer after `epochs` of one step; it changes the weights of `model`."""
    settings_of_trainer = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few batches and few workers
        trainer = pl.Trainer(
            max_epochs=epochs,
            default_root_dir=folder,
            callbacks=list(callbacks),
            **settings_of_trainer,
        )
        trainer.fit(
            AudioRetrievalModel(model, **settings),
            torch.utils.data.DataLoader(torch.ones(2, 1), batch_size=2),
        )
    return trainer
