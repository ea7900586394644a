"""Check that a benchmark can write its picture, before anything is measured."""

from pathlib import Path

from retrieval.base.errors import UserError
from retrieval.base.files import check_writable


def check_picture(output: Path) -> None:
    """Raise UserError if no picture can be written to `output`, the value of --output.

    A missing folder is not made.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if output.is_dir() or output.suffix.lstrip(".").lower() not in kinds:
        raise UserError(
            f"--output {output}: give a file with the suffix of a picture, such as picture.png"
        )
    if not output.absolute().parent.is_dir():
        raise UserError(
            f"--output {output}: there is no folder {output.parent}; make it, or choose another"
            " file"
        )
    check_writable(output.absolute().parent)
