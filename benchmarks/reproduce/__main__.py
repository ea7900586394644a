"""Reproduce the thesis's experiments on Clotho, from the downloads to the table of scores.

    python -m benchmarks.reproduce                                # or: make reproduce
    python -m benchmarks.reproduce --dry-run                      # only check, and list the steps
    python -m benchmarks.reproduce --experiments tap --seeds 3    # the published seed and two more
    python -m benchmarks.reproduce --experiments passt,passt_tap --seeds 7,8

Checks disk, memory and GPU first. Then it runs the commands of docs/clotho.md: it downloads Clotho
and the weights, builds the cache, trains, scores the last and the best epoch of each run, prints
both beside the published scores, and writes docs/results.md. You can stop it with Ctrl-C at any
time. The same command starts it again: it skips finished steps and resumes a training at its last
step.

Download ATST-Frame's weights in the browser; the command prints their address.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import astuple
from functools import partial
from pathlib import Path

from benchmarks import compare_runs
from benchmarks.full_size import hardware
from benchmarks.reproduce import checks, commands, page
from benchmarks.reproduce.gpus import Gpu, visible_gpus
from benchmarks.reproduce.measured import clips_of_cache, format_experiment, measure, other_corpus
from benchmarks.reproduce.plan import (
    DEFAULT,
    EXPERIMENTS,
    ROOT,
    WEIGHTS,
    Training,
    parse_experiments,
    parse_seeds,
    plan_trainings,
)
from benchmarks.reproduce.record import TrainingRecord
from benchmarks.reproduce.weights import (
    AUDIO_WEIGHTS,
    check_weights,
    describe_weights,
    text_encoder_place,
)
from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError
from retrieval.base.files import check_writable, read_json
from retrieval.base.interrupts import watch_sigterm
from retrieval.config import Config


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m benchmarks.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--experiments",
        default=",".join(DEFAULT),
        metavar="NAME,...",
        help=f"among {', '.join(EXPERIMENTS)} (default: {','.join(DEFAULT)})",
    )
    add(
        "--seeds",
        default="1",
        help="number of runs of each experiment, counted up from the published seed; or a list of"
        " seeds with a comma, such as 7,8 or 7, (default: 1)",
    )
    add("--root", type=Path, default=Path("data/clotho_v2"), help="Clotho's folder")
    add("--weights", type=Path, default=Path("weights"), help="folder of weight files")
    add(
        "--text-encoder",
        type=Path,
        metavar="DIR",
        help="folder of roberta-large (default: roberta-large in --weights, else from the hub)",
    )
    add(
        "--output",
        type=Path,
        default=Path("runs/reproduce"),
        help="folder for all runs (default: runs/reproduce)",
    )
    add(
        "--results",
        type=Path,
        default=ROOT / "docs/results.md",
        metavar="FILE",
        help="page to write, and a .json beside it (default: docs/results.md)",
    )
    add(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="section.key=value",
        help="settings of train.py; if one changes the experiment, its row is marked as altered",
    )
    add("--num-processes", type=int, default=1, help="GPUs to train on (default: 1)")
    add("--cpu", action="store_true", help="train without a GPU, which takes days")
    add("--unchecked", action="store_true", help="continue if disk, memory or GPU seem too small")
    add("--base-url", help="a mirror of Clotho, as in data_prep/build_clotho.py")
    add("--checksums", type=Path, help="md5sum file of that mirror")
    add("--dry-run", action="store_true", help="only check, and list the steps")
    arguments = parser.parse_args(argv)
    if arguments.num_processes < 1:
        parser.error(f"--num-processes {arguments.num_processes}: 1 or more")
    if "," in str(arguments.output):  # separates the folders that compare_runs gets
        parser.error(f"--output {arguments.output}: choose a folder without a comma")
    if arguments.text_encoder and not arguments.text_encoder.is_dir():
        parser.error(
            f"--text-encoder {arguments.text_encoder} is not a folder: without it the hub is asked"
        )
    if arguments.checksums and not arguments.checksums.is_file():
        parser.error(f"--checksums {arguments.checksums} is not a file: give that of the mirror")
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    trainings = plan(arguments)
    page.check(arguments.results)
    untrained = [training for training in trainings if not training.is_trained]
    for training in trainings:
        training.check_folder()
        print(f"{training.name}, {training.folder}: {state_of(training)}", flush=True)
    if not checks.is_built(arguments.root) and any(training.unscored for training in trainings):
        print(f"Clotho, {arguments.root}: to be downloaded and built", flush=True)
    gpus = check_machine(arguments, untrained) if untrained else []
    if arguments.dry_run:
        return 0

    environment = environment_of(arguments)
    provide_weights(arguments, untrained)
    if any(training.unscored for training in trainings):
        build_cache(arguments, trainings[0].config, environment)
    for training in trainings:
        if not training.is_trained:
            train(training, arguments.num_processes, gpus, environment)
        for weights in training.unscored:
            words = ["--checkpoint", str(training.folder / weights), "--split", "evaluation"]
            commands.run([*commands.script("evaluate.py"), *words], environment)
        page.add_row(arguments.results, make_row(training))
    report(trainings)
    print(f"\nresults: {arguments.results}")
    return 0


def plan(arguments: argparse.Namespace) -> list[Training]:
    """Return the runs that the options ask for. Raises UserError."""

    def places(config: Config) -> dict[str, Path]:
        audio = AUDIO_WEIGHTS[config.audio_encoder.name]
        text = text_encoder_place(config, arguments.text_encoder, arguments.weights)
        return {
            "data.cache": arguments.root / "cache",
            "audio_encoder.checkpoint": audio.place(arguments.weights),
            "text_encoder.name": text,
        }

    return plan_trainings(
        parse_experiments(arguments.experiments),
        parse_seeds(arguments.seeds),
        arguments.set,
        places,
        arguments.output,
    )


def state_of(training: Training) -> str:
    if training.is_trained:
        return f"to be scored: {', '.join(training.unscored)}" if training.unscored else "done"
    return {"--resume": "to be continued"}.get("".join(training.how_to_start()), "to be trained")


def environment_of(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the environment variables of the commands."""
    if not arguments.cpu:
        return {}
    several = {"ACCELERATE_USE_CPU": "true"} if arguments.num_processes > 1 else {}
    return {"CUDA_VISIBLE_DEVICES": "", **several}


def check_machine(arguments: argparse.Namespace, untrained: Sequence[Training]) -> list[Gpu]:
    """Print the required and the available GPU, disk and memory; check the weights.

    Returns:
        The GPUs to train on; empty on a CPU.

    Raises:
        UserError: Something is missing; if several things are, the others are printed before. With
            --unchecked this is a warning, except for weights that a person must download.
    """
    check_writable(arguments.output)
    if checks.is_built(arguments.root):
        clips_of_cache(arguments.root / "cache")
    else:
        check_writable(arguments.root)
    gpus: list[Gpu] = [] if arguments.cpu else visible_gpus()[: arguments.num_processes]
    problems: list[UserError] = []
    check = partial(_check, unchecked=arguments.unchecked, problems=problems)
    if not arguments.cpu:
        check(lambda: checks.check_gpus(gpus, arguments.num_processes))
    for name in {training.config.audio_encoder.name for training in untrained}:
        try:
            AUDIO_WEIGHTS[name].check(arguments.weights)
        except UserError as error:
            problems.append(error)
    # one of each experiment: seeds need the same
    configs = {training.experiment: training.config for training in untrained}.values()
    sizes = [checks.model_size(one, arguments.num_processes, bool(gpus)) for one in configs]
    largest = checks.ModelSize(*map(max, zip(*map(astuple, sizes), strict=True)))
    needs = checks.disk_needs(untrained, largest.num_parameters, arguments.root, arguments.output)
    check(lambda: checks.check_disk(needs))
    check(lambda: checks.check_memory(largest.host_bytes * arguments.num_processes))
    for gpu in gpus:
        check(lambda gpu=gpu: checks.check_gpu_memory(gpu, largest.step_bytes))
    for problem in problems[:-1]:
        print(f"error: {problem}", file=sys.stderr, flush=True)
    if problems:
        raise problems[-1]
    return gpus


def _check(line: Callable[[], str], unchecked: bool, problems: list[UserError]) -> None:
    try:
        print(line(), flush=True)
    except UserError as error:
        if unchecked:
            print(f"warning: {error}", flush=True)
        else:
            problems.append(UserError(f"{error}; --unchecked continues anyway"))


def provide_weights(arguments: argparse.Namespace, untrained: Sequence[Training]) -> None:
    """Download the weights of the untrained runs, and load them once. Raises UserError."""
    encoders = {training.config.audio_encoder.name: training.config for training in untrained}
    for name, config in encoders.items():
        AUDIO_WEIGHTS[name].provide(arguments.weights)
        check_weights(config)
        for file in describe_weights(config):
            kind = "sha256" if "sha256" in file else "revision"
            print(f"weights: {file['name']} loads, {kind} {file[kind]}", flush=True)


def build_cache(arguments: argparse.Namespace, config: Config, environment: dict[str, str]) -> None:
    """Download Clotho and build the cache, unless it is there."""
    cache = arguments.root / "cache"
    if checks.is_built(arguments.root):
        print(f"cache: {cache} is there", flush=True)
        return
    words = ["--root", str(arguments.root), "--download"]
    words += ["--sample-rate", str(config.data.sample_rate)]
    words += ["--base-url", arguments.base_url] if arguments.base_url else []
    words += ["--checksums", str(arguments.checksums)] if arguments.checksums else []
    commands.run([*commands.script("data_prep/build_clotho.py"), *words], environment)


def train(
    training: Training, num_processes: int, gpus: Sequence[Gpu], environment: dict[str, str]
) -> None:
    """Train, or resume an interrupted training."""
    record, start = TrainingRecord.read(training.record), training.how_to_start()
    processor = hardware()
    if gpus:
        processor = f"{len(gpus)} x " * (len(gpus) > 1) + gpus[0].name
    if start != ["--resume"]:
        weights = describe_weights(training.config)
        clips = clips_of_cache(Path(training.config.data.cache))
        record = TrainingRecord(training.record, weights, processor, clips)
    elif processor not in record.processor:
        record.processor += f", then {processor}"
    words = commands.script("train.py")
    if num_processes > 1:
        config = commands.script("configs/accelerate/multi_gpu.yaml")[1]
        words = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--quiet"]
        words += ["--config_file", config, "--num_processes", str(num_processes)]
        words += commands.script("train.py")[1:]
    file = commands.script(f"configs/{training.experiment}.yaml")[1]
    with record.session(gpus):
        commands.run([*words, "--config", file, *training.settings, *start], environment)


def make_row(training: Training) -> page.Row:
    """Collect the row of a run for the page of results."""
    about = read_json(training.folder / "environment.json")
    record = TrainingRecord.read(training.record)
    words = ["--experiments", training.experiment]
    words += ["--seeds", f"{training.seed},"] * (not training.is_published_seed)
    return {
        "experiment": training.experiment,
        "seed": training.seed,
        "commit": about["git_commit"] or "unknown",
        "changed": [*training.changed, *other_corpus(record.clips)],
        "scores": {
            weights: {name: [*astuple(one)] for name, one in measure((training,), weights).items()}
            for weights in WEIGHTS
        },
        "processor": record.processor or "not told",
        "hours": round(record.hours, 3),
        "hours_complete": record.is_complete,
        "kilowatt_hours": record.kilowatt_hours,
        "day": about["started"][:10],
        "command": shlex.join(["python", "-m", "benchmarks.reproduce", *words]),
        "weights": record.weights,
    }


def report(trainings: Sequence[Training]) -> None:
    """Print each experiment beside its published scores, then the experiments side by side."""
    groups: dict[str, list[Training]] = {}
    for training in trainings:
        groups.setdefault(training.experiment, []).append(training)
    for group in groups.values():
        print(f"\n{format_experiment(group)}")
    if len(groups) > 1:
        # the default order ends with the baseline, to which the others are compared
        folders = {
            name: ",".join(str(training.folder / WEIGHTS[0]) for training in group)
            for name, group in reversed(groups.items())
        }
        print(f"\nthe {WEIGHTS[0]} epoch of all:")
        compare_runs.main([*(f"{name}={of}" for name, of in folders.items()), "--bootstrap"])


if __name__ == "__main__":
    watch_sigterm()
    run_main(
        main,
        interrupted="interrupted; go on with the same command: "
        + shlex.join(["python", "-m", "benchmarks.reproduce", *sys.argv[1:]]),
    )
