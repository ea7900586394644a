"""What each frame adds to a score, against loops over texts, clips and frames."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from retrieval.models.pooling import AveragePooling, MeanPooling, TextAwareAttentionPooling

N, B, T, D = 3, 2, 7, 16


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(T) < torch.tensor([[T], [4]])
    return (
        torch.randn(N, D, generator=generator),
        torch.randn(B, T, D, generator=generator),
        mask,
    )


def tap() -> TextAwareAttentionPooling:
    torch.manual_seed(1)
    return TextAwareAttentionPooling(D, 24).eval()


@torch.no_grad()
def test_tap_s_contributions_by_the_unfolded_formula(inputs):
    text, frames, mask = inputs
    pooling = tap()
    found = pooling.contributions(text, frames, mask)
    weights = pooling.attention(text, frames, mask)
    for n in range(N):
        for b in range(B):
            for t in range(T):
                if not mask[b, t]:
                    assert found[n, b, t] == 0
                    continue
                frame = frames[b, t][None]
                own = pooling.norm(pooling.output(pooling.value(pooling.norm(frame))))
                expected = weights[n, b, t] * cosine_similarity(text[n][None], own)
                assert found[n, b, t].item() == pytest.approx(expected.item(), abs=1e-6)


@torch.no_grad()
def test_a_clip_of_one_frame_contributes_its_score(inputs):
    text, frames, _ = inputs
    mask = torch.ones(B, 1, dtype=torch.bool)
    for pooling in (tap(), MeanPooling(), AveragePooling("dot"), AveragePooling()):
        found = pooling.contributions(text, frames[:, :1], mask)[..., 0]
        assert torch.allclose(found, pooling.score(text, frames[:, :1], mask), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_average_pooling_scores_are_the_mean_contribution(inputs, similarity):
    text, frames, mask = inputs
    pooling = AveragePooling(similarity)
    found = pooling.contributions(text, frames, mask)
    if similarity == "dot":
        pooled = pooling(frames, mask).unsqueeze(1)
        mean = found.sum(dim=-1) / mask.sum(dim=1)
        assert torch.allclose(mean, pooling.score(text, pooled, mask[:, :1]), atol=1e-5)
    else:
        expected = cosine_similarity(text[:, None, None], frames[None], dim=-1) * mask
        assert torch.allclose(found, expected, atol=1e-6)


@torch.no_grad()
def test_texts_of_their_own_for_each_clip_are_the_diagonal(inputs):
    text, frames, mask = inputs
    for pooling in (tap(), MeanPooling(), AveragePooling("dot")):
        keys = pooling.keys(frames)
        every, own = (pooling.evidence(texts, keys, mask) for texts in (text[:B], text[:B, None]))
        assert torch.allclose(own[0], torch.stack([every[b, b] for b in range(B)]), atol=1e-5)


@torch.no_grad()
def test_padding_changes_nothing(inputs):
    text, frames, mask = inputs
    for pooling in (tap(), MeanPooling(), AveragePooling("dot")):
        keys = pooling.keys(frames)
        whole = pooling.evidence(text, keys, mask)
        assert whole.shape == (N, B, T, pooling.num_evidence)
        alone = pooling.evidence(text, keys[1:, :4], mask[1:, :4])
        assert torch.allclose(whole[:, 1:, :4], alone, atol=1e-5)
        assert not whole[:, 1, 4:].any()
