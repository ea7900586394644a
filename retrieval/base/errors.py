"""The one exception for a user's mistake: commands print it as a single line and end with exit code 2 (command.py)."""

import argparse
from pathlib import Path
from typing import Any

from retrieval.base.paths import expand_home


class UserError(ValueError):
    """Found, expected, remedy: one line."""


class OneLineParser(argparse.ArgumentParser):
    """argparse for the commands of the project.

    An error has no usage text in front. `type=Path` expands `~`. An option that holds one value is refused where it is given twice: argparse
    would take the last value and forget the first without a word.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.given: dict[str, Any] = {}  # by the options of this call
        self.register("type", Path, user_path)
        for name in (None, "store"):
            self.register("action", name, _StoreOnce)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:
        self.given = {}
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> None:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


class _StoreOnce(argparse._StoreAction):
    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None) -> None:
        if option_string and self.dest in parser.given:
            both = [" ".join(map(str, each)) if isinstance(each, list) else each for each in (parser.given[self.dest], values)]
            advice = "give all values after one" if self.nargs in ("+", "*") else "give one of them"
            parser.error(f"argument {option_string}: given twice, {both[0]} and {both[1]}; {advice}")
        parser.given[self.dest] = values
        super().__call__(parser, namespace, values, option_string)


def user_path(text: str) -> Path:
    """The type of a path in an option: `~` is the home folder."""
    try:
        return Path(expand_home(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def one_line(error: Exception, longest: int = 200) -> str:
    """Kind and text of any exception, without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:longest]
