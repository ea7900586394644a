"""Re-exports the errors and run_main of retrieval/base."""

from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError, one_line, user_path

__all__ = ["OneLineParser", "UserError", "one_line", "run_main", "user_path"]
