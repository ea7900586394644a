"""Train a text-to-audio retrieval model.

    accelerate launch train.py --config configs/tap.yaml [section.key=value ...] [--resume]
    python train.py --config configs/tap.yaml --dry-run

Settings on the command line win over the YAML file.
"""

import argparse
import sys
from pathlib import Path

from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser
from retrieval.base.launch import check_environment
from retrieval.base.progress import set_quiet, silence_transformers
from retrieval.base.stopping import Interrupted, resume_command, stop_on_signals
from retrieval.config import load_config
from retrieval.training.states import latest_state


def main(argv: list[str] | None = None) -> int:
    """Train, or describe the run; return the exit code."""
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config",
        type=Path,
        required=True,
        help="YAML file with settings; retrieval/config/settings.py has the defaults",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in train.output from its newest state",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="delete the run in train.output and start anew"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print settings, parameters, steps and memory; load no weights",
    )
    parser.add_argument(
        "--quiet",
        action="store_true",
        help="show no progress, only each epoch's validation and the results",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="settings that win over the YAML file",
    )
    arguments = parser.parse_intermixed_args(argv)
    names = [override.partition("=")[0] for override in arguments.overrides]
    if twice := [name for name in names if names.count(name) > 1]:
        parser.error(f"{twice[0]} is set twice; leave one out")
    if arguments.resume and arguments.overwrite:
        parser.error("--resume continues a run, --overwrite deletes it: give one of them")
    set_quiet(arguments.quiet)
    again = resume_command()
    config = load_config(arguments.config, arguments.overrides)

    try:
        with stop_on_signals():  # early: imports could lose the exception of a Ctrl-C
            # torch and transformers take seconds to import: a mistake in the settings should not
            silence_transformers()
            if arguments.dry_run:
                from retrieval.training.dry_run import describe

                print(describe(config))
            else:
                check_environment()
                from retrieval.training.loop import train

                train(config, resume=arguments.resume, overwrite=arguments.overwrite)
    except Interrupted as interruption:
        state = latest_state(Path(config.train.output))
        remedy = f"continue from {state}: {again}" if state else "no step was saved yet"
        print(f"interrupted; {remedy}", file=sys.stderr)
        return 128 + interruption.signum
    return 0


if __name__ == "__main__":
    run_main(main)
