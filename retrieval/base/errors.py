"""UserError, which a command prints as one line with exit code 2; the parser of the commands."""

import argparse
import os
from pathlib import Path
from typing import Any


class UserError(ValueError):
    """A user's mistake. The message is one line: what was found, what was expected, what to do."""


class OneLineParser(argparse.ArgumentParser):
    """argparse for the commands of the project.

    Errors are one line, without the usage text. `type=Path` expands `~`. A single-value option that
    is given twice is an error: argparse would silently use the last value.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.given: dict[str, Any] = {}  # by the options of this call
        self.register("type", Path, user_path)
        for name in (None, "store"):
            self.register("action", name, _StoreOnce)

    def parse_known_args(
        self, args: Any = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        self.given = {}
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> None:
        self.exit(2, f"error: {printable(message)} (see {self.prog} --help)\n")


class _StoreOnce(argparse._StoreAction):
    def __call__(
        self,
        parser: Any,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if option_string and self.dest in parser.given:
            both = (parser.given[self.dest], values)
            first, second = (" ".join(map(str, v)) if isinstance(v, list) else v for v in both)
            advice = "give all values after one" if self.nargs in ("+", "*") else "give one of them"
            parser.error(f"argument {option_string}: given twice, {first} and {second}; {advice}")
        parser.given[self.dest] = values
        super().__call__(parser, namespace, values, option_string)


def expand_home(path: str) -> str:
    """Replace a leading `~` or `~user` by the home folder; leave other text, such as a hub name.

    A shell does this only at the start of a word, not in `train.output=~/runs/x`. Raises ValueError
    for an unknown user.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~") and not os.path.lexists(path):
        raise ValueError(
            f"{path}: {expanded.split(os.sep)[0]} is not a user's home folder here; a folder of"
            f" that name is ./{path}"
        )
    return expanded


def user_path(text: str) -> Path:
    """Convert an option's text to a path, with `~` as the home folder.

    Raises argparse.ArgumentTypeError for an unknown user.
    """
    try:
        return Path(expand_home(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def printable(text: str) -> str:
    """Replace the characters that break the line or control the terminal."""
    return "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in text
    )


def counted(number: int, noun: str) -> str:
    """Return a number and its noun: 1 file, 2 files."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def one_line(error: Exception, longest: int = 200) -> str:
    """Return type and text of an exception in one line of at most `longest` characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:longest]
