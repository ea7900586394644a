"""AudioIndex: recordings of a folder, found by a sentence or by a sound.

Letters: N queries, B excerpts in the index, K candidates of a query, T frames, D = dim.
"""

import math
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retrieval.base.errors import UserError
from retrieval.base.extras import needs_extra
from retrieval.base.launch import make_accelerator
from retrieval.base.sound import UnreadableSound
from retrieval.data import collate_clips
from retrieval.models.dual_encoder import DualEncoder, check_finite
from retrieval.search.hits import Hit, IndexedFile, make_hit
from retrieval.search.model_identity import (
    check_as_before,
    check_same_model,
    load_model_folder,
    model_identity,
)
from retrieval.search.queries import check_query, query_notes
from retrieval.search.sound import Excerpt, cut, read_excerpts
from retrieval.search.storage import DATABASE, Contents, read_index, read_index_meta
from retrieval.search.two_stage import TwoStage
from retrieval.search.update import Changes, ExcerptEncoder, check_any_audio, update_index
from retrieval.search.writer import IndexWriter, check_target, locked

CANDIDATES = 100  # excerpts that TAP scores for a query, at least; more for larger k
CANDIDATES_PER_HIT = 4  # overlapping excerpts of one sound count once
QUERY_EXCERPTS = 20  # of a sound that is a query
QUERY_BATCH = 4
SHORTEST_HOP = 0.1  # s
QUERIES_AT_ONCE = 64

# a file, or samples (S,) or (S, channels) and their rate in Hz
Sound = Path | str | tuple[np.ndarray, int]


class AudioIndex:
    """An opened index. Searches may come from several threads, and take turns.

    `files`, `folders` (that hold files, for `within`), `unreadable` (file, reason), `folder` that
    is indexed, `is_complete`: False where the last update was interrupted.
    """

    def __init__(
        self,
        path: Path,
        model: DualEncoder,
        contents: Contents,
        encode_text: Callable[[list[str]], torch.Tensor] | None = None,
    ):
        self.path, self.model = path, model.eval()
        self._encode_text = encode_text or model.encode_text
        self._lock = threading.Lock()
        self._read(contents)

    def _read(self, contents: Contents) -> None:
        self._contents, meta = contents, contents.meta
        self.folder, self.is_complete, self.unreadable = (
            Path(meta["folder"]),
            meta["complete"],
            contents.unreadable,
        )
        self.files = [IndexedFile(*file) for file in contents.files]
        self.folders = sorted(
            {str(parent) for file in self.files for parent in Path(file.file).parents} - {"."}
        )
        self._numbers = {file.file: number for number, file in enumerate(self.files)}
        self._two_stage = TwoStage(self.model.pooling, contents.clips)

    @classmethod
    def build(
        cls,
        folder: str | Path,
        checkpoint: str | Path | None,
        index: str | Path,
        *,
        hop_seconds: float | None = None,
        batch_size: int = 16,
        mixed_precision: str = "auto",
        overwrite: bool = False,
    ) -> "AudioIndex":
        """Index the recordings below `folder` with the model folder `checkpoint`, or bring an index
        of them up to date; see `.changes`.

        folder: may be a new place of the indexed recordings (at least half of them), which are then
        not encoded again. checkpoint: None for that of an index that is there. hop_seconds: from
        one excerpt of a long file to the next, half of the model's clip_seconds unless given.
        overwrite: forget what the index holds. Raises UserError.
        """
        folder, path = Path(folder), Path(index)
        if not folder.is_dir():
            raise UserError(
                f"folder {folder} is absent or not a folder: expected the one with the recordings"
            )
        if str(folder.resolve()).encode("utf-8", "replace").decode() != str(folder.resolve()):
            raise UserError(f"the name of folder {os.fsencode(folder)!r} is not UTF-8: rename it")
        check_target(path)
        is_new = overwrite or not (path / DATABASE).exists()
        if is_new and checkpoint is None:
            raise UserError(
                f"index {path} does not exist yet: add --checkpoint MODEL, a folder such as"
                " runs/tap/best"
            )
        check_any_audio(folder, num_known=0)
        meta = {} if is_new else read_index_meta(path)
        checkpoint = Path(checkpoint or meta["model"]["path"])
        model = load_model_folder(checkpoint)
        check_finite(model, str(checkpoint), "index with")
        hop = (
            meta.get("hop_seconds", model.clip_seconds / 2) if hop_seconds is None else hop_seconds
        )
        if not SHORTEST_HOP <= hop <= model.clip_seconds:
            raise UserError(
                f"--hop-seconds must be {SHORTEST_HOP} to {model.clip_seconds:g}, the clip_seconds"
                f" of the model, found {hop:g}"
            )
        if batch_size < 1:
            raise UserError(f"batch_size must be 1 or more, found {batch_size}")
        about = {
            "folder": str(folder.resolve()),
            "hop_seconds": hop,
            "clip_seconds": model.clip_seconds,
        }
        about["model"] = model_identity(checkpoint, meta.get("model"))
        about |= {
            "dim": model.audio_projection.out_features,
            "has_frames": model.pooling.keeps_frames,
        }
        encoder = _encoder(model, batch_size, mixed_precision)
        with locked(path):
            with IndexWriter.opened(path, about, overwrite) as writer:
                check_as_before(path, writer.meta, about)
                writer.meta["model"] = about["model"]  # where it lies now
                changes = update_index(writer, folder, encoder)
            index = cls(path, model, read_index(path))
        index.changes = changes
        return index

    @classmethod
    def open(
        cls, index: str | Path, checkpoint: str | Path | None = None, *, fast_text: bool = False
    ) -> "AudioIndex":
        """An index, with its model from where it was, or from the folder `checkpoint`.

        fast_text: on a CPU, sentences are encoded in 8 bit (retrieval.search.fast_text), made at
        the first time and kept in the index. Raises UserError: absent, damaged, of another model.
        """
        path = Path(index)
        contents = read_index(path)
        folder = Path(checkpoint or contents.meta["model"]["path"])
        if not folder.exists():
            raise UserError(
                f"the model of index {path} is gone from {folder}; say where it is now:"
                " --checkpoint DIR"
            )
        check_same_model(path, contents.meta["model"], folder)
        model = load_model_folder(folder)
        if not fast_text or model.temperature.device.type != "cpu":
            return cls(path, model, contents)
        # here, because the exporter takes seconds to import
        with needs_extra("export"):
            from retrieval.search.fast_text import fast_text_encoder

        return cls(path, model, contents, fast_text_encoder(path, model, contents.meta["model"]))

    def add(self, *, batch_size: int = 16, mixed_precision: str = "auto") -> Changes:
        """Bring the index up to date with its folder. Raises UserError."""
        meta = self._contents.meta
        encoder = _encoder(self.model, batch_size, mixed_precision)
        with locked(self.path):
            if not (self.path / DATABASE).exists():
                raise UserError(f"index {self.path} is gone; make it again")
            with IndexWriter.opened(self.path, meta, overwrite=False) as writer:
                check_as_before(self.path, writer.meta, meta)
                folder = Path(writer.meta["folder"])  # another process may have changed it
                if not folder.is_dir():
                    raise UserError(f"nothing is changed: {_gone(folder, self.path)}")
                self.changes = update_index(writer, folder, encoder)
            contents = read_index(self.path)
        with self._lock:
            self._read(contents)
        return self.changes

    def search(self, query: str, k: int = 10, **filters: Any) -> list[Hit]:
        """The best k answers to a sentence; see `search_many`."""
        return self.search_many([query], k, **filters)[0]

    @torch.no_grad()
    def search_many(self, queries: Sequence[str], k: int = 10, **filters: Any) -> list[list[Hit]]:
        """The best k answers to each sentence, fewer where there are not as many.

        Of excerpts of one file that overlap the best alone is an answer. filters: within, a folder
        below the indexed one; min_seconds and max_seconds of the file. Raises UserError for a query
        without words that the model knows, and for k below 1.
        """
        if isinstance(queries, str):
            raise TypeError("search_many takes several queries; one is for search")
        for query in queries:
            check_query(query, self.model.text_encoder)
        num_candidates, answers = candidates_for(k), []
        with self._lock:
            allowed = self._allowed(**filters)
            for first in range(0, len(queries), QUERIES_AT_ONCE):
                # (n, D)
                text = self._encode_text(list(queries[first : first + QUERIES_AT_ONCE])).float()
                answers += self._answer(text, k, num_candidates, allowed)
        return answers

    def _answer(
        self, text: torch.Tensor, k: int, num_candidates: int, allowed: np.ndarray
    ) -> list[list[Hit]]:
        """For texts (n, D). Where too many candidates overlap each other, once more with four times
        as many.
        """
        clips, scores = self._two_stage.scores(text, num_candidates, allowed)  # (n, K)
        answers = [
            self._hits(*row, k) for row in zip(clips.tolist(), scores.tolist(), text, strict=True)
        ]
        if clips.shape[1] < allowed.sum():
            for row, hits in enumerate(answers):
                if len(hits) < k:
                    answers[row] = self._answer(
                        text[row : row + 1], k, 4 * num_candidates, allowed
                    )[0]
        return answers

    def search_audio(self, audio: Sound, k: int = 10, **filters: Any) -> list[Hit]:
        """The best k answers to a sound, by the vectors of the first stage: for TAP what it gives
        when it listens to all frames alike.

        Of a long sound the first excerpts count, and an answer to any of them. A file of the index
        is not an answer to itself. Raises UserError.
        """
        excerpts = self._excerpts(audio)
        with self._lock:
            own = (
                self._numbers.get(self._name_of(audio)) if isinstance(audio, (str, Path)) else None
            )
            # (n, D)
            vectors, _ = ExcerptEncoder(self.model, nullcontext, QUERY_BATCH).encode(excerpts)
            allowed, num_candidates = self._allowed(own, **filters), candidates_for(k)
            while True:
                clips, scores = self._two_stage.shortlist(
                    vectors, num_candidates, allowed
                )  # (n, K)
                best: dict[int, float] = {}
                for clip, score in zip(
                    clips.flatten().tolist(), scores.flatten().tolist(), strict=True
                ):
                    best[clip] = max(score, best.get(clip, -math.inf))
                ranked = sorted(best, key=lambda clip: (-best[clip], clip))
                hits = self._hits(ranked, [best[clip] for clip in ranked], None, k)
                if len(hits) == k or clips.shape[1] == allowed.sum():
                    return hits
                num_candidates *= 4

    @torch.no_grad()
    def score_audio(self, audio: Sound, sentences: Sequence[str]) -> list[float]:
        """Cosine similarity of a sound with each sentence; of a long one the best of its first
        excerpts. Raises UserError.
        """
        excerpts = self._excerpts(audio)
        for sentence in sentences:
            check_query(sentence, self.model.text_encoder)
        if not sentences:
            raise UserError("no sentence to compare the sound with")
        device = self.model.temperature.device
        with self._lock:
            waveform, lengths = collate_clips([excerpt.samples for excerpt in excerpts])
            frames, mask = self.model.encode_audio(waveform.to(device), lengths)
            return (
                self.model.score(
                    self.model.encode_text(list(sentences)).float(), frames.float(), mask
                )
                .amax(dim=1)
                .tolist()
            )

    def notes(self, query: str) -> str | None:
        """What the model does not hear of a query: unknown words, and those beyond its longest
        text.
        """
        return query_notes(query, self.model.text_encoder)

    def path_of(self, file: str) -> Path:
        """Where a file of the index lies. Raises UserError for any other file, and for one that is
        gone or leads out of the folder since.
        """
        if file not in self._numbers:
            raise UserError(f"{file!r} is not a file of index {self.path}")
        if not self.folder.is_dir():
            raise UserError(_gone(self.folder, self.path))
        path = (self.folder / file).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise UserError(f"{file!r} leads out of the indexed folder")
        if not path.is_file():
            raise UserError(
                f"{file!r} is no longer in {self.folder}; bring the index up to date: python -m"
                " retrieval.search index ..."
            )
        return path

    # --- parts ---

    def _name_of(self, audio: Path | str) -> str:
        path = Path(audio).resolve()
        return path.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else ""

    def _excerpts(self, audio: Sound) -> list[Excerpt]:
        cuts = (
            self.model.sample_rate,
            self.model.windows.clip_samples,
            self.model.windows.clip_samples,
        )
        name = audio if isinstance(audio, (str, Path)) else "the sound"
        try:
            if isinstance(audio, tuple):
                return cut(*audio, *cuts)[:QUERY_EXCERPTS]
            return list(islice(read_excerpts(Path(audio), *cuts), QUERY_EXCERPTS))
        except FileNotFoundError:
            raise UserError(f"{name} does not exist") from None
        except PermissionError:
            raise UserError(f"{name} cannot be read: no permission") from None
        except UnreadableSound as error:
            raise UserError(f"{name} {error}") from None

    def _allowed(
        self,
        without: int | None = None,
        within: str = "",
        min_seconds: float = 0.0,
        max_seconds: float = math.inf,
    ) -> np.ndarray:
        folder = within.strip("/")
        if not folder and min_seconds <= 0 and max_seconds == math.inf and without is None:
            return np.ones(len(self._contents.file_of), dtype=bool)
        good = [
            (not folder or file.file.startswith(f"{folder}/"))
            and min_seconds <= file.seconds <= max_seconds
            and number != without
            for number, file in enumerate(self.files)
        ]
        return np.array(good, dtype=bool)[self._contents.file_of]

    def _hits(
        self, clips: list[int], scores: list[float], text: torch.Tensor | None, k: int
    ) -> list[Hit]:
        """Return the best k answers of clips and scores, best first; text (D,), None for a sound."""
        chosen, taken = [], {}
        for clip, score in zip(clips, scores, strict=True):
            number, start, end = (
                int(self._contents.file_of[clip]),
                float(self._contents.starts[clip]),
                float(self._contents.stops[clip]),
            )
            if any(
                start < other_end and other_start < end
                for other_start, other_end in taken.get(number, ())
            ):
                continue
            taken.setdefault(number, []).append((start, end))
            chosen.append((clip, score, self.files[number], start, end))
            if len(chosen) == k:
                break
        attends = text is not None and self.model.pooling.keeps_frames
        attention = (
            self._two_stage.attention(text, [clip for clip, *_ in chosen])
            if attends
            else [None] * len(chosen)
        )
        return [
            make_hit(rank, *answer, weights)
            for rank, ((_, *answer), weights) in enumerate(zip(chosen, attention), 1)
        ]


def candidates_for(k: int) -> int:
    """Return the number of candidates of a query for k answers. Raises UserError for k below 1."""
    if k < 1:
        raise UserError(f"k must be at least 1, found {k}")
    return max(CANDIDATES, CANDIDATES_PER_HIT * k)


def _encoder(model: DualEncoder, batch_size: int, mixed_precision: str) -> ExcerptEncoder:
    return ExcerptEncoder(
        model, make_accelerator(mixed_precision, several=False).autocast, batch_size
    )


def _gone(folder: Path, index: Path) -> str:
    where = f"python -m retrieval.search index ITS_NEW_PLACE --index {index}"
    return (
        f"folder {folder} of index {index} is gone; if it was moved, give its new place, and"
        f" nothing is encoded again: {where}"
    )
