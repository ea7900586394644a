"""Queries in other styles: captions by style, from a file (evaluate.py --captions).

A CSV `file_name,caption[,style]`: tags, questions, paraphrases, captions that exclude a sound
("rain but no thunder"), or any style that its author names. Each style is scored by itself, against
all clips of the split. A clip may have any number of captions in a style, and a style may leave
clips out. Within a style, a caption of several clips is one query with several right clips.
"""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from retrieval.base.errors import UserError, one_line
from retrieval.base.sound_files import normalise_name
from retrieval.evaluation.relevance import relevant_columns

if TYPE_CHECKING:
    import torch

    from retrieval.data import ClipSplit
    from retrieval.evaluation.result import EvaluationResult
    from retrieval.evaluation.score_matrix import Columns

COLUMNS, STYLE = ("file_name", "caption"), "style"
UNNAMED = "unnamed"  # style of a file without the column `style`

Styles = dict[str, dict[str, list[str]]]  # style -> caption -> file names of its right clips


def read_styles(path: Path) -> Styles:
    """Read captions by style; styles and captions are in the order of the file.

    Raises:
        UserError: The file cannot be read, lacks a column, or has a row that is incomplete, too
            long or there twice.
    """
    styles: Styles = {}
    seen: dict[tuple[str, ...], int] = {}  # style, caption, normalised file name -> line
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [field.strip() for field in next(reader, [])]
            _check_header(path, header)
            for row in reader:
                if not any(field.strip() for field in row):
                    continue
                place = f"--captions {path}, line {reader.line_num}"
                if len(row) != len(header):
                    raise UserError(
                        f"{place}: {len(row)} fields, expected {len(header)}; put a caption with"
                        " commas into quotes"
                    )
                fields = {
                    name: " ".join(field.split()) if name != "file_name" else field.strip()
                    for name, field in zip(header, row, strict=True)
                }
                empty = next((name for name in (*COLUMNS, STYLE) if fields.get(name) == ""), None)
                if empty:
                    raise UserError(f"{place}: {empty} is empty")
                name, caption = (fields[column] for column in COLUMNS)
                style = fields.get(STYLE, UNNAMED)
                key = (style, caption, normalise_name(name))
                if (first := seen.setdefault(key, reader.line_num)) != reader.line_num:
                    raise UserError(
                        f"{place}: the caption {caption[:60]!r} of {name} is there already, in line"
                        f" {first}; remove one of them"
                    )
                styles.setdefault(style, {}).setdefault(caption, []).append(name)
    except UnicodeDecodeError as error:
        raise UserError(
            f"--captions {path} is not UTF-8 ({error.reason} at byte {error.start}); save it as"
            " UTF-8"
        ) from None
    except csv.Error as error:
        raise UserError(
            f"--captions {path}, line {reader.line_num}: cannot be read ({one_line(error)}); is a"
            " quote missing or doubled?"
        ) from None
    except OSError as error:
        raise UserError(f"--captions {path} cannot be read ({one_line(error)})") from None
    if not styles:
        raise UserError(f"--captions {path} has no captions")
    return styles


def _check_header(path: Path, header: list[str]) -> None:
    """Raise UserError unless each column is there once; `style` may be absent."""
    for column in (*COLUMNS, STYLE):
        number = header.count(column)
        if number > 1 or (number == 0 and column != STYLE):
            found = ", ".join(header)[:200] or "nothing"
            raise UserError(
                f"--captions {path} needs the column {column} once in its first line, found:"
                f" {found}; expected file_name,caption or file_name,caption,style"
            )


class StyledQueries:
    """The captions of all styles as rows of one matrix.

    Args:
        styles: From `read_styles`.
        split: The clips that are scored.

    Attributes:
        captions: S texts, style by style.
        relevant: S lists, the columns of each caption's right clips.

    Raises:
        UserError: The split lacks some of the clips.
    """

    def __init__(self, styles: Styles, split: "ClipSplit"):
        self.split = split
        self.captions: list[str] = []
        self.relevant: list[list[int]] = []
        self._rows: dict[str, slice] = {}
        for style, queries in styles.items():
            first = len(self.captions)
            self.captions += queries
            self.relevant += relevant_columns(queries, split, f"--captions (style {style!r})")
            self._rows[style] = slice(first, len(self.captions))

    def results(self, scores: "torch.Tensor") -> dict[str, "EvaluationResult"]:
        """Return the result of each style, from the scores (S, B) of all."""
        from retrieval.evaluation.result import EvaluationResult  # loads torch

        return {
            style: EvaluationResult(
                self.split.name,
                scores[rows],
                self.captions[rows],
                [columns[0] for columns in self.relevant[rows]],
                self.split.clip_ids,
                self.split.file_names,
                self.relevant[rows],
            )
            for style, rows in self._rows.items()
        }


def take_last_rows(columns: Iterable["Columns"], last: "torch.Tensor") -> Iterator["Columns"]:
    """Yield columns without their last rows, which are written into `last` (S, B)."""
    for clips, scores in columns:
        num_first = len(scores) - len(last)
        last[:, clips] = scores[num_first:]
        yield clips, scores[:num_first]
