"""Our models as models of `mteb`, the Massive Text Embedding Benchmark, with its audio part MAEB.

    import mteb

    from retrieval.evaluation.mteb import mteb_model, reading_sounds_here

    model = mteb_model("runs/tap/best")
    with reading_sounds_here():
        results = mteb.evaluate(model, mteb.get_tasks(tasks=["ClothoT2ARetrieval.v2"]))

A model whose pooling needs no text becomes an `EncoderModel`: it gives a vector for each text and
each sound, so all tasks of text and sound can use it. A model whose pooling compares each text with
all frames of a clip (TAP) has no such vector. It becomes a `SearchModel`, which gives scores: mteb
asks it for the best documents, in tasks with text on one side and sound on the other.

Sounds are decoded by our readers, also if the task's dataset would decode them itself, and brought
to the model's sample rate. Of a longer clip the first model.clip_seconds count, as in evaluate.py.
Instructions and prompts of a task are not used.

`import mteb` here and everywhere is the package, never this module: Python's imports are absolute.

Letters: N texts, B sounds, Q queries, P documents, T frames, D dimensions.
"""

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import soxr
import torch
from torch.utils.data import DataLoader

from retrieval.base import decoder_process
from retrieval.base.errors import UserError, one_line
from retrieval.base.extras import needs_extra
from retrieval.base.progress import bar
from retrieval.base.sound import UnreadableSound
from retrieval.config import Config
from retrieval.models.build import bound_memory
from retrieval.models.dual_encoder import DualEncoder, check_not_nan
from retrieval.models.pretrained import load_pretrained
from retrieval.models.weights import weights_digest

with needs_extra("mteb"):
    from mteb._create_dataloaders import create_dataloader  # as all of mteb's own search models
    from mteb.models.model_meta import ModelMeta, ScoringFunction
    from mteb.types import PromptType

BATCH_SIZE = 32  # unless mteb gives another one
TEXT_BATCH_SIZE = 256  # of a SearchModel
ORGANISATION = "text-to-audio-retrieval"  # mteb names models organisation/name


def mteb_model(
    checkpoint: str | Path | DualEncoder,
    name: str | None = None,
    device: str | torch.device | None = None,
    text_encoder: Path | None = None,
) -> "EncoderModel | SearchModel":
    """Wrap a model for `mteb.evaluate`.

    Args:
        checkpoint: A checkpoint, as for `evaluate.py --checkpoint`, or a loaded model.
        name: organisation/name for mteb's results; default: from the checkpoint's path.
        device: Where to compute, in float32; default: the GPU if there is one.
        text_encoder: Tokenizer of a .ckpt, a folder or hub name; None: roberta-large.

    Raises:
        UserError: The checkpoint does not load, or the name is not organisation/name.
    """
    if isinstance(checkpoint, DualEncoder):
        model, default = checkpoint, "model"
    else:
        model = load_pretrained(checkpoint, text_encoder)
        default = "-".join(Path(checkpoint).parts[-2:])
    name = name or f"{ORGANISATION}/{default}"
    if not all(name.partition("/")):
        raise UserError(f"name {name!r}: mteb needs organisation/name")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    bound_memory(model, Config())
    model = model.eval().to(device)
    kind = SearchModel if model.pooling.keeps_frames else EncoderModel
    return kind(model, name)


class _Wrapped:
    """Common parts of EncoderModel and SearchModel."""

    scoring: ScoringFunction
    model_type: str

    def __init__(self, model: DualEncoder, name: str):
        self.model = model
        # mteb keeps results under name and revision: new weights must not find those of old ones.
        self.mteb_model_meta = ModelMeta(
            loader=None,
            name=name,
            revision=_digest(model),
            release_date=None,
            languages=None,
            n_parameters=sum(parameter.numel() for parameter in model.parameters()),
            memory_usage_mb=None,
            max_tokens=None,
            embed_dim=self._texts(["a"]).shape[1],
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch"],
            similarity_fn_name=self.scoring,
            use_instructions=False,
            training_datasets=None,
            modalities=["text", "audio"],
            model_type=[self.model_type],
        )

    @torch.inference_mode()
    def _texts(self, texts: list[str]) -> torch.Tensor:
        """Encode N texts: float32 (N, D)."""
        return self.model.encode_text(texts).float()

    @torch.inference_mode()
    def _sounds(self, sounds: Iterable[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode B sounds of a batch of mteb: frames float32 (B, T, D), mask (B, T)."""
        rate = self.model.sample_rate
        longest = round(self.model.clip_seconds * rate)
        clips = [torch.from_numpy(read_sound(sound, rate)[:longest]) for sound in sounds]
        lengths = torch.tensor([len(clip) for clip in clips])
        waveform = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)  # (B, S)
        device = next(self.model.parameters()).device
        frames, mask = self.model.encode_audio(waveform.to(device), lengths)
        return frames.float(), mask


class EncoderModel(_Wrapped):
    """A model that gives vectors: mteb's EncoderProtocol."""

    model_type = "dense"

    @property
    def scoring(self) -> ScoringFunction:
        return ScoringFunction(self.model.pooling.similarity)

    def encode(
        self,
        inputs: DataLoader,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **encode_kwargs: Any,
    ) -> np.ndarray:
        """Encode texts, sounds, or pairs of both.

        Args:
            inputs: Batches with "text", "audio" or both.
            task_metadata, hf_split, hf_subset, prompt_type: Not used.
            **encode_kwargs: Of mteb; show_progress_bar counts, the batch size is that of `inputs`.

        Returns:
            float32 (N, D), whose dot products are the model's scores: vectors of length 1, unless
            the model scores by dot products (PE-Audio). For a pair the sum of both, as mteb's CLAP
            has it.

        Raises:
            UserError: There is neither text nor sound, or a sound cannot be read.
        """
        vectors = []
        for batch in _batches(inputs, **encode_kwargs):
            parts = []
            if "text" in batch:
                parts.append(self._texts(list(batch["text"])))
            if "audio" in batch:
                parts.append(self._sounds(batch["audio"])[0][:, 0])
            if not parts:
                raise UserError(
                    f"task {task_metadata.name} has neither text nor audio, found:"
                    f" {', '.join(batch) or 'nothing'}"
                )
            total = sum(map(self.model.pooling.directions, parts))  # (n, D)
            check_not_nan(total)
            vectors.append(total.cpu())
        return torch.cat(vectors).numpy()

    def similarity(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Return the scores (N, M) of two sets of vectors: cosines, or dot products."""
        return self._directions(embeddings1) @ self._directions(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Return the scores (N,) of vectors in the same places."""
        return (self._directions(embeddings1) * self._directions(embeddings2)).sum(dim=-1)

    def _directions(self, vectors: Any) -> torch.Tensor:
        return self.model.pooling.directions(torch.atleast_2d(torch.as_tensor(vectors)).float())


class SearchModel(_Wrapped):
    """A model that gives scores of a text and a sound: mteb's SearchProtocol.

    Frames are never kept: sounds are encoded batch by batch and scored at once against all texts.
    """

    scoring, model_type = ScoringFunction.CUSTOM, "late-interaction"

    _corpus: datasets.Dataset | None = None

    def index(self, corpus: datasets.Dataset, *, task_metadata: Any, **_: Any) -> None:
        """Take the documents of a task. Further arguments of mteb are not used.

        Raises:
            UserError: The task does not compare text with sound.
        """
        sides = [
            list(task_metadata.get_modalities(kind))
            for kind in (PromptType.query, PromptType.document)
        ]
        if sorted(sides) != [["audio"], ["text"]]:
            query, document = (" and ".join(side) for side in sides)
            raise UserError(
                f"task {task_metadata.name} compares {query} with {document}; a pooling that looks"
                " at the text compares text with audio only: use a model of another pooling"
            )
        self._corpus = corpus

    def search(
        self,
        queries: datasets.Dataset,
        *,
        task_metadata: Any,
        top_k: int,
        encode_kwargs: Mapping[str, Any],
        top_ranked: Mapping[str, list[str]] | None = None,
        num_proc: int | None = None,
        **_: Any,
    ) -> dict[str, dict[str, float]]:
        """Score the queries against the documents of `index`.

        Args:
            queries: Q texts or sounds, with their ids.
            task_metadata: Says which side is text.
            top_k: Documents to return for each query.
            encode_kwargs: Of mteb; batch_size is that of the sounds.
            top_ranked: For each query the only documents to score; None: all.
            num_proc: Processes that load the batches.

        Returns:
            For each query the scores of its best documents, by their ids.

        Raises:
            UserError: A score is NaN, or a sound cannot be read.
        """
        if self._corpus is None:
            raise ValueError("call index before search")
        sides = {PromptType.query: queries, PromptType.document: self._corpus}
        loaders = {}
        for kind, dataset in sides.items():
            (modality,) = task_metadata.get_modalities(kind)
            size = encode_kwargs.get("batch_size", BATCH_SIZE)
            loaders[modality] = create_dataloader(
                _undecoded(dataset),
                task_metadata=task_metadata,
                prompt_type=kind,
                batch_size=size if modality == "audio" else TEXT_BATCH_SIZE,
                num_proc=num_proc,
            )
        texts = torch.cat([self._texts(list(batch["text"])) for batch in loaders["text"]])  # (N, D)
        best = _Best(list(queries["id"]), list(self._corpus["id"]), top_k, top_ranked)
        asks_by_text = task_metadata.get_modalities(PromptType.query) == ["text"]
        first = 0
        for batch in _batches(loaders["audio"], **encode_kwargs):
            with torch.inference_mode():
                scores = self.model.score(texts, *self._sounds(batch["audio"])).cpu()  # (N, b)
            check_not_nan(scores)
            sounds, first = slice(first, first + scores.shape[1]), first + scores.shape[1]
            if asks_by_text:
                best.add_documents(sounds, scores)
            else:
                best.add_queries(sounds, scores.T)
        self._corpus = None
        return best.results()


class _Best:
    """The best documents of each query, gathered from blocks of scores."""

    def __init__(
        self,
        queries: list[str],
        documents: list[str],
        top_k: int,
        top_ranked: Mapping[str, list[str]] | None,
    ):
        self.queries, self.documents, self.top_k = queries, documents, top_k
        self.values = torch.empty(len(queries), 0)  # (Q, k), best first
        self.places = torch.empty(len(queries), 0, dtype=torch.int64)  # (Q, k), of documents
        self.allowed = None  # bool (Q, P)
        if top_ranked is not None:
            place_of = {document: place for place, document in enumerate(documents)}
            self.allowed = torch.zeros(len(queries), len(documents), dtype=torch.bool)
            for row, query in enumerate(queries):
                self.allowed[row, [place_of[one] for one in top_ranked.get(query, ())]] = True

    def add_documents(self, documents: slice, scores: torch.Tensor) -> None:
        """Add scores (Q, p) of all queries and of these documents."""
        places = torch.arange(documents.start, documents.stop).expand(len(scores), -1)
        scores = self._masked(slice(None), documents, scores)
        self.values, order = self._top(torch.cat([self.values, scores], dim=1))
        self.places = torch.cat([self.places, places], dim=1).gather(1, order)

    def add_queries(self, queries: slice, scores: torch.Tensor) -> None:
        """Add scores (q, P) of these queries, which follow those before, and of all documents."""
        values, order = self._top(self._masked(queries, slice(None), scores))
        if queries.start == 0:
            self.values, self.places = values[:0], order[:0]
        self.values = torch.cat([self.values, values])
        self.places = torch.cat([self.places, order])

    def results(self) -> dict[str, dict[str, float]]:
        rows = zip(self.queries, self.places.tolist(), self.values.tolist(), strict=True)
        return {
            query: {
                self.documents[place]: value
                for place, value in zip(places, values, strict=True)
                if value > -math.inf
            }
            for query, places, values in rows
        }

    def _masked(self, queries: slice, documents: slice, scores: torch.Tensor) -> torch.Tensor:
        if self.allowed is None:
            return scores
        return scores.masked_fill(~self.allowed[queries, documents], -math.inf)

    def _top(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return scores.topk(min(self.top_k, scores.shape[1]))


# --- sounds ---


def _undecoded(dataset: Any) -> Any:
    """Let the sounds of a dataset come as files, for our readers. Others stay as they are."""
    features = getattr(dataset, "features", None) or {}
    if isinstance(features.get("audio"), datasets.Audio):
        return dataset.cast_column("audio", datasets.Audio(decode=False))
    return dataset


def _batches(
    loader: DataLoader, show_progress_bar: bool = True, **_: Any
) -> Iterator[dict[str, Any]]:
    """Yield the batches of a loader of mteb, with sounds as files where it has files."""
    dataset = _undecoded(loader.dataset)
    if dataset is not loader.dataset:
        loader = DataLoader(
            dataset,
            batch_size=loader.batch_size or BATCH_SIZE,
            collate_fn=loader.collate_fn,
            num_workers=loader.num_workers,
        )
    settings = {"desc": "encoding", "unit": "batch", "leave": False}
    with bar(total=len(loader), disable=not show_progress_bar, **settings) as progress:
        for batch in loader:
            yield batch
            progress.update()


def read_sound(sound: Any, sample_rate: int) -> np.ndarray:
    """Return a sound of mteb as mono samples.

    Args:
        sound: {"bytes", "path"} of an encoded file; or samples (S,), or (C, S) of C channels, as
            {"array", "sampling_rate"} or a decoder of `datasets` with these keys.
        sample_rate: Hz of the result.

    Returns:
        float32 (S,), at least one sample.

    Raises:
        UserError: It cannot be read, or holds no samples.
    """
    if isinstance(sound, Mapping) and "array" not in sound:
        samples = _from_file(sound, lambda path: _read_mono(path, sample_rate))
    else:
        samples = np.asarray(sound["array"], dtype=np.float32)
        if samples.ndim > 1:
            samples = samples.mean(axis=0)
        rate = int(sound["sampling_rate"])
        if rate != sample_rate and len(samples):
            samples = soxr.resample(samples, rate, sample_rate)
    if not len(samples):
        raise UserError("a sound of the task holds no samples")
    if not np.isfinite(samples).all():
        raise UserError("a sound of the task holds samples that are NaN or infinite")
    return np.ascontiguousarray(samples, dtype=np.float32)


def _read_mono(path: str, sample_rate: int) -> np.ndarray:
    return np.concatenate(list(decoder_process.mono_blocks(path, sample_rate)))


def _from_file(sound: Mapping[str, Any], read: Callable[[str], Any]) -> Any:
    """Return read(path) of a file that is there, elsewhere or in memory. Raises UserError."""
    content, path = sound.get("bytes"), sound.get("path")
    name = path or "without a name"
    try:
        if content is None and path and Path(path).is_file():
            return read(path)
        if content is None:
            with datasets.utils.file_utils.xopen(path, "rb") as file:
                content = file.read()
        with tempfile.NamedTemporaryFile(prefix="mteb-sound-") as file:
            file.write(content)
            file.flush()
            return read(file.name)
    except (UnreadableSound, OSError, TypeError, ValueError) as error:
        raise UserError(f"sound {name} of the task cannot be read ({one_line(error)})") from None


@contextmanager
def reading_sounds_here() -> Iterator[None]:
    """Let `datasets` decode sounds by our readers within the block, instead of torchcodec.

    mteb looks at the first document of a task while it loads it, and some tasks at every row. That
    would need the package torchcodec, which this project does not use.
    """
    original = datasets.Audio.decode_example

    def decode_example(feature: datasets.Audio, value: Any, *_: Any, **__: Any) -> dict[str, Any]:
        def read(path: str) -> tuple[np.ndarray, int]:
            rate = feature.sampling_rate or decoder_process.read_frames(path, 0, 0)[1].sample_rate
            return _read_mono(path, rate), rate

        samples, rate = _from_file(value, read)
        return {"path": value.get("path"), "array": samples, "sampling_rate": rate}

    datasets.Audio.decode_example = decode_example
    try:
        yield
    finally:
        datasets.Audio.decode_example = original


def _digest(model: DualEncoder) -> str:
    """Return a digest of architecture and weights, as long as a git commit."""
    content = json.dumps(model.architecture, sort_keys=True, default=str) + weights_digest(model)
    return hashlib.sha256(content.encode()).hexdigest()[:40]
