"""AudioIndex: recordings of a folder, found by a sentence or by a sound.

Letters: N queries, n at once, B excerpts in the index, K candidates of a query, P sentences of a
query, T frames, D = dim.
"""

import math
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain, islice
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from retrieval.base.checkpoints import hub_name
from retrieval.base.errors import UserError
from retrieval.base.extras import needs_extra
from retrieval.base.sound import UnreadableSound
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.pretrained import exact_name
from retrieval.moments.locator import Located
from retrieval.search.cluster.address import Address
from retrieval.search.combined import Parts, ranked, weighed
from retrieval.search.copies import LOOK_AHEAD, Chooser
from retrieval.search.encoder import ExcerptEncoder, collate
from retrieval.search.facets import MOST_VALUES, Facets
from retrieval.search.feedback.detectors import Detector, Detectors, Mark
from retrieval.search.feedback.refinement import Refinement
from retrieval.search.filters import Filters
from retrieval.search.hits import FrameCurves, Hit, IndexedFile, averaged, make_hit
from retrieval.search.index_meta import folder_gone
from retrieval.search.model_identity import ModelIdentity, load_model
from retrieval.search.place import Place, place_of
from retrieval.search.queries import Query, Sound, check_query, check_sentences, query_notes
from retrieval.search.sound import Excerpt, cut, read_excerpts
from retrieval.search.store import IndexedExcerpt, Store
from retrieval.search.two_stage import TwoStage
from retrieval.search.whole_file import WholeFile

if TYPE_CHECKING:
    from retrieval.search.update import Changes

CANDIDATES = 100  # excerpts that TAP scores for a query, at least; more for larger k
CANDIDATES_PER_HIT = 4  # of overlapping excerpts of a file only the best is an answer
QUERY_EXCERPTS = 20  # of a sound as query
QUERY_BATCH = 4
QUERIES_AT_ONCE = 64
MOST_DETECTED = 20_000  # excerpts whose frames a detector reads with TAP


class Wanted(NamedTuple):
    """Number of answers; fold: copies of a recording are one."""

    k: int
    fold: bool


class AudioIndex:
    """Recordings of a folder, found by a sentence or by a sound. Made by `build` or `open`.

    Searches may come from several threads; they take turns.

    Attributes:
        place: Place of the index: a folder, or a database that several machines reach.
        path: Its folder, or the address of the database.
        folder: Folder of the recordings.
        model: The model, a DualEncoder.
        store: Its files, vectors and frames.
        excerpt_seconds: Length of its longest excerpts.
        is_complete: False if the last update was interrupted.
        changes: Counts of the last `build` or `add`.
    """

    def __init__(
        self,
        place: Place,
        model: DualEncoder,
        store: Store,
        encode_text: Callable[[list[str]], torch.Tensor] | None = None,
    ):
        self.place, self.path, self.model = place, place.name, model.eval()
        self.changes: Changes | None = None
        self._encode_text = encode_text or model.encode_text
        self._lock = threading.Lock()
        self._load(store)

    def _load(self, store: Store) -> None:
        self.store, meta = store, store.meta
        self.folder, self.is_complete = Path(meta.folder), meta.complete
        self.excerpt_seconds = meta.clip_seconds
        self._two_stage = TwoStage(self.model.pooling, store)
        self._refinement = Refinement(store, self._two_stage)

    @property
    def files(self) -> Sequence[IndexedFile]:
        """Files in order of name; each is read when it is asked for."""
        return self.store.files

    @property
    def num_files(self) -> int:
        return self.store.num_files

    @property
    def seconds(self) -> float:
        """Length of all files together."""
        return self.store.seconds

    @property
    def folders(self) -> list[str]:
        """Folders with files, for the filter `within`."""
        return self.store.folders

    @property
    def unreadable(self) -> list[tuple[str, str]]:
        """(file, reason) of the files that were left out."""
        return self.store.unreadable

    def file(self, name: str) -> IndexedFile | None:
        """Return a file by its name; None if the index has no such file."""
        return self.store.file(name)

    @classmethod
    def build(
        cls,
        folder: str | Path,
        checkpoint: str | Path | None,
        index: str | Path | Address,
        *,
        text_encoder: str | Path | None = None,
        excerpt_seconds: float | None = None,
        hop_seconds: float | None = None,
        frames: str | None = None,
        frames_per_second: float | None = None,
        batch_size: int = 16,
        mixed_precision: str = "auto",
        overwrite: bool = False,
        frames_store: str | Path | None = None,
        shard: str | None = None,
        metadata: str | Path | None = None,
    ) -> "AudioIndex":
        """Index the recordings of a folder, or bring an index of them up to date.

        Args:
            folder: Holds the recordings, also in sub-folders. It may be a new place of the indexed
                ones (at least half of them), which are then not encoded again.
            checkpoint: Model of any kind that load_pretrained takes; None: that of the existing
                index.
            index: Folder of the index; or postgresql://user@host/database?index=NAME, an index that
                several machines write to and search in.
            text_encoder: Tokenizer of a .ckpt, a folder or hub name; None: that of the existing
                index, or roberta-large.
            excerpt_seconds: Longest excerpt of a file; None: the model's clip_seconds, or at most
                its pooling.longest_excerpt.
            hop_seconds: From the start of one excerpt of a long file to the next; None: half of an
                excerpt.
            frames: "float16": keep frames, so that answers say when in an excerpt; TAP needs them.
                "int8": the same in half the bytes. "none": an answer's only moment is its excerpt.
                None: as the existing index, or float16 if the model has several frames a window.
            frames_per_second: Keep averages of neighbouring frames, about so many a second; None:
                as the existing index, or all frames.
            batch_size: Excerpts encoded at once.
            mixed_precision: Of the encoder: auto, no, bf16 or fp16.
            overwrite: Forget the content of the index.
            frames_store: For a database, where the frames lie: a folder that all machines share, or
                a URI of fsspec such as s3://bucket/prefix; None: as in the existing index.
            shard: For a database, the share of the files to bring up to date: "3/16"; None: all.
            metadata: CSV whose columns become filters, see retrieval.search.metadata; None: that
                of the existing index.

        Returns:
            The index, with the counts of this update in `changes`.

        Raises:
            UserError: No recordings, another model than before, a full disk, ...
        """
        from retrieval.search.update import build_index  # here, because searches do not need it

        place = place_of(index, frames_store=frames_store, shard=shard)
        model, store, changes = build_index(
            Path(folder),
            checkpoint,
            place,
            text_encoder=text_encoder,
            excerpt_seconds=excerpt_seconds,
            hop_seconds=hop_seconds,
            frames=frames,
            frames_per_second=frames_per_second,
            batch_size=batch_size,
            mixed_precision=mixed_precision,
            overwrite=overwrite,
            metadata=None if metadata is None else Path(metadata),
        )
        built = cls(place, model, store)
        built.changes = changes
        return built

    @classmethod
    def open(
        cls,
        index: str | Path | Address,
        checkpoint: str | Path | None = None,
        *,
        text_encoder: str | Path | None = None,
        fast_text: bool = False,
        frames_store: str | Path | None = None,
    ) -> "AudioIndex":
        """Open an index and load its model, on the GPU if there is one.

        Args:
            index: Folder of the index, or postgresql://user@host/database?index=NAME.
            checkpoint: Where its model is now; None: where it was.
            text_encoder: Tokenizer of a .ckpt, a folder or hub name; None: as when the index was
                made.
            fast_text: On a CPU, encode sentences in 8 bit (retrieval.search.fast_text); the encoder
                is made at the first time and kept in the index.
            frames_store: For a database, where the frames are now; None: where they were.

        Raises:
            UserError: The index is absent or damaged, or the model is absent or another one.
        """
        location = place_of(index, frames_store=frames_store)
        store, path = location.open(), location.name
        identity = store.meta.model
        text_encoder = text_encoder or identity.text_encoder
        place = checkpoint or identity.path
        if not Path(place).exists() and hub_name(place) is None:
            raise UserError(
                f"the model of index {path} is gone from {place}; say where it is now:"
                " --checkpoint DIR"
            )
        place = exact_name(place)
        identity.check_same(ModelIdentity.of(place, text_encoder, identity), path)
        model = load_model(place, text_encoder)
        if not fast_text or model.temperature.device.type != "cpu":
            return cls(location, model, store)
        with needs_extra("export"):  # here, because it takes seconds to import
            from retrieval.search.fast_text import fast_text_encoder

        encode_text = fast_text_encoder(location.folder, model, identity)
        return cls(location, model, store, encode_text)

    def add(self, *, batch_size: int = 16, mixed_precision: str = "auto") -> "Changes":
        """Bring the index up to date with its folder; arguments and errors as for `build`."""
        from retrieval.search.update import add_to_index

        store, self.changes = add_to_index(
            self.place, self.store.meta, self.model, batch_size, mixed_precision
        )
        with self._lock:
            self._load(store)
        return self.changes

    @property
    def unrelated_score(self) -> float | None:
        """Score that unrelated sentences reach (calibration.py); None: not measured."""
        return self.store.meta.unrelated_score

    def search(
        self,
        query: str | Query | Detector | None = None,
        k: int = 10,
        *,
        also: str | Sequence[str | tuple[str, float]] = (),
        without: str | Sequence[str] = (),
        audio: Sound | None = None,
        min_score: float | None = None,
        fold: bool = True,
        **filters: Any,
    ) -> list[Hit]:
        """Find the recordings that a sentence describes, or several of them and a sound together.

        Args:
            query: The sentence, or a Query, or a detector of `refine`, whose probabilities are then
                the scores.
            k: Number of answers.
            also: Further sentences that should be heard, or pairs of one and its weight; that of
                `query` is 1.
            without: One or several sentences that should not be heard.
            audio: A sound that answers should be like; a file, or samples and their rate in Hz.
            min_score: Answers with a lower score are left out.
            fold: Fold copies of a recording into one answer, see retrieval.search.copies.
            **filters: Those of Filters: within="birds/owls", only files below that folder of the
                indexed one; min_seconds and max_seconds, only files of such a length;
                where={"place": "forest", "year": (2020, 2024)}, only files of such metadata.

        Returns:
            At most k answers, best first; of overlapping excerpts of a file only the best.

        Raises:
            UserError: The model knows no word of a sentence, a wrong weight, a sound that cannot be
                read, or k is below 1.
        """
        if isinstance(query, (Query, Detector)) and (also or without or audio is not None):
            raise TypeError("also, without and audio go with a sentence; a Query has its own")
        if isinstance(query, Detector):
            least = least_score(min_score)
            return [hit for hit in self._search_by(query, k, fold, **filters) if hit.score >= least]
        if not isinstance(query, Query):
            query = Query.of(query, also=also, without=without, audio=audio)
        return self.search_many([query], k, min_score=min_score, fold=fold, **filters)[0]

    @torch.no_grad()
    def search_many(
        self,
        queries: Sequence[str | Query],
        k: int = 10,
        *,
        min_score: float | None = None,
        fold: bool = True,
        **filters: Any,
    ) -> list[list[Hit]]:
        """Find the recordings that each query describes; see `search`."""
        if isinstance(queries, str):
            raise TypeError("search_many takes several queries; one is for search")
        for query in queries:
            check_sentences(query, self.model.text_encoder)
        num_candidates, wanted = candidates_for(k), Wanted(k, fold)
        least = least_score(min_score)
        plain = {
            place: query if isinstance(query, str) else query.texts[0][0]
            for place, query in enumerate(queries)
            if isinstance(query, str) or query.is_plain
        }
        sounds = {
            place: self._excerpts(query.audio)
            for place, query in enumerate(queries)
            if place not in plain and query.audio is not None
        }
        places, answers = list(plain), {}
        with self._lock:
            selection = self.store.select(Filters(**filters))
            for first in range(0, len(places), QUERIES_AT_ONCE):
                part = places[first : first + QUERIES_AT_ONCE]
                text = self._encode_text([plain[place] for place in part]).float()  # (n, D)
                found = self._answer(text, wanted, num_candidates, selection)
                answers.update(zip(part, found, strict=True))
            for place, query in enumerate(queries):
                if place not in plain:
                    own = Filters(**filters, without=self._own_name(query.audio))
                    allowed = self.store.select(own) if own.without else selection
                    heard = None
                    if place in sounds:
                        encoder = ExcerptEncoder(self.model, nullcontext, QUERY_BATCH)
                        heard, _ = encoder.encode(sounds[place])  # (n, D)
                    if not query.sentences:
                        answers[place] = self._answer_sound(heard, wanted, num_candidates, allowed)
                        continue
                    text = self._encode_text(list(query.sentences)).float()  # (P, D)
                    parts = weighed(query, text, heard)
                    answers[place] = self._answer_parts(parts, wanted, num_candidates, allowed)
        return [
            [hit for hit in answers[place] if hit.score >= least] for place in range(len(queries))
        ]

    def _answer(
        self, text: torch.Tensor, wanted: Wanted, num_candidates: int, selection: Any
    ) -> list[list[Hit]]:
        """Answer texts (n, D); if too many candidates overlap, again with four times as many."""
        clips, scores = self._two_stage.scores(text, num_candidates, selection)  # (n, K)
        answers = []
        for row, own in enumerate(text):
            own_scores = scores[row].tolist()
            hits = self._hits(clips[row].tolist(), own_scores, own[None], wanted, own_scores)
            if len(hits) < wanted.k and clips.shape[1] < self.store.count(selection):
                (hits,) = self._answer(own[None], wanted, 4 * num_candidates, selection)
            answers.append(hits)
        return answers

    def _answer_parts(
        self, parts: Parts, wanted: Wanted, num_candidates: int, selection: Any
    ) -> list[Hit]:
        """Answer a query of several parts; if too many candidates overlap, ask for more."""
        clips, scores, judged = ranked(parts, self._two_stage, num_candidates, selection)
        heard = parts.text[: parts.num_heard], parts.weights[: parts.num_heard]
        hits = self._hits(clips, scores, heard[0], wanted, judged, heard[1])
        if len(hits) < wanted.k and num_candidates < self.store.count(selection):
            return self._answer_parts(parts, wanted, 4 * num_candidates, selection)
        return hits

    @property
    def detectors(self) -> Detectors:
        """Detectors saved in the index."""
        return Detectors(self.place.folder / "detectors")

    def refine(self, query: str, marks: Sequence[Mark]) -> Detector:
        """Learn a detector from a sentence and answers marked right or wrong.

        `search` takes it in place of the sentence; `detectors.save` keeps it.

        Args:
            query: The sentence.
            marks: Mark.of(hit, right=True), or marks of files by name. One kind is enough; without
                any it ranks as the sentence does. Of two marks on one excerpt the last counts.

        Raises:
            UserError: The model knows no word of the query, or the index does not have a file or
                time of a mark.
        """
        check_query(query, self.model.text_encoder)
        with self._lock:
            with torch.no_grad():
                text = self._encode_text([query]).float()[0]  # (D,)
            return self._refinement.refine(query, text, marks)

    def excerpt_of(self, mark: Mark) -> IndexedExcerpt:
        """Return the excerpt that a mark belongs to: that with the largest overlap.

        Raises:
            UserError: The index does not have the file or the time, or a mark without times is of
                a file of several excerpts.
        """
        return self._refinement.excerpt_of(mark)

    def detect(
        self, detector: Detector, min_probability: float | None = None, **filters: Any
    ) -> list[Hit]:
        """Find all excerpts that a detector accepts.

        With TAP, in an index of more than MOST_DETECTED excerpts, it judges those that the first
        stage ranks best.

        Args:
            detector: Of `refine` or of `detectors`, on an index of the same model.
            min_probability: Accept from this probability; None: from the detector's threshold.
            **filters: As for `search`.

        Returns:
            Answers, best first; of overlapping excerpts of a file only the best.

        Raises:
            UserError: A detector of another model.
        """
        detector.check_model(self.store.meta.model, self.path)
        least = detector.threshold if min_probability is None else min_probability
        with self._lock:
            selection = self.store.select(Filters(**filters))
            num_clips = self.store.count(selection)
            num = MOST_DETECTED if self.model.pooling.keeps_frames else CANDIDATES
            while True:
                clips, likely = self._refinement.probabilities(detector, num, selection)
                num_found = sum(own >= least for own in likely)
                # The first stage's order is the final one, but with TAP.
                if num >= num_clips or num_found < num or self.model.pooling.keeps_frames:
                    text = torch.tensor(detector.text, device=self.model.temperature.device)
                    wanted = Wanted(num_found, fold=False)
                    return self._hits(clips[:num_found], likely[:num_found], text[None], wanted)
                num *= 4

    def _search_by(self, detector: Detector, k: int, fold: bool, **filters: Any) -> list[Hit]:
        """Answer by a detector, in place of a sentence."""
        detector.check_model(self.store.meta.model, self.path)
        num_candidates = candidates_for(k)
        text = torch.tensor(detector.text, device=self.model.temperature.device)
        with self._lock:
            selection = self.store.select(Filters(**filters))
            while True:
                clips, likely = self._refinement.probabilities(detector, num_candidates, selection)
                hits = self._hits(clips, likely, text[None], Wanted(k, fold))
                if len(hits) == k or len(clips) == self.store.count(selection):
                    least = detector.threshold
                    return [replace(hit, is_match=hit.score >= least) for hit in hits]
                num_candidates *= 4  # too many candidates overlap

    def search_audio(self, audio: Sound, k: int = 10, **filters: Any) -> list[Hit]:
        """Find recordings that sound like a sound, by the cosines of the first stage's vectors.

        A file of the index is not an answer to itself. An answer to any of the first QUERY_EXCERPTS
        excerpts of a long sound counts.

        Args:
            audio: A file, or samples (S,) or (S, channels) and their rate in Hz.
            k: Number of answers.
            **filters: As for `search`.

        Returns:
            At most k answers, best first.

        Raises:
            UserError: The sound cannot be read, or k is below 1.
        """
        return self.search(audio=audio, k=k, **filters)

    def _answer_sound(
        self, vectors: np.ndarray, wanted: Wanted, num_candidates: int, selection: Any
    ) -> list[Hit]:
        """Answer a sound, vectors (n, D) of its excerpts."""
        clips, scores = self._two_stage.alike(vectors, num_candidates, selection)  # (n, K)
        best: dict[int, float] = {}
        for clip, score in zip(clips.flat, scores.flat, strict=True):
            best[int(clip)] = max(float(score), best.get(int(clip), -math.inf))
        ranking = sorted(best, key=lambda clip: (-best[clip], clip))
        hits = self._hits(ranking, [best[clip] for clip in ranking], None, wanted)
        if len(hits) < wanted.k and clips.shape[1] < self.store.count(selection):
            return self._answer_sound(vectors, wanted, 4 * num_candidates, selection)
        return hits

    @torch.no_grad()
    def score_audio(self, audio: Sound, sentences: Sequence[str]) -> list[float]:
        """Compare a sound with sentences.

        Args:
            audio: As for `search_audio`.
            sentences: At least one.

        Returns:
            Score of each sentence; of a long sound that of its best excerpt.

        Raises:
            UserError: The sound cannot be read, or the model knows no word of a sentence.
        """
        excerpts = self._excerpts(audio)
        for sentence in sentences:
            check_query(sentence, self.model.text_encoder)
        if not sentences:
            raise UserError("no sentence to compare the sound with")
        waveform, lengths = collate(excerpts)
        with self._lock:
            frames, mask = self.model.encode_audio(
                waveform.to(self.model.temperature.device), lengths
            )
            text = self.model.encode_text(list(sentences)).float()
            scores = self.model.score(text, frames.float(), mask)  # (sentences, excerpts)
        return scores.amax(dim=1).tolist()

    @torch.no_grad()
    def locate(self, query: str, file: str) -> Located:
        """Find a sentence in a whole file of the index, whose sound is not encoded again.

        The curve holds the moment head's probabilities, or without a head the part of each frame in
        its excerpt's score. Without frames it holds the scores of the excerpts. Where excerpts
        overlap, it is their average.

        Args:
            query: The sentence.
            file: One of `files`.

        Returns:
            Moments and curve of one text; see Located.

        Raises:
            UserError: The index has no such file, or the model knows no word of the query.
        """
        store = self.store
        indexed = store.file(file)
        if indexed is None:
            raise UserError(f"{file!r} is not a file of index {self.path}")
        check_query(query, self.model.text_encoder)
        with self._lock:
            text = self._encode_text([query]).float()[0]  # (D,)
        found = WholeFile(indexed, self.model, store.meta.hop_seconds)
        direction = self.model.pooling.directions(text).cpu()
        clips = store.clips_of(file)
        store.prefetch(clips)
        for clip, _, start, end in store.excerpts(clips):
            # The lock is free after each excerpt: a file of hours has hundreds, and others wait.
            with self._lock:
                if store is not self.store:
                    raise UserError("the index was brought up to date meanwhile; ask again")
                if self._has_head:
                    likely = self._probabilities(text, clip)
                    found.add(start, end, FrameCurves(None, None, likely), 0.0)
                    continue
                (heard,) = self._two_stage.heard(text, [clip])
                score = float(torch.from_numpy(store.vectors([clip])[0]) @ direction)
                if self.model.pooling.keeps_frames:
                    place = torch.tensor([[clip]], device=text.device)
                    score = self._two_stage.rescore(text[None], place).item()
            found.add(start, end, heard, score)
        return found.located()

    def notes(self, query: str | Query) -> str | None:
        """Name the words of a query that the model does not know or read; None without any."""
        sentences = [query] if isinstance(query, str) else query.sentences
        notes = (query_notes(sentence, self.model.text_encoder) for sentence in sentences)
        return "; ".join(filter(None, notes)) or None

    def facets(self, most_values: int = MOST_VALUES) -> Facets:
        """Count the files of each folder, and of each value in the columns of metadata.

        most_values: Of a column, the most frequent ones.
        """
        with self._lock:
            return self.store.facets(most_values)

    def path_of(self, file: str) -> Path:
        """Return the path of a file of the index.

        Raises:
            UserError: The index has no such file, or it is gone or leads out of the folder now.
        """
        if self.store.file(file) is None:
            raise UserError(f"{file!r} is not a file of index {self.path}")
        if not self.folder.is_dir():
            raise folder_gone(self.folder, self.path)
        path = (self.folder / file).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise UserError(f"{file!r} leads out of the indexed folder")
        if not path.is_file():
            raise UserError(
                f"{file!r} is no longer in {self.folder}; bring the index up to date: python -m"
                " retrieval.search index ..."
            )
        return path

    def _own_name(self, audio: Sound | None) -> str:
        """Return the name that a sound would have in this index; "" if it lies elsewhere."""
        if not isinstance(audio, (str, Path)):
            return ""
        path = Path(audio).resolve()
        is_inside = path.is_relative_to(self.folder)
        return path.relative_to(self.folder).as_posix() if is_inside else ""

    def _excerpts(self, audio: Sound) -> list[Excerpt]:
        """Read the first excerpts of a sound, side by side. Raises UserError."""
        clip_samples = round(self.excerpt_seconds * self.model.sample_rate)
        lengths = self.model.sample_rate, clip_samples, clip_samples
        name = "the sound" if isinstance(audio, tuple) else audio
        try:
            if isinstance(audio, tuple):
                return cut(*audio, *lengths)[:QUERY_EXCERPTS]
            return list(islice(read_excerpts(Path(audio), *lengths), QUERY_EXCERPTS))
        except FileNotFoundError:
            raise UserError(f"{name} does not exist") from None
        except PermissionError:
            raise UserError(f"{name} cannot be read: no permission") from None
        except UnreadableSound as error:
            raise UserError(f"{name} {error}") from None

    def _hits(
        self,
        clips: list[int],
        scores: list[float],
        text: torch.Tensor | None,
        wanted: Wanted,
        judged: list[float] | None = None,
        weights: Sequence[float] = (1.0,),
    ) -> list[Hit]:
        """Make answers of ranked excerpts, as many as wanted.

        Args:
            clips: The excerpts, best first.
            scores: Of each excerpt.
            text: (P, D), the sentences that should be heard; None or P = 0 for a sound.
            wanted: Number of answers.
            judged: Of each excerpt the score to compare with that of unrelated sentences; None: it
                cannot be compared.
            weights: Of each sentence.
        """
        unrelated = self.unrelated_score
        if judged is None or unrelated is None:
            judged, unrelated = scores, -math.inf
        chosen, chooser, num_behind = [], Chooser(self.store, wanted.fold), 0
        threshold = float(self.model.moment_head.threshold) if self._has_head else None
        for excerpt, score, own in zip(self.store.excerpts(clips), scores, judged, strict=True):
            is_full = len(chosen) == wanted.k
            num_behind += is_full
            if num_behind > (LOOK_AHEAD if wanted.fold else 0):
                break
            if chooser.add(excerpt, is_full):
                other = None if own == score else own
                chosen.append((excerpt, score, own >= unrelated, other))
        heard = [None] * len(chosen)
        if text is not None and len(text):
            numbers = [excerpt.clip for excerpt, *_ in chosen]
            ask = self._asked if self._has_head else self._two_stage.heard
            of_sentences = [ask(sentence, numbers) for sentence in text]
            heard = [averaged(own, weights) for own in zip(*of_sentences, strict=True)]
        names = [excerpt.file.file for excerpt, *_ in chosen]
        fields = self.store.fields([*names, *chain.from_iterable(chooser.copies)])
        rate, hits = self.model.sample_rate, []
        for ((_, file, start, end), score, is_match, other), own in zip(chosen, heard, strict=True):
            num_frames = 0 if own is None else len(own.values)
            centres = self.model.windows.frame_centres(num_frames) / rate  # (T,)
            frames = centres, self.model.frame_seconds, threshold
            hit = make_hit(len(hits) + 1, score, file, start, end, own, *frames)
            copies = tuple(chooser.copies[len(hits)])
            known: dict[str, str | float] = {}
            for name in (file.file, *copies):  # what is unknown of a file, its copies may tell
                known = fields.get(name, {}) | known
            about = {"is_match": is_match, "judged_score": other}
            hits.append(replace(hit, metadata=known, copies=copies, **about))
        return hits

    @property
    def _has_head(self) -> bool:
        """Whether a moment head answers: the model has one, and the index frames."""
        return self.model.moment_head is not None and self.store.has_frames

    def _asked(self, text: torch.Tensor, clips: Sequence[int]) -> list[FrameCurves]:
        """Return attention and the moment head's probabilities for a text (D,) in each clip."""
        return [
            FrameCurves(None, weights, self._probabilities(text, clip))
            for weights, clip in zip(self._two_stage.attention(text, clips), clips, strict=True)
        ]

    def _probabilities(self, text: torch.Tensor, clip: int) -> np.ndarray:
        """Return the moment head's probabilities (T,) for a text (D,) in an excerpt."""
        keys = self.store.frames(clip).to(text.device).float()[None]  # (1, T, D)
        mask = torch.ones(keys.shape[:2], dtype=torch.bool, device=text.device)
        logits = self.model.moment_logits_of_keys(text[None], keys, mask)[0]
        return logits.sigmoid().detach().cpu().numpy()


def least_score(min_score: float | None) -> float:
    """Return the lowest score of an answer; None: any. Raises UserError for NaN."""
    if min_score is None:
        return -math.inf
    if math.isnan(min_score):
        raise UserError("min_score must be a number, found nan")
    return min_score


def candidates_for(k: int) -> int:
    """Return the number of candidates of a query for k answers. Raises UserError for k below 1."""
    if not isinstance(k, Integral) or k < 1:
        raise UserError(f"k must be a whole number from 1 on, found {k!r}")
    return max(CANDIDATES, CANDIDATES_PER_HIT * k)
