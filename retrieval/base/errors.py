"""The one exception for a user's mistake: commands print it as a single line and end with exit code 2 (command.py)."""

import argparse


class UserError(ValueError):
    """Found, expected, remedy: one line."""


class OneLineParser(argparse.ArgumentParser):
    """argparse without the usage text in front of the error."""

    def error(self, message: str) -> None:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def one_line(error: Exception, longest: int = 200) -> str:
    """Kind and text of any exception, without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:longest]
