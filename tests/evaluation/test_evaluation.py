"""Score matrix in blocks, a scored split and its files, with a model whose numbers are exact."""

import csv
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from retrieval.base.errors import UserError
from retrieval.evaluation import score_matrix
from retrieval.evaluation.metrics.text_audio_retrieval.ranking import best_right, first_columns
from retrieval.evaluation.outputs import write_metrics, write_ranks
from retrieval.evaluation.result import (
    EvaluationResult,
    evaluate_split,
    few_clips_warning,
    format_table,
    retrieval_metrics,
)
from retrieval.evaluation.score_matrix import similarity_matrix
from retrieval.models.pooling import TextAwareAttentionPooling
from tests.conftest import PATIENCE, SCORING_RECORD

RATE, DIM = 10, 4


def _as_autocast_has_it(values: torch.Tensor) -> torch.Tensor:
    """As a linear layer gives it; whole numbers below 256 are exact in bfloat16."""
    return (
        values.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else values
    )


def _caption(number: int, clip: int) -> str:
    return "long " * ((7 * clip + 3 * number) % 5) + f"caption {number} of clip {clip}"


class FakeSplit:
    """Clips of whole numbers.

    Some are longer than the model's clip_seconds, and one has no captions. The captions have many
    lengths, in no order.
    """

    name = "evaluation"
    holds_frames = False

    def __init__(self, num_clips=13):
        random = np.random.default_rng(0)
        self.clip_ids = [f"evaluation/{clip}" for clip in range(num_clips)]
        self.file_names = [f'clip, "{clip}".wav' for clip in range(num_clips)]
        self.num_samples = np.array([(5 + 3 * clip) % 37 + 1 for clip in range(num_clips)])
        self.captions = [
            [_caption(number, clip) for number in range(clip % 3 + 1)] for clip in range(num_clips)
        ]
        self.captions[-1] = []
        self.audio = [
            random.integers(-4, 5, size=length).astype(np.float32) for length in self.num_samples
        ]
        self.num_reads = [0] * num_clips

    def __len__(self):
        return len(self.clip_ids)

    def read_stored(self, index, start=0, stop=None):
        assert stop is None or stop <= self.num_samples[index]
        self.num_reads[index] += 1
        return self.audio[index][start:stop]


class FakeModel(torch.nn.Module):
    """The interface of DualEncoder.

    It adds small whole numbers, so that the order of the terms changes nothing.
    """

    sample_rate, clip_seconds = RATE, 2.0

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(1.0, DIM + 1))
        self.dropout = torch.nn.Dropout()
        self.num_clips_encoded = self.num_texts_encoded = 0
        self.pairs_scored = []
        self.autocast_seen = {}

    def encode_text(self, captions):
        assert not self.dropout.training and not torch.is_grad_enabled()
        self.autocast_seen["text"] = torch.is_autocast_enabled("cpu")
        self.num_texts_encoded += len(captions)
        codes = [
            [sum(caption.encode()) * factor % 17 - 8 for factor in (1, 3, 5, 7)]
            for caption in captions
        ]
        return _as_autocast_has_it(torch.tensor(codes, dtype=torch.float32))  # (n, D)

    def encode_audio(self, waveform, lengths):
        assert (
            not self.dropout.training
            and lengths.max() <= waveform.shape[1] <= RATE * self.clip_seconds
        )
        self.autocast_seen["audio"] = torch.is_autocast_enabled("cpu")
        self.num_clips_encoded += len(lengths)
        frames = waveform[:, :, None].remainder(self.weight + 1)  # (b, T, D)
        return _as_autocast_has_it(frames), torch.arange(waveform.shape[1]) < lengths[:, None]

    def score(self, text, frames, mask):
        assert text.dtype == frames.dtype == torch.float32
        self.autocast_seen["score"] = torch.is_autocast_enabled("cpu")
        self.pairs_scored.append(len(text) * len(frames))
        similarity = torch.einsum("nd,btd->nbt", text, frames) * mask  # (n, b, T)
        return (similarity.square().sum(-1) + similarity.sum(-1)) / 65536


def by_hand(model, captions, split):
    """One caption and one clip at a time, nothing padded."""
    columns = []
    for clip in range(len(split)):
        waveform = torch.from_numpy(split.audio[clip][:20])[None]
        frames, mask = model.encode_audio(waveform, torch.tensor([waveform.shape[1]]))
        columns.append(
            torch.cat(
                [model.score(model.encode_text([caption]), frames, mask) for caption in captions]
            )
        )
    return torch.cat(columns, dim=1)


def all_captions(split):
    return [caption for captions in split.captions for caption in captions]


@pytest.mark.parametrize(
    ("audio_batch_size", "text_batch_size", "num_workers"),
    [(1, 1, 0), (4, 7, 0), (13, 100, 0), (5, 3, 2)],
)
def test_blocks_do_not_change_a_bit(audio_batch_size, text_batch_size, num_workers):
    split, model = FakeSplit(), FakeModel()
    captions = all_captions(split)
    sizes = {
        "audio_batch_size": audio_batch_size,
        "text_batch_size": text_batch_size,
        "num_workers": num_workers,
    }
    scores = similarity_matrix(model, captions, split, **sizes)
    assert (
        scores.shape == (len(captions), len(split))
        and scores.dtype == torch.float32
        and scores.device.type == "cpu"
    )
    assert model.num_clips_encoded == len(split) and model.num_texts_encoded == len(captions)
    assert num_workers or split.num_reads == [1] * len(split)
    # Once a batch of clips, with all texts: what a pooling computes of the frames alone is not
    # computed again.
    assert len(model.pairs_scored) == -(-len(split) // audio_batch_size) and max(
        model.pairs_scored
    ) <= audio_batch_size * len(captions)
    with torch.no_grad():
        expected = by_hand(FakeModel().eval(), captions, split)
    assert torch.equal(scores, expected)
    assert not torch.equal(scores, expected.flip(1))  # negative control: the clips differ


def test_training_goes_on_as_if_nothing_had_happened():
    split, model = FakeSplit(), FakeModel()
    model.extra = torch.nn.Dropout().eval()  # a frozen part stays in eval mode
    before = torch.get_rng_state()
    similarity_matrix(model, all_captions(split), split)
    assert model.training and model.dropout.training and not model.extra.training
    assert torch.equal(torch.get_rng_state(), before)
    model.encode_audio = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        similarity_matrix(model, all_captions(split), split)
    assert model.training and torch.is_grad_enabled()


def test_scores_in_bf16_are_close_and_the_encoders_stay_in_float32():
    torch.manual_seed(0)
    pooling = TextAwareAttentionPooling(dim=DIM, attention_dim=8).eval()
    split, model, seen = FakeSplit(), FakeModel(), []

    def score(text, frames, mask):
        seen.append((torch.is_autocast_enabled("cpu"), frames.dtype))
        return pooling.score(text, frames, mask)

    model.score = score
    exact = similarity_matrix(model, all_captions(split), split)
    scores = similarity_matrix(model, all_captions(split), split, bf16_scores=True)
    assert seen == [(False, torch.float32)] + [(True, torch.float32)]
    assert scores.dtype == torch.float32
    assert 0 < (scores - exact).abs().max() < 0.02


def test_encoders_run_under_autocast_and_scores_do_not():
    split, model = FakeSplit(), FakeModel()
    similarity_matrix(
        model,
        all_captions(split),
        split,
        autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    )
    assert model.autocast_seen == {"text": True, "audio": True, "score": False}


@pytest.mark.parametrize(("world_size", "audio_batch_size"), [(2, 1), (2, 4), (5, 2)])
def test_several_processes_give_every_one_the_whole_matrix(
    monkeypatch, world_size, audio_batch_size
):
    """Threads stand in for processes.

    Each knows its rank, and blocks of columns are exchanged at a barrier. The shares are uneven.
    """
    whole = similarity_matrix(
        FakeModel(), all_captions(FakeSplit(num_clips=4)), FakeSplit(num_clips=4)
    )
    place, blocks, barrier = (
        threading.local(),
        [None] * world_size,
        threading.Barrier(world_size, timeout=PATIENCE),
    )

    def exchange(block):
        blocks[place.rank] = block
        barrier.wait()
        everyones = torch.cat(blocks, dim=1)
        barrier.wait()
        return everyones

    monkeypatch.setattr(score_matrix, "world_size", lambda: world_size)
    monkeypatch.setattr(score_matrix, "rank", lambda: place.rank)
    monkeypatch.setattr(score_matrix, "gather_columns", exchange)

    def process(rank):
        place.rank = rank
        model, split = FakeModel(), FakeSplit(num_clips=4)
        scores = similarity_matrix(
            model, all_captions(split), split, audio_batch_size=audio_batch_size
        )
        return scores, model.num_clips_encoded

    with ThreadPoolExecutor(world_size) as threads:
        results = list(threads.map(process, range(world_size)))
    assert all(torch.equal(scores, whole) for scores, _ in results)
    assert sum(num_clips for _, num_clips in results) == 4


def test_evaluate_split():
    split = FakeSplit()
    result = evaluate_split(FakeModel(), split, audio_batch_size=4)
    assert result.captions == all_captions(split)
    assert result.relevant == [
        [clip] for clip, captions in enumerate(split.captions) for _ in captions
    ]
    assert result.metrics["text_to_audio"] == retrieval_metrics(result.scores, result.relevant)
    with_captions = result.scores[:, :-1].T
    captions_of = [
        [row for row, clip in enumerate(result.clips) if clip == column]
        for column in range(len(split) - 1)
    ]
    assert result.metrics["audio_to_text"] == retrieval_metrics(with_captions, captions_of)
    assert result.chance["text_to_audio"]["R@1"] == pytest.approx(1 / 13)
    lines = format_table(result).splitlines()
    assert (
        len({len(line) for line in lines}) == 1
        and len(lines) == 5
        and "13 clips, 24 captions" in lines[0]
    )


def test_clips_of_one_id_are_all_right():
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.2, 0.3, 0.8]])
    result = EvaluationResult(
        "evaluation", scores, ["a", "b"], [0, 2], ["x", "x", "y"], ["1.wav", "2.wav", "3.wav"]
    )
    assert result.relevant == [[0, 1], [2]]
    assert result.metrics["text_to_audio"]["R@1"] == 1


def test_no_captions_and_nan_are_told_in_one_line():
    split = FakeSplit()
    split.captions = [[] for _ in split.captions]
    with pytest.raises(UserError, match="13 clips and no captions"):
        evaluate_split(FakeModel(), split)
    model = FakeModel()
    with torch.no_grad():
        model.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="scores on split 'evaluation' are NaN"):
        evaluate_split(model, FakeSplit())


def test_nan_ends_the_scoring_at_the_first_batch():
    split, model = FakeSplit(), FakeModel()
    with torch.no_grad():
        model.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="72 of 72 scores .* are NaN"):
        similarity_matrix(model, all_captions(split), split, audio_batch_size=3)
    assert model.num_clips_encoded == 3 and model.training


def test_columns_come_batch_by_batch_and_nothing_else_is_held():
    split = FakeSplit()
    settings = {
        "audio_batch_size": 5,
        "text_batch_size": 7,
        "num_workers": 0,
        "autocast": score_matrix.nullcontext,
    }
    model = FakeModel()
    columns = score_matrix.score_columns(model, all_captions(split), split, **settings)
    first, scores = next(columns)
    assert (
        first.tolist() == [0, 1, 2, 3, 4]
        and scores.shape == (24, 5)
        and model.num_clips_encoded == 5
    )
    # between two batches the caller's own gradients are as they were
    assert torch.is_grad_enabled() and not model.training
    columns.close()
    assert model.training


class FrameSplit(FakeSplit):
    """Frames (T, F) in place of samples, as a cache of encoded clips has them."""

    holds_frames = True

    def read_stored(self, index, start=0, stop=None):
        samples = super().read_stored(index, start, stop)
        return np.stack([samples] * 3, axis=1)


def test_a_split_of_frames_is_handed_on_as_it_is():
    split, model, seen = FrameSplit(), FakeModel(), []
    encode = model.encode_audio
    model.encode_frames = lambda frames, lengths: (
        seen.append(frames.shape) or encode(frames[:, :, 1], lengths)
    )
    scores = similarity_matrix(model, all_captions(split), split, audio_batch_size=4)
    assert torch.equal(
        scores, similarity_matrix(FakeModel(), all_captions(split), FakeSplit())
    ) and all(len(shape) == 3 for shape in seen)


def test_few_clips():
    assert "R@10 says nothing" in few_clips_warning(7) and "R@10 says nothing" in few_clips_warning(
        10
    )
    assert few_clips_warning(11) is None
    assert evaluate_split(FakeModel(), FakeSplit(num_clips=7)).metrics["text_to_audio"]["R@10"] == 1


def test_the_first_columns_are_those_of_a_full_sort():
    random = np.random.default_rng(0)
    for _ in range(500):
        scores = random.integers(5, size=random.integers(1, 15)).astype(np.float32)  # many ties
        right, number = (
            random.integers(len(scores), size=random.integers(1, 4)),
            random.integers(1, 12),
        )
        order = sorted(
            range(len(scores)), key=lambda column: (-scores[column], column in right, column)
        )
        assert first_columns(scores, right, number) == order[:number]
        assert best_right(scores, right) == max(sorted(right), key=lambda column: scores[column])


def test_ranks_csv_agrees_with_the_metrics(tmp_path):
    split = FakeSplit(num_clips=8)
    split.captions[0][0] = 'a "quoted" caption, with commas\nand a line break'
    result = evaluate_split(FakeModel(), split)
    result.scores[0, :3] = result.scores[0].max() + 1  # clip 0 tied with two others
    result = EvaluationResult(
        result.split,
        result.scores,
        result.captions,
        result.clips,
        result.clip_ids,
        result.file_names,
    )
    write_ranks(tmp_path / "new" / "ranks.csv", result)
    with open(tmp_path / "new" / "ranks.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["query"] for row in rows] == result.captions
    assert list(rows[0]) == ["query", "clip", "rank", "score"] + [
        f"top_{place}" for place in range(1, 11)
    ] + ["ranks"]
    assert rows[0]["rank"] == "3" and rows[0]["top_3"] == rows[0]["clip"] == split.file_names[0]
    for index, row in enumerate(rows):
        assert row[f"top_{row['rank']}"] == row["clip"] and row["top_9"] == row["top_10"] == ""
        assert float(row["score"]) == pytest.approx(
            float(result.scores[index, result.clips[index]]), abs=1e-6
        )
    assert np.mean([1 / int(row["rank"]) for row in rows]) == pytest.approx(
        result.metrics["text_to_audio"]["mAP@10"]
    )


def test_ranks_csv_names_the_right_clip_that_the_rank_belongs_to(tmp_path):
    scores = torch.tensor([[0.1, 0.9, 0.3, 0.2], [0.1, 0.5, 0.5, 0.4]])
    names = ["a.wav", "b.wav", "c.wav", "d.wav"]
    result = EvaluationResult(
        "evaluation", scores, ["one", "two"], [0, 3], names, names, relevant=[[0, 2], [3, 2, 1]]
    )
    write_ranks(tmp_path / "ranks.csv", result)
    with open(tmp_path / "ranks.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["clip"], row["rank"], row["score"]) for row in rows] == [
        ("c.wav", "2", "0.300000"),
        ("b.wav", "1", "0.500000"),
    ]
    assert [row["ranks"] for row in rows] == ["2 4", "1 2 3"] and all(
        row[f"top_{row['rank']}"] == row["clip"] for row in rows
    )


def test_metrics_json_is_whole_or_absent(tmp_path):
    result = evaluate_split(FakeModel(), FakeSplit())
    path = tmp_path / "metrics.json"
    write_metrics(path, result, SCORING_RECORD)
    written = json.loads(path.read_text())
    assert written["text_to_audio"] == result.metrics["text_to_audio"]
    assert SCORING_RECORD.to_json().items() <= written.items() and "relevance" not in written
    assert written["split"] == "evaluation" and written["num_captions"] == len(result.captions)
    environment = written["environment"]
    assert written["_git_commit_hash"] == environment["git_commit"]
    assert written["_evaluate_version"] == environment["libraries"]["evaluate"]
    assert {"_timestamp", "_python_version", "_interpreter_path"} <= set(written)
    with pytest.raises(TypeError):
        write_metrics(path, result, replace(SCORING_RECORD, cache=object()))
    assert json.loads(path.read_text()) == written and list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match="cannot be written"):
        write_metrics(path / "below a file", result, SCORING_RECORD)
