"""The splits of a run: one or several corpora to train on, and two splits to score."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import combinations, product

from retrieval.base.errors import UserError
from retrieval.config import Config
from retrieval.data import Cache, ClipSplit, open_cache
from retrieval.data.schema import DEVELOPMENT, EVALUATION, VALIDATION
from retrieval.models.frame_cache import FrameSplit
from retrieval.models.record import SplitRecord


@dataclass(frozen=True)
class Splits:
    """The splits that a run trains on and is scored on."""

    training: list[ClipSplit | FrameSplit]
    validation: ClipSplit | FrameSplit
    test: ClipSplit | FrameSplit | None
    caches: list[Cache]  # of the training corpora, then that of the other two splits
    moments: bool = False  # whether the run learns moments, and not retrieval
    warnings: list[str] = field(default_factory=list)  # about clips that occur twice

    @property
    def sizes(self) -> list[int]:
        """(clip, caption) pairs of each training corpus, or (clip, query) pairs for moments."""
        return [sum(map(len, self._texts(split))) for split in self.training]

    @property
    def scored(self) -> list[ClipSplit | FrameSplit]:
        return [split for split in (self.validation, self.test) if split is not None]

    @property
    def all_captions(self) -> list[str]:
        splits = [*self.training, *self.scored]
        return [text for split in splits for texts in self._texts(split) for text in texts]

    def _texts(self, split: ClipSplit | FrameSplit) -> list[list[str]]:
        """Return the captions of each clip, or its queries for moments."""
        if not self.moments:
            return split.captions
        return [[query.query for query in queries] for queries in split.moments]

    def check_lengths(self, max_seconds: float) -> None:
        """Raise UserError if moments lie in parts of clips that a frame cache does not hold."""
        for split in [*self.training, *self.scored] if self.moments else ():
            seconds = split.num_samples / split.sample_rate
            longest = int(seconds.argmax())
            if seconds[longest] > max_seconds + 0.5 / split.sample_rate:
                raise UserError(
                    f"data.frame_cache holds the first {max_seconds:g} s of each clip, and"
                    f" {split.file_names[longest]!r} of split {split.name!r} has"
                    f" {seconds[longest]:.1f} s: the moments after that would be lost; raise"
                    " data.max_seconds, or set no frame_cache"
                )

    def records(self) -> list[SplitRecord]:
        """Describe the splits for the model card; call it before `with_frames`."""
        *sources, cache = self.caches
        opened = [*zip(sources, self.training, strict=True), *product([cache], self.scored)]
        return [SplitRecord.of(*pair) for pair in opened]

    def with_frames(self, frames_of: Callable[[ClipSplit], FrameSplit]) -> "Splits":
        """Replace the sounds of every split by the frames of a frozen audio encoder."""
        return replace(
            self,
            training=[frames_of(split) for split in self.training],
            validation=frames_of(self.validation),
            test=None if self.test is None else frames_of(self.test),
        )


def open_splits(config: Config) -> Splits:
    """Open all splits of a run.

    Raises:
        UserError: A cache is absent, damaged, of another sample rate or a copy of another one.
    """
    cache = open_cache(config.data.cache, config.data.sample_rate)
    sources = [open_cache(path, config.data.sample_rate) for path in config.train.caches] or [cache]
    moments = config.moment_head is not None
    opened = _with_moments if moments else Cache.split
    splits = Splits(
        training=[opened(source, DEVELOPMENT) for source in sources],
        validation=opened(cache, VALIDATION),
        test=opened(cache, EVALUATION) if EVALUATION in cache.split_names else None,
        caches=[*sources, cache],
        moments=moments,
    )
    return replace(splits, warnings=_find_copies(splits) if config.train.caches else [])


def _with_moments(cache: Cache, name: str) -> ClipSplit:
    """Open a split to learn moments from. Raises UserError if it has no times."""
    split = cache.split(name, need_captions=False)
    if not split.has_moments:
        raise UserError(
            f"split {name!r} of cache {cache.path} has no times, from which moment_head learns;"
            " build one with them (docs/corpora.md, Times), or leave moment_head out"
        )
    return split


def _find_copies(splits: Splits) -> list[str]:
    """Warn of clips in two training corpora, and of clips that are both trained on and scored.

    Clips are equal if their file names, numbers of samples and captions are.

    Raises:
        UserError: Whole splits are equal: one is a copy of the other.
    """

    def clips_of(split: ClipSplit) -> set[int]:  # hashes, since there may be millions of clips
        captions = map(tuple, split.captions)
        clips = zip(split.file_names, split.num_samples.tolist(), captions, strict=True)
        return {hash(clip) for clip in clips}

    *sources, cache = splits.caches
    trained = [
        (f"{DEVELOPMENT} of {source.path}", clips_of(split))
        for source, split in zip(sources, splits.training, strict=True)
    ]
    from_elsewhere = [
        named_clips
        for source, named_clips in zip(sources, trained, strict=True)
        if source.path.resolve() != cache.path.resolve()
    ]
    scored = [(f"{split.name} of {cache.path}", clips_of(split)) for split in splits.scored]
    twice = "these clips would count twice and be their own negatives"
    leaked = "the model would be trained on clips that it is scored on"
    pairs = [(*pair, twice) for pair in combinations(trained, 2)]
    pairs += [(*pair, leaked) for pair in product(from_elsewhere, scored)]
    warnings = []
    for (first, first_clips), (second, second_clips), consequence in pairs:
        num_shared = len(first_clips & second_clips)
        if num_shared and first_clips == second_clips:
            raise UserError(
                f"train.caches: {first} and {second} hold the same clips: {consequence}; leave one"
                " of them out"
            )
        if num_shared:
            shared = f"{num_shared} clips of {second} are in {first}, too"
            warnings.append(f"train.caches: {shared}: {consequence}")
    return warnings
