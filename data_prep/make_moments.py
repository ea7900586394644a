"""An Arrow cache of clips with captions -> scenes in which each caption has its times.

    python data_prep/make_moments.py --cache data/clotho_v2/cache --background recordings/walks \\
        --output data/moments
    python data_prep/make_moments.py --cache data/clotho_v2/cache --background-noise pink \\
        --num-scenes 2000 200 0 --output data/moments

The recipe of Clotho-Moment: clips are placed on a background after exponential gaps, without
overlap, and one caption of each is a query with its window. Levels are true signal-to-noise ratios
within the window, and a share of the clips is cropped to a few seconds. A split of the output takes
clips of the same split only, and no recording of a background folder is in two splits. A scene
depends on (seed, split, number of the scene) only: same seed, same bytes for any --num-proc. Exit
code 0, 2 (error, one line), 130 (interrupted: the same command goes on).
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # import from the repository, and nothing from this folder
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(path for path in sys.path if Path(path).resolve() != here)]

from data_prep.command import run  # first: from here on Ctrl-C prints one line

# isort: split

import argparse
import json
from collections import Counter

import numpy as np

from data_prep.cache.arrow_cache import CacheSettings, build_cache
from data_prep.cache.build_command import CODECS, check_output
from data_prep.cache.shards import Clip
from data_prep.cache.split_plan import SplitPlan, print_report
from data_prep.moment_scenes.backgrounds import (
    NOISES,
    cache_of_folder,
    check_backgrounds,
    draw_cut,
)
from data_prep.moment_scenes.foregrounds import find_foregrounds, open_split
from data_prep.moment_scenes.plan import Recipe, draw_filled_scene, queries_of
from data_prep.moment_scenes.render import Scene
from data_prep.seeds import generator
from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError
from retrieval.base.processes import usable_cores
from retrieval.base.progress import set_quiet
from retrieval.data.cache import Cache, open_cache
from retrieval.data.schema import SPLITS

MAX_SECONDS = 600.0  # of a scene, which a process holds in memory several times
SHORT = 5.0  # s: 55 % of CASTELLA's windows are shorter


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    recipe = Recipe()
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cache", type=Path, required=True, metavar="DIR", help="Arrow cache with captions"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="cache folder to write"
    )
    backgrounds = parser.add_mutually_exclusive_group(required=True)
    background_help = "folder of recordings, or an Arrow cache of them with the same splits"
    backgrounds.add_argument("--background", type=Path, metavar="DIR", help=background_help)
    backgrounds.add_argument("--background-noise", choices=NOISES, help="noise that is made here")
    parser.add_argument(
        "--num-scenes",
        type=int,
        nargs=3,
        metavar=("DEVELOPMENT", "VALIDATION", "EVALUATION"),
        help="scenes of each split, 0 leaves it out (default: as many as the split has clips)",
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=recipe.seconds,
        metavar="S",
        help=f"length of a scene (default: {recipe.seconds:g})",
    )
    parser.add_argument(
        "--mean-gap",
        type=float,
        default=recipe.mean_gap,
        metavar="S",
        help=f"mean pause before each clip (default: {recipe.mean_gap:g})",
    )
    parser.add_argument(
        "--snr",
        type=float,
        nargs=2,
        default=list(recipe.snr_db),
        metavar=("LOW", "HIGH"),
        help="signal-to-noise ratio in dB, uniform (default: {:g} {:g})".format(*recipe.snr_db),
    )
    parser.add_argument(
        "--short-share",
        type=float,
        default=recipe.short_share,
        metavar="SHARE",
        help=f"share of the clips that is cropped (default: {recipe.short_share:g})",
    )
    short_help = "shortest and longest crop in s, uniform (default: {:g} {:g})"
    parser.add_argument(
        "--short-seconds",
        type=float,
        nargs=2,
        default=list(recipe.short_seconds),
        metavar=("LOW", "HIGH"),
        help=short_help.format(*recipe.short_seconds),
    )
    parser.add_argument("--codec", choices=CODECS, default="pcm", help="(default: pcm)")
    parser.add_argument(
        "--num-proc",
        type=int,
        default=min(8, usable_cores()),
        help="processes (default: one per core, at most 8)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="build anew and replace the cache that is there"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    return parser.parse_args(argv)


def make_moments(arguments: argparse.Namespace) -> None:
    """Plan the scenes of each split, and build their cache. Raises UserError."""
    recipe = check_options(arguments)
    check_folders(arguments)
    cache = open_cache(arguments.cache)
    splits = scenes_of_splits(cache, arguments.num_scenes)
    background = prepare_background(arguments, splits, cache.sample_rate)
    plans = [
        plan_split(cache, split, number, recipe, background, arguments)
        for split, number in splits.items()
    ]
    settings = CacheSettings("moments", CODECS[arguments.codec], cache.sample_rate)
    info = build_cache(
        arguments.output, settings, plans, arguments.num_proc, 0.0, arguments.overwrite
    )
    print_report(info, plans)
    print(f"cache: {arguments.output}")


def check_options(arguments: argparse.Namespace) -> Recipe:
    """Return the settings of the scenes. Raises UserError for numbers out of range."""
    low, high = arguments.snr
    shortest, longest = arguments.short_seconds
    numbers = arguments.num_scenes or [1]
    checks = [
        (arguments.seed >= 0, f"--seed {arguments.seed}: expected 0 or more"),
        (arguments.num_proc >= 1, f"--num-proc {arguments.num_proc}: expected 1 or more"),
        (
            1 <= arguments.seconds <= MAX_SECONDS,
            f"--seconds {arguments.seconds:g}: expected 1 to {MAX_SECONDS:g}",
        ),
        (
            0 < arguments.mean_gap <= MAX_SECONDS,
            f"--mean-gap {arguments.mean_gap:g}: expected seconds above 0, at most {MAX_SECONDS:g}",
        ),
        (
            -100 <= low <= high <= 100,
            f"--snr {low:g} {high:g}: expected the lower one first, from -100 to 100 dB",
        ),
        (
            0 <= arguments.short_share <= 1,
            f"--short-share {arguments.short_share:g}: expected 0 to 1",
        ),
        (
            1 <= shortest <= longest <= MAX_SECONDS,
            f"--short-seconds {shortest:g} {longest:g}: expected the shorter one first, from 1 to"
            f" {MAX_SECONDS:g} s",
        ),
        (
            min(numbers) >= 0 and sum(numbers) > 0,
            f"--num-scenes {' '.join(map(str, numbers))}: expected 0 or more, and not 0 for all",
        ),
    ]
    for is_right, message in checks:
        if not is_right:
            raise UserError(message)
    # a millisecond more or less would be neither heard nor learned
    return Recipe(
        seconds=round(arguments.seconds, 2),
        mean_gap=arguments.mean_gap,
        snr_db=(low, high),
        short_share=arguments.short_share,
        short_seconds=(shortest, longest),
    )


def check_folders(arguments: argparse.Namespace) -> None:
    """Raise UserError if the output would replace an input, or lie within one."""
    sources = {"--cache": arguments.cache}
    if arguments.background:
        sources["--background"] = arguments.background
    check_output(arguments.output, sources)
    for option, source in sources.items():
        if arguments.output.resolve().is_relative_to(source.resolve()):
            raise UserError(
                f"--output {arguments.output} lies within {option} {source}: choose another folder"
            )


def scenes_of_splits(cache: Cache, num_scenes: list[int] | None) -> dict[str, int]:
    """Return the number of scenes of each split that is wanted. Raises UserError."""
    if num_scenes is None:
        return {
            split: cache.info["splits"][split]["num_clips"]
            for split in SPLITS
            if split in cache.split_names
        }
    wanted = {split: number for split, number in zip(SPLITS, num_scenes, strict=True) if number}
    for split in wanted:
        if split not in cache.split_names:
            raise UserError(
                f"cache {cache.path} has no split {split!r}, only: {', '.join(cache.split_names)};"
                " give 0 for the others in --num-scenes"
            )
    return wanted


def prepare_background(
    arguments: argparse.Namespace, splits: dict[str, int], sample_rate: int
) -> Path | str:
    """Return the cache of the backgrounds, made from a folder if need be, or a kind of noise."""
    if arguments.background_noise:
        return arguments.background_noise
    background = arguments.background
    if not (background / "cache.json").is_file():
        folder, seed = background, arguments.seed
        background = arguments.output.with_name(f"{arguments.output.name}.backgrounds")
        how = sample_rate, arguments.num_proc, arguments.overwrite
        cache_of_folder(folder, splits, seed, background, *how)
    check_backgrounds(background, list(splits), sample_rate, arguments.background)
    return background


def plan_split(
    cache: Cache,
    split: str,
    num_scenes: int,
    recipe: Recipe,
    background: Path | str,
    arguments: argparse.Namespace,
) -> SplitPlan:
    """Draw the scenes of a split. Raises UserError if none of its clips can be used."""
    clips = open_split(cache.path, split)
    foregrounds, left_out = find_foregrounds(cache.path, split, arguments.num_proc)
    reasons = ", ".join(f"{number} {reason}" for reason, number in left_out.items())
    if not foregrounds:
        raise UserError(
            f"split {split!r} of cache {cache.path}: none of its {len(clips)} clips can be used:"
            f" {reasons}; leave the split out by a 0 in --num-scenes, or choose another cache"
        )
    num_captions = [len(clips.captions[each.clip]) for each in foregrounds]
    num_samples = round(recipe.seconds * cache.sample_rate)
    sources = [cache.info["splits"][split].get("source", "")]
    lengths = None
    if isinstance(background, Path):
        recordings = open_split(background, split)
        lengths = recordings.num_samples
        sources.append(open_cache(background).info["splits"][split].get("source", ""))
    plan = SplitPlan(split, clips=[])
    seconds: list[float] = []
    num_queries = 0
    for index in range(num_scenes):
        key = arguments.seed, SPLITS.index(split), index
        rng, name = generator(*key, 0), f"scene_{index:05d}"
        placements = draw_filled_scene(rng, foregrounds, num_captions, recipe)
        queries = queries_of(f"{split}_{name}", placements, clips.captions)
        cut, heard = None, str(background)
        if lengths is not None:
            cut = draw_cut(rng, lengths, cache.sample_rate, num_samples)
            heard = f"{recordings.file_names[cut.recording]} {cut.start / cache.sample_rate:.6f}"
        scene = Scene(
            cache.path,
            split,
            num_samples,
            tuple(placements),
            background,
            cut,
            (*key, 1),
            tuple(sources),
        )
        metadata = {
            "sources": json.dumps([clips.clip_ids[placed.clip] for placed in placements]),
            "snr_db": json.dumps([placed.snr_db for placed in placements]),
            "background": heard,
        }
        texts = tuple(query.query for query in queries)
        names = f"{split}/{name}", f"{name}.wav"
        plan.clips.append(Clip(*names, "", texts, metadata, moments=queries, made=scene))
        seconds += [placed.length for placed in placements]
        num_queries += len(queries)
    plan.notes += notes_on(split, num_queries, seconds, num_scenes, left_out)
    return plan


def notes_on(
    split: str, num_queries: int, seconds: list[float], num_scenes: int, left_out: Counter[str]
) -> list[str]:
    """Describe the windows of a split, and the clips that it does not use."""
    share = np.mean(np.array(seconds) < SHORT)
    notes = [
        f"{split}: {num_queries} queries, {len(seconds) / num_scenes:.1f} windows a scene, of"
        f" {np.median(seconds):.1f} s (median), {share:.0%} below {SHORT:g} s"
    ]
    notes += [f"{split}: not used: {number} clips {reason}" for reason, number in left_out.items()]
    return notes


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    set_quiet(arguments.quiet)
    return run(lambda: make_moments(arguments))


if __name__ == "__main__":
    run_main(main)
