"""Load a model folder or a checkpoint of another project as a DualEncoder."""

from pathlib import Path

from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.pretrained.salsa import load_salsa_checkpoint


def load_pretrained(checkpoint: Path, text_encoder: Path | None) -> DualEncoder:
    """From a folder that train.py wrote, or a single file of the salsa project with the tokenizer
    of `text_encoder`. Raises UserError.
    """
    return (
        DualEncoder.from_pretrained(checkpoint)
        if checkpoint.is_dir()
        else load_salsa_checkpoint(checkpoint, text_encoder)
    )
