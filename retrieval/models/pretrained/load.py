"""Load a model folder or a checkpoint of another project as a DualEncoder."""

from pathlib import Path

from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.pretrained.salsa import load_salsa_checkpoint


def load_pretrained(checkpoint: Path, text_encoder: Path | None) -> DualEncoder:
    """Load a model folder of train.py, or a checkpoint file of the salsa project.

    Args:
        checkpoint: The folder or file.
        text_encoder: For a file: hub model or folder with its tokenizer; None: roberta-large.

    Returns:
        The model in eval mode.

    Raises:
        UserError: It is absent, damaged or of another kind.
    """
    if checkpoint.is_dir():
        return DualEncoder.from_pretrained(checkpoint)
    return load_salsa_checkpoint(checkpoint, text_encoder)
