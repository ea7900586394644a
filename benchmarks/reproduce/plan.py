"""List the trainings: experiments, seeds, folders and settings."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.published import PUBLISHED
from retrieval.base.errors import UserError
from retrieval.config import Config, load_config, read_config
from retrieval.evaluation.outputs import METRICS, RANKS
from retrieval.training.states import changed_settings, latest_state

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = ("tap", "low_lr", "baseline")
# The published experiments that need only Clotho and weight files.
EXPERIMENTS = (*DEFAULT, "passt", "passt_tap", "passt_stage1")
NEEDS_MORE = {
    "passt_tap_captions": "captions by a language model",
    "passt_stage2": "the scores of a finished passt_stage1",
    "all_stage1": "AudioCaps and WavCaps",
}
WEIGHTS = ("last", "best")  # models of a run, the thesis's choice first
# Settings that this command sets, by their options.
OPTION_OF = {
    "seed": "--seeds",
    "train.output": "--output",
    "data.cache": "--root",
    "audio_encoder.checkpoint": "--weights",
    "text_encoder.name": "--text-encoder",
}
# Settings for speed and memory that do not change the experiment.
SAME_EXPERIMENT = (
    "data.num_workers",
    "train.activation_checkpointing",
    "train.compile",
    "train.log_every_steps",
    "train.micro_batch_size",
    "train.save_every_steps",
    "train.tracker",
    "evaluation.",
)


@dataclass(frozen=True)
class Training:
    """One run of an experiment.

    Args:
        experiment: Name of its file in configs/.
        seed: The published one, or another.
        folder: Run folder.
        settings: Overrides of train.py.
        changed: The settings of --set that change the experiment.
        is_published_seed: True for the seed of the configuration.
        config: The resolved settings.
    """

    experiment: str
    seed: int
    folder: Path
    settings: tuple[str, ...]
    changed: tuple[str, ...]
    is_published_seed: bool
    config: Config = field(compare=False)  # settings say the same

    @property
    def name(self) -> str:
        return f"{self.experiment} seed {self.seed}" + ", altered" * bool(self.changed)

    @property
    def record(self) -> Path:
        """File beside the run folder: hours, energy, and the weight files that it started from."""
        return self.folder.with_suffix(".json")

    @property
    def is_trained(self) -> bool:
        return (self.folder / METRICS).is_file()

    def results(self, weights: str) -> Path:
        """Return the folder that evaluate.py writes for `weights`, one of WEIGHTS."""
        return self.folder / weights / "results" / "evaluation"

    @property
    def unscored(self) -> list[str]:
        """Models that evaluate.py has not scored yet."""
        files = {name: [self.results(name) / file for file in (METRICS, RANKS)] for name in WEIGHTS}
        return [name for name, paths in files.items() if not all(map(Path.is_file, paths))]

    def check_folder(self) -> None:
        """Raise UserError if the run folder holds a run with other settings, or is a file."""
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is not a folder: move it, or give another --output")
        if not (self.folder / "config.yaml").exists():
            return
        cache = Path(read_config(self.folder).data.cache)
        if cache.resolve() != Path(self.config.data.cache).resolve():
            raise UserError(
                f"{self.folder} was trained on {cache}: give --root {cache.parent}, or another"
                " --output"
            )
        changed = changed_settings(self.folder, self.config)
        if self.is_trained:  # its weight files may have moved since
            moved = ("audio_encoder.checkpoint", "text_encoder.name")
            changed = [line for line in changed if not line.startswith(moved)]
        if changed:
            raise UserError(
                f"{self.folder} holds a run with other settings ({'; '.join(changed)}): give"
                " another --output, or delete that folder"
            )

    def how_to_start(self) -> list[str]:
        """Return the option of train.py: --resume, --overwrite or none."""
        if latest_state(self.folder) is not None:
            return ["--resume"]
        # interrupted before its first state
        return ["--overwrite"] if (self.folder / "config.yaml").exists() else []


def parse_experiments(text: str) -> list[str]:
    """Parse NAME[,NAME...] of --experiments. Raises UserError."""
    names = text.split(",")
    for name in names:
        if name in NEEDS_MORE:
            raise UserError(
                f"--experiments {name} needs {NEEDS_MORE[name]}: docs/clotho.md has its steps"
            )
        if name not in EXPERIMENTS:
            raise UserError(
                f"--experiments {name!r} is no experiment: choose among {', '.join(EXPERIMENTS)}"
            )
    if len(set(names)) < len(names):
        raise UserError(f"--experiments {text} names one twice: leave it out once")
    return names


def parse_seeds(text: str) -> int | list[int]:
    """Parse a number of seeds, or a list with a comma (`7,` for one seed). Raises UserError."""
    parts = [part for part in text.split(",") if part]
    if not parts or not all(part.isdecimal() and int(part) < 2**32 for part in parts):
        raise UserError(
            f"--seeds {text!r}: give how many, such as 3, or the seeds themselves with a comma,"
            " such as 124,125 or 7,"
        )
    seeds = [int(part) for part in parts]
    if "," not in text:
        if not 1 <= seeds[0] <= 100:
            raise UserError(
                f"--seeds {text}: give 1 to 100 runs of each experiment; for the seed {text} add a"
                " comma"
            )
        return seeds[0]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {text} names one twice: leave it out once")
    return seeds


def plan_trainings(
    experiments: Sequence[str],
    seeds: int | list[int],
    overrides: Sequence[str],
    places: Callable[[Config], dict[str, Path]],
    output: Path,
) -> list[Training]:
    """List all runs, in the order in which they are trained.

    Args:
        experiments: Names among EXPERIMENTS.
        seeds: Their number, counted up from the published seed; or a list of seeds.
        overrides: section.key=value of --set.
        places: Returns the settings for cache and weight files, for a configuration.
        output: Folder of the run folders.

    Raises:
        UserError: A setting is not one, or belongs to an option.
    """
    for override in overrides:
        if option := OPTION_OF.get(override.partition("=")[0]):
            raise UserError(f"--set {override}: {option} sets it")
    changed = sorted(text for text in overrides if not text.startswith(SAME_EXPERIMENT))
    digest = hashlib.sha1("\n".join(changed).encode()).hexdigest()[:6]
    altered = f"_altered_{digest}" if changed else ""
    trainings = []
    for experiment in experiments:
        file = ROOT / "configs" / f"{experiment}.yaml"
        published = load_config(file)
        of_this = seeds
        if isinstance(seeds, int):
            of_this = range(published.seed, published.seed + seeds)
        for seed in of_this:
            folder = output / f"{experiment}_{seed}{altered}"
            settings = [f"seed={seed}", f"train.output={folder}"]
            settings += [f"{name}={place}" for name, place in places(published).items()]
            settings += overrides
            config = load_config(file, settings)
            is_published = seed == published.seed
            trainings.append(
                Training(experiment, seed, folder, (*settings,), (*changed,), is_published, config)
            )
    assert set(EXPERIMENTS) | set(NEEDS_MORE) == set(PUBLISHED)
    return trainings
