"""Two-stage search against slow loops over texts and clips, and against the full score matrix."""

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from retrieval.base.errors import UserError
from retrieval.config import load_config
from retrieval.data import open_cache
from retrieval.evaluation.score_matrix import captions_of, similarity_matrix
from retrieval.models.build import build_model
from retrieval.models.pooling import (
    AveragePooling,
    MeanPooling,
    Pooling,
    TextAwareAttentionPooling,
)
from retrieval.search.encoder import ExcerptEncoder
from retrieval.search.local.clips import IndexedClips
from retrieval.search.sound import Excerpt
from retrieval.search.two_stage import TwoStage

DIM, NUM_FRAMES = 16, (1, 7, 3, 9, 5, 9, 2)
NUM_CLIPS = len(NUM_FRAMES)


def make_pooling() -> TextAwareAttentionPooling:
    """Far from its start, with biases, and with dropout that must not show."""
    torch.manual_seed(3)
    pooling = TextAwareAttentionPooling(DIM, 24, attention_dropout=0.5, output_dropout=0.5).eval()
    with torch.no_grad():
        for parameter in pooling.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return pooling


def make_clips() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(num_frames, DIM, generator=generator) for num_frames in NUM_FRAMES]


def make_text(num_texts: int) -> Tensor:
    return torch.randn(num_texts, DIM, generator=torch.Generator().manual_seed(2))


def make_index(
    pooling: TextAwareAttentionPooling, clips: list[Tensor], **changes: Any
) -> IndexedClips:
    """Index clips; changes: of the arguments of IndexedClips."""
    with torch.no_grad():
        vectors = functional.normalize(pooling.clip_vectors(*padded(clips)), dim=1).numpy()
        frames = pooling.norm(torch.cat(clips))
    num_frames = np.array([len(clip) for clip in clips])
    first_frames = num_frames.cumsum() - num_frames
    arrays = {"vectors": vectors, "frames": frames, "first_frames": first_frames}
    return IndexedClips(**(arrays | {"num_frames": num_frames} | changes))


def indexed(vectors: Tensor, frames: Tensor | None = None, lengths: list[int] = ()) -> IndexedClips:
    num_frames = np.array(lengths)
    vectors = functional.normalize(vectors, dim=1).numpy()
    return IndexedClips(vectors, frames, num_frames.cumsum() - num_frames, num_frames)


def padded(clips: list[Tensor]) -> tuple[Tensor, Tensor]:
    mask = pad_sequence(
        [torch.ones(len(clip), dtype=torch.bool) for clip in clips], batch_first=True
    )
    return pad_sequence(clips, batch_first=True, padding_value=7.0), mask


def slow_pair(
    pooling: TextAwareAttentionPooling, text: Tensor, clip: Tensor, even: bool = False
) -> tuple[float, Tensor]:
    """Score and pooled audio by the paper's formula; even: all frames have the same weight."""
    query, keys, values = (
        pooling.query(pooling.norm(text)),
        pooling.key(pooling.norm(clip)),
        pooling.value(pooling.norm(clip)),
    )
    weights = (
        torch.full((len(clip),), 1 / len(clip))
        if even
        else (keys @ query / math.sqrt(len(query))).softmax(dim=0)
    )
    pooled = pooling.norm(pooling.output(weights @ values))
    return functional.cosine_similarity(text, pooled, dim=0).item(), pooled


def slow_two_stage(
    pooling: TextAwareAttentionPooling, text: Tensor, clips: list[Tensor], num_candidates: int
) -> list[list[tuple[int, float]]]:
    """Clips with their scores for each text, best first; of equal ones the first."""
    found = []
    for query in text:
        first = [slow_pair(pooling, query, clip, even=True)[0] for clip in clips]
        candidates = sorted(range(len(clips)), key=lambda clip: (-first[clip], clip))[
            :num_candidates
        ]
        scores = {clip: slow_pair(pooling, query, clips[clip])[0] for clip in candidates}
        found.append(sorted(scores.items(), key=lambda pair: (-pair[1], pair[0])))
    return found


def assert_found(result: tuple[Tensor, Tensor], expected: list[list[tuple[int, float]]]) -> None:
    clips, scores = result
    assert clips.dtype == torch.int64 and scores.dtype == torch.float32
    assert clips.tolist() == [[clip for clip, _ in row] for row in expected]
    torch.testing.assert_close(
        scores, torch.tensor([[score for _, score in row] for row in expected]), atol=1e-6, rtol=0
    )


# --- against loops and the full matrix ---


# fewer and more texts a clip than it has frames: both orders of computing
@pytest.mark.parametrize("num_texts", [1, 4, 30])
@pytest.mark.parametrize("num_candidates", [1, 3, NUM_CLIPS])
def test_as_a_loop_over_texts_and_clips(num_texts: int, num_candidates: int):
    pooling, clips, text = make_pooling(), make_clips(), make_text(num_texts)
    with torch.no_grad():
        expected = slow_two_stage(pooling, text, clips, num_candidates)
    assert_found(
        TwoStage(pooling, make_index(pooling, clips)).scores(text, num_candidates), expected
    )


def test_all_clips_as_candidates_are_the_full_matrix_in_its_order():
    pooling, clips, text = make_pooling(), make_clips(), make_text(30)
    with torch.no_grad():
        full = pooling.score(text, *padded(clips))
    found, scores = TwoStage(pooling, make_index(pooling, clips)).scores(text, NUM_CLIPS)
    assert torch.equal(found, full.argsort(dim=1, descending=True))
    torch.testing.assert_close(scores, full.gather(1, found), atol=1e-6, rtol=0)


@pytest.mark.parametrize("num_candidates", [1, 2, 5])
def test_scores_of_candidates_are_entries_of_the_full_matrix(num_candidates: int):
    pooling, clips, text = make_pooling(), make_clips(), make_text(30)
    with torch.no_grad():
        full = pooling.score(text, *padded(clips))
    found, scores = TwoStage(pooling, make_index(pooling, clips)).scores(text, num_candidates)
    torch.testing.assert_close(scores, full.gather(1, found), atol=1e-6, rtol=0)
    assert bool((scores.diff(dim=1) <= 0).all())


def test_size_of_blocks_changes_nothing():
    pooling, text = make_pooling(), make_text(30)
    search = TwoStage(pooling, make_index(pooling, make_clips()))
    expected = search.scores(text, 3)
    pooling.block_elements = 1
    found = search.scores(text, 3)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], atol=1e-6, rtol=0)


def test_dropout_is_off_also_in_training_mode():
    pooling, text = make_pooling(), make_text(4)
    index = make_index(pooling, make_clips())
    expected = TwoStage(pooling, index).scores(text, 3)
    found = TwoStage(pooling.train(), index).scores(text, 3)
    assert all(torch.equal(*pair) for pair in zip(found, expected))


def test_first_stage_is_tap_without_a_preference():
    """With a query of zeros, and so equal weights, TAP's own output."""
    pooling, clips = make_pooling(), make_clips()
    torch.nn.init.zeros_(pooling.query.weight)
    torch.nn.init.zeros_(pooling.query.bias)
    frames, mask = padded(clips)
    with torch.no_grad():
        torch.testing.assert_close(
            pooling.clip_vectors(frames, mask),
            pooling(make_text(1), frames, mask)[0],
            atol=1e-5,
            rtol=0,
        )


def test_negative_control_a_candidate_left_out_is_missing():
    pooling, clips, text = make_pooling(), make_clips(), make_text(1)
    index = make_index(pooling, clips)
    best = TwoStage(pooling, index).scores(text, NUM_CLIPS)[0][0, 0]
    vectors = index.vectors(range(NUM_CLIPS))
    vectors[best] = -functional.normalize(text[0], dim=0)
    other = make_index(pooling, clips, vectors=vectors)
    found, scores = TwoStage(pooling, other).scores(text, NUM_CLIPS - 1)
    assert best not in found
    with torch.no_grad():
        assert scores[0, 0] < pooling.score(text, *padded(clips)).max()


def test_negative_control_frames_of_a_neighbour_change_the_scores():
    pooling, text = make_pooling(), make_text(4)
    first_frames = np.cumsum(NUM_FRAMES) - NUM_FRAMES
    first_frames[2] += 1
    expected, found = (
        TwoStage(pooling, other).scores(text, NUM_CLIPS)[1]
        for other in (
            make_index(pooling, make_clips()),
            make_index(pooling, make_clips(), first_frames=first_frames),
        )
    )
    assert (expected - found).abs().max() > 1e-3


# --- ties ---


def test_duplicates_of_a_clip_stand_together_in_order():
    pooling, clips, text = make_pooling(), make_clips(), make_text(4)
    found, scores = TwoStage(pooling, make_index(pooling, [*clips, clips[3], clips[3]])).scores(
        text, NUM_CLIPS + 2
    )
    for clips_found, row in zip(found.tolist(), scores):
        place = clips_found.index(3)
        assert clips_found[place : place + 3] == [3, NUM_CLIPS, NUM_CLIPS + 1]
        assert row[place] == row[place + 1] == row[place + 2]


@pytest.mark.parametrize("num_candidates", [1, 2, 3])
def test_a_tie_for_the_last_place_goes_to_the_first_clips(num_candidates: int):
    clip, pooling = make_clips()[1], make_pooling()
    found, scores = TwoStage(pooling, make_index(pooling, [clip] * 3)).scores(
        make_text(2), num_candidates
    )
    assert found.tolist() == [list(range(num_candidates))] * 2
    vectors = torch.ones(3, DIM)
    assert (
        TwoStage(MeanPooling(), indexed(vectors)).scores(make_text(2), num_candidates)[0].tolist()
        == found.tolist()
    )


# --- mean pooling ---


@pytest.mark.parametrize("num_candidates", [1, 4, 50])
def test_mean_pooling_is_the_best_of_its_own_matrix(num_candidates: int):
    vectors, text = torch.randn(50, DIM, generator=torch.Generator().manual_seed(5)), make_text(6)
    expected = (
        MeanPooling()
        .score(text, vectors[:, None], torch.ones(50, 1, dtype=torch.bool))
        .sort(dim=1, descending=True)
    )
    found, scores = TwoStage(MeanPooling(), indexed(vectors)).scores(text, num_candidates)
    assert torch.equal(found, expected.indices[:, :num_candidates])
    torch.testing.assert_close(scores, expected.values[:, :num_candidates], atol=1e-6, rtol=0)


# --- encoded splits ---


@pytest.mark.parametrize("pooling", ["tap", "mean", "transformer"])
def test_an_encoded_split_has_the_scores_of_the_evaluation(tiny, pooling: str):
    """Clips of different lengths, some of them longer than clip_seconds."""
    model = build_model(load_config(tiny / "tiny.yaml", [f"pooling.name={pooling}"])).train()
    split = open_cache(tiny / "cache").split("development")
    assert split.num_samples.max() > model.windows.clip_samples > split.num_samples.min()
    captions, _ = captions_of(split)
    expected = similarity_matrix(model, captions, split)
    clips = [split.read(clip)[: model.windows.clip_samples] for clip in range(len(split))]
    with torch.no_grad():
        text = model.eval().encode_text(captions)
        frames, lengths, vectors = [], [], []
        for clip in map(torch.from_numpy, clips):
            encoded, mask = model.encode_audio(clip[None], torch.tensor([len(clip)]))
            vectors.append(model.pooling.clip_vectors(encoded, mask))
            frames.append(encoded[mask])
            lengths.append(len(frames[-1]))
        vectors = torch.cat(vectors)
        frames = model.pooling.norm(torch.cat(frames)) if pooling == "tap" else None
    found, scores = TwoStage(model.pooling, indexed(vectors, frames, lengths)).scores(
        text, len(split)
    )
    torch.testing.assert_close(scores, expected.gather(1, found), atol=1e-6, rtol=0)
    # As an index is built: in batches, with frames in float16.
    encoder = ExcerptEncoder(model.train(), nullcontext, 5, with_frames=pooling == "tap")
    vectors, halves = encoder.encode([Excerpt(0, clip) for clip in clips])
    assert model.training and len(vectors) == len(split)
    if pooling == "tap":
        frames = torch.from_numpy(np.concatenate(halves)).half()
        assert [len(half) for half in halves] == lengths
    half = indexed(torch.from_numpy(vectors), frames, lengths)
    found, scores = TwoStage(model.eval().pooling, half).scores(text, len(split))
    tolerance = 2e-3 if pooling == "tap" else 1e-6
    torch.testing.assert_close(scores, expected.gather(1, found), atol=tolerance, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_tap_hears_is_what_the_pooling_says_of_the_stored_frames(dtype: torch.dtype):
    pooling, text = make_pooling(), make_text(3)
    stored = pooling.norm(torch.cat(make_clips())).to(dtype)
    search = TwoStage(pooling, make_index(pooling, make_clips(), frames=stored))
    for own in text:  # the second and third with the sizes that were kept of the first
        for clip, heard in enumerate(search.heard(own, range(NUM_CLIPS))):
            keys = search.clips.frames(clip).float()  # (T, D), after the norm
            query = pooling.query(pooling.norm(own))
            weights = (pooling.key(keys) @ query / math.sqrt(len(query))).softmax(dim=0)
            outputs = pooling.norm(pooling.output(pooling.value(keys)))
            expected = weights * functional.cosine_similarity(own, outputs, dim=1)
            np.testing.assert_allclose(heard.attention, weights, atol=1e-5)
            np.testing.assert_allclose(heard.contributions, expected, atol=1e-5)
            if dtype == torch.float32:
                frames = make_clips()[clip][None]
                mask = torch.ones(frames.shape[:2], dtype=torch.bool)
                same = pooling.contributions(own[None], frames, mask)[0, 0]
                np.testing.assert_allclose(heard.contributions, same, atol=1e-5)
                # negative control: the weights are not the contributions
                assert len(keys) == 1 or np.abs(heard.attention - heard.contributions).max() > 1e-2


@torch.no_grad()
def test_sizes_that_are_kept_are_few_and_change_nothing(monkeypatch):
    pooling, (text, other) = make_pooling(), make_text(2)
    search = TwoStage(pooling, make_index(pooling, make_clips()))
    expected = [own.contributions for own in search.heard(text, range(NUM_CLIPS))]
    assert len(search._sizes) == NUM_CLIPS
    monkeypatch.setattr("retrieval.search.two_stage.MOST_SIZES_KEPT", 5)
    search.heard(other, [0])
    few = TwoStage(pooling, search.clips)
    for own, same in zip(few.heard(text, range(NUM_CLIPS)), expected, strict=True):
        np.testing.assert_array_equal(own.contributions, same)
    assert len(few._sizes) < 4


@torch.no_grad()
@pytest.mark.parametrize("pooling", [MeanPooling(), AveragePooling(), AveragePooling("dot")])
def test_what_other_poolings_hear(pooling: Pooling):
    clips, text = make_clips(), make_text(3)
    vectors = torch.stack([clip.mean(dim=0) for clip in clips])
    index = indexed(vectors, torch.cat(clips).half(), list(NUM_FRAMES))
    search = TwoStage(pooling, index)
    for own in text:
        for clip, heard in enumerate(search.heard(own, range(NUM_CLIPS))):
            stored = index.frames(clip).float()
            expected = functional.cosine_similarity(own, stored, dim=1)
            expected = stored @ own if pooling.similarity == "dot" else expected
            np.testing.assert_allclose(heard.contributions, expected, atol=1e-5)
            assert heard.attention is None
    without = TwoStage(pooling, IndexedClips(index.vectors(range(NUM_CLIPS))))
    assert without.heard(text[0], [0, 3]) == [None, None]
    # the frames change no score
    for one, other in zip(search.scores(text, 4), without.scores(text, 4), strict=True):
        assert torch.equal(one, other)


# --- mistakes ---


def test_more_candidates_than_clips_are_all_clips():
    pooling = make_pooling()
    search, text = TwoStage(pooling, make_index(pooling, make_clips())), make_text(2)
    every, more = search.scores(text, NUM_CLIPS), search.scores(text, NUM_CLIPS + 1)
    assert all(torch.equal(*pair) for pair in zip(every, more, strict=True))


@pytest.mark.parametrize("num_candidates", [1, 3, NUM_CLIPS])
def test_clips_that_are_not_allowed_are_not_found(num_candidates: int):
    pooling, clips, text = make_pooling(), make_clips(), make_text(4)
    allowed = np.array([True, False, True, True, False, True, False])
    found, scores = TwoStage(pooling, make_index(pooling, clips)).scores(
        text, num_candidates, allowed
    )
    own = allowed.nonzero()[0]
    with torch.no_grad():
        expected = slow_two_stage(pooling, text, [clips[clip] for clip in own], num_candidates)
    assert_found((found, scores), [[(own[clip], score) for clip, score in row] for row in expected])


def test_scores_that_are_not_numbers():
    pooling, text = make_pooling(), make_text(2)
    vectors = make_index(pooling, make_clips()).vectors(range(NUM_CLIPS))
    frames = pooling.norm(torch.cat(make_clips())).detach()
    for name, broken in (("vectors", vectors), ("frames", frames)):  # of either stage
        broken[0] = np.nan
        index = make_index(pooling, make_clips(), **{name: broken})
        with pytest.raises(UserError, match="2 of 14 scores are NaN"):
            TwoStage(pooling, index).scores(text, NUM_CLIPS)


def test_an_index_of_another_pooling():
    pooling = make_pooling()
    vectors = make_index(pooling, make_clips()).vectors(range(NUM_CLIPS))
    with pytest.raises(ValueError, match="encode the clips with this model"):
        TwoStage(pooling, IndexedClips(vectors))
