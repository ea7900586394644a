"""PaSST: golden numbers of the reference, patchout, official weights of each variant, bad input.

Letters: W windows, S samples, T frames, E = embed_dim.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from retrieval.base.errors import UserError
from retrieval.models.audio.passt import VARIANTS, Passt, Passt20, PasstL, PasstS, _kept, _last_kept
from tests.golden import formulas

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
SMALL = np.load(GOLDEN / "passt_mn_small.npz")
SMALL_SHAPES = json.loads((GOLDEN / "passt_mn_small.json").read_text())["passt_small"]["state_dict"]
FULL = json.loads((GOLDEN / "passt_effat_shapes.json").read_text())
FULL_OF = {
    Passt: FULL["passt (default branch)"],
    PasstS: FULL["passt_s"],
    Passt20: FULL["passt_20"],
    PasstL: FULL["passt_l"],
}
TINY = {"embed_dim": 8, "depth": 1, "num_heads": 2}
SECOND = 32_000

by_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
both_outputs = pytest.mark.parametrize("sequence", [True, False], ids=["sequence", "vector"])


def small_encoder(**settings) -> Passt:
    encoder = Passt(embed_dim=48, depth=2, num_heads=4, **settings).eval()
    # the golden encoder knows ten classes
    encoder.head[1], encoder.head_dist = nn.Linear(48, 10), nn.Linear(48, 10)
    weights = formulas.params(
        SMALL_SHAPES,
        "Q",
        scale=0.15,
        ln_scale=0.1,
        is_norm=lambda key: "norm" in key or key.startswith("head.0."),
    )
    encoder.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
    return encoder


def two_windows() -> torch.Tensor:
    window = torch.from_numpy(formulas.waveform(SECOND))
    return torch.stack([window, window.flip(0)])


def some_audio(seconds: float, num_windows: int = 1) -> torch.Tensor:
    return torch.from_numpy(formulas.noise("passt", num_windows * int(seconds * SECOND), 0.1)).view(
        num_windows, -1
    )


def largest_difference(found: torch.Tensor, golden: np.ndarray) -> float:
    assert found.shape == golden.shape
    return float(np.abs(found.detach().numpy() - golden).max())


def sequence_difference(encoder: Passt) -> float:
    """Compare two windows with the golden grid: 8 rows by T columns, of the second every fifth."""
    first, second = encoder(two_windows())
    golden_first, golden_second = (
        SMALL["passt.seq_item0"].mean(axis=0),
        SMALL["passt.seq_item1_every5"].mean(axis=0),
    )
    return max(
        largest_difference(first, golden_first), largest_difference(second[::5], golden_second)
    )


# --- against the reference ---


def test_sequence_equals_the_reference():
    assert sequence_difference(small_encoder()) < 1e-4


def test_vector_equals_the_reference():
    encoder = small_encoder(sequence=False)
    features = encoder(two_windows())
    assert largest_difference(features, SMALL["passt.features"][:, None]) < 1e-4
    assert largest_difference(encoder.head(features[:, 0]), SMALL["passt.logits"]) < 1e-4


def flip(table: nn.Parameter, dim: int) -> None:
    table.data = table.data.flip(dim)


@pytest.mark.parametrize(("table", "dim"), [("freq_new_pos_embed", 2), ("time_new_pos_embed", 3)])
def test_golden_numbers_notice_reversed_positions(table: str, dim: int):
    encoder = small_encoder()
    flip(getattr(encoder, table), dim)
    assert sequence_difference(encoder) > 1e-2


def test_golden_numbers_notice_that_the_two_tokens_are_swapped():
    encoder = small_encoder(sequence=False)
    flip(encoder.new_pos_embed, 1)
    assert largest_difference(encoder(two_windows()), SMALL["passt.features"][:, None]) > 1e-2


@by_variant
def test_full_size_is_that_of_the_official_model(variant: type[Passt]):
    golden = FULL_OF[variant]
    with torch.device("meta"):
        encoder = variant()
    state = encoder.state_dict()
    assert sum(parameter.numel() for parameter in encoder.parameters()) == golden["n_params"]
    assert len(state) == golden["keys"]
    tables = {key: golden[key] for key in ("time_new_pos_embed", "freq_new_pos_embed")}
    expected = {
        key: shape for key, shape in FULL["passt_default_state_dict"].items() if key in state
    } | tables
    assert {key: list(value.shape) for key, value in state.items()} == expected
    assert encoder.num_frames(golden["input_tdim"] * 320) == golden["outputs"][2][2]
    assert variant.name in golden["arch"] or variant is Passt


def test_parameter_counts_are_the_published_ones():
    assert [FULL_OF[variant]["n_params"] for variant in VARIANTS] == [
        86_122_270,
        86_153_758,
        86_231_326,
        50_714_398,
    ]


# --- windows ---


@both_outputs
@pytest.mark.parametrize(
    ("variant", "num_samples", "num_frames"),
    [
        (Passt, 320_000, 62),
        (Passt, 160_000, 31),
        (Passt, 4_801, 1),
        (Passt, 322_240, 62),
        (PasstS, 320_000, 99),
        (PasstL, 64_000, 19),
        (Passt20, 640_000, 199),
        (Passt20, 644_800, 200),
    ],
)
def test_num_frames_is_what_forward_gives(
    variant: type[Passt], num_samples: int, num_frames: int, sequence: bool
):
    encoder = variant(**TINY, sequence=sequence, patchout_time=0)
    num_frames = num_frames if sequence else 1
    for training in (True, False):
        assert encoder.train(training)(torch.zeros(2, num_samples)).shape == (2, num_frames, 8)
    assert encoder.num_frames(num_samples) == num_frames


@pytest.mark.parametrize(
    ("variant", "num_samples"),
    [(Passt, 0), (Passt, 4_800), (Passt, 322_241), (PasstS, 321_601), (Passt20, 644_801)],
)
def test_windows_beyond_the_position_table_or_too_short_are_refused(
    variant: type[Passt], num_samples: int
):
    longest = 20 if variant is Passt20 else 10
    with pytest.raises(
        UserError,
        match=(
            f"a window of {num_samples} samples.*set audio_encoder.window_seconds .* to 0.16 to"
            f" {longest}$"
        ),
    ):
        variant(**TINY, patchout_time=0)(torch.zeros(1, num_samples))


def test_patchout_that_leaves_nothing_is_refused():
    with pytest.raises(
        UserError,
        match=r"patchout_time=15 leaves nothing of .*12 columns of patches; set it below 12",
    ):
        Passt(**TINY).num_frames(2 * SECOND)
    for variant, rows in ((Passt, 8), (PasstS, 12)):
        variant(**TINY, patchout_frequency=rows - 1)
        with pytest.raises(
            UserError, match=f"patchout_frequency={rows} leaves nothing of {rows} rows"
        ):
            variant(**TINY, patchout_frequency=rows)


def test_heads_must_divide_the_embedding():
    with pytest.raises(UserError, match="embed_dim 50 is not a multiple of num_heads 4"):
        Passt(embed_dim=50, depth=1, num_heads=4)


def test_short_windows_take_the_first_positions_and_in_training_any_that_follow_each_other():
    encoder = PasstS(
        **{**TINY, "depth": 0}, patchout_time=0, patchout_frequency=0, mel_jitter=False
    )
    nn.init.normal_(encoder.time_new_pos_embed)
    audio = some_audio(2)
    with torch.no_grad():
        expected = encoder.eval()(audio)
        shifted = []  # by the position that the first frame has
        for start in range(99 - 19 + 1):
            table = encoder.time_new_pos_embed.data.clone()
            encoder.time_new_pos_embed.data = table.roll(-start, dims=3)
            shifted.append(encoder(audio))
            encoder.time_new_pos_embed.data = table
        encoder.train()
        torch.manual_seed(1)
        drawn = [encoder(audio) for _ in range(40)]
        starts = {
            next(start for start, frames in enumerate(shifted) if torch.equal(found, frames))
            for found in drawn
        }
    assert torch.equal(expected, shifted[0])
    assert len(starts) > 10


# --- training ---


def tokens_seen(encoder: Passt, audio: torch.Tensor) -> int:
    lengths = []
    handle = encoder.blocks[0].register_forward_hook(
        lambda module, inputs, output: lengths.append(inputs[0].shape[1])
    )
    encoder(audio)
    handle.remove()
    return lengths[0]


@both_outputs
def test_patchout_leaves_out_what_the_reference_does_and_only_in_training(sequence: bool):
    encoder, audio = Passt(**TINY, sequence=sequence), some_audio(10, 2)
    _, rows, columns, _ = SMALL["passt.train_seq_shape"]
    assert tokens_seen(encoder.train(), audio) == 2 + rows * columns == 2 + 6 * 47
    assert tokens_seen(encoder.eval(), audio) == 2 + 8 * 62
    without = Passt(**TINY, sequence=sequence, patchout_time=0, patchout_frequency=0).train()
    assert tokens_seen(without, audio) == 2 + 8 * 62


def test_a_column_left_out_takes_the_frame_of_the_last_kept_one():
    kept = torch.tensor([2, 3, 5])
    assert _last_kept(kept, 7).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert _last_kept(torch.arange(4), 4).tolist() == [0, 1, 2, 3]


def test_frames_stay_at_their_time_in_training():
    # no block: a column sees itself alone
    encoder = Passt(embed_dim=8, depth=0, num_heads=2, patchout_frequency=0, mel_jitter=False)
    audio = some_audio(10)
    with torch.no_grad():
        frames, all_frames = encoder.train()(audio)[0], encoder.eval()(audio)[0]
    source = torch.cdist(frames, all_frames).argmin(dim=1)  # column that frame t comes from
    assert frames.shape == (62, 8) and (frames - all_frames[source]).abs().max() < 1e-6
    assert len(source.unique()) == 47 and (source.diff() >= 0).all()
    kept = source.unique()
    own = torch.arange(62)
    assert torch.equal(source[kept], kept)
    assert (source <= torch.maximum(own, kept[0])).all()


@both_outputs
def test_training_is_random_from_the_global_generator_and_evaluation_is_not(sequence: bool):
    encoder, audio = Passt(**TINY, sequence=sequence), some_audio(10)
    torch.manual_seed(5)
    first, second = encoder.train()(audio), encoder(audio)
    torch.manual_seed(5)
    assert torch.equal(encoder(audio), first) and not torch.equal(first, second)
    encoder.eval()
    state = torch.get_rng_state()
    assert torch.equal(encoder(audio), encoder(audio))
    assert torch.equal(torch.get_rng_state(), state)


@both_outputs
def test_every_trainable_parameter_gets_a_gradient(sequence: bool):
    encoder = Passt(**{**TINY, "depth": 2}, sequence=sequence).train()
    encoder(some_audio(10, 2)).square().sum().backward()
    without = [
        name
        for name, parameter in encoder.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert without == [
        name for name, parameter in encoder.named_parameters() if not parameter.requires_grad
    ]
    assert without == [
        "head.0.weight",
        "head.0.bias",
        "head.1.weight",
        "head.1.bias",
        "head_dist.weight",
        "head_dist.bias",
    ]


def test_mel_jitter_can_be_turned_off():
    audio = some_audio(10)
    steady, jittered = Passt(**TINY, mel_jitter=False).train(), Passt(**TINY).train()
    assert torch.equal(steady.log_mel(audio), steady.eval().log_mel(audio))
    assert not torch.equal(jittered.log_mel(audio), jittered.eval().log_mel(audio))


def test_augment_sees_the_log_mel():
    encoder, audio = small_encoder(), some_audio(5, 2)
    assert torch.equal(encoder(audio, augment=lambda log_mel: log_mel), encoder(audio))
    assert not torch.allclose(encoder(audio, augment=torch.zeros_like), encoder(audio))


def test_what_training_draws_is_on_the_device_of_the_weights():
    encoder = Passt(**TINY).to("meta").train()  # stands for a GPU
    assert encoder.mel._jittered_bank().device.type == "meta"
    kept = _kept(62, 15, torch.zeros(1, device="meta"))
    assert kept.device.type == _last_kept(kept, 62).device.type == "meta"
    assert encoder.encode_mel(torch.zeros(2, 128, 1000, device="meta")).shape == (2, 62, 8)


# --- numerics ---


def test_a_window_does_not_see_its_neighbours():
    encoder, batch = small_encoder(), some_audio(5, 2)
    torch.testing.assert_close(encoder(batch)[1], encoder(batch[1:])[0], rtol=0, atol=1e-5)


@both_outputs
def test_bf16_autocast_stays_near_float32(sequence: bool):
    encoder, audio = (
        Passt(embed_dim=48, depth=2, num_heads=4, sequence=sequence).eval(),
        some_audio(10),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = encoder(audio)
        encoder.train()(audio).sum().backward()
    assert (found - encoder.eval()(audio)).abs().max() < 0.1  # features have unit variance


def test_silence_gives_finite_features():
    assert small_encoder()(torch.zeros(1, 10 * SECOND)).isfinite().all()


# --- official weights ---


@by_variant
@pytest.mark.parametrize(
    "layout",
    [
        lambda state: state,
        lambda state: {"model": state},
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {
            "state_dict": (
                {f"net.{key}": value for key, value in state.items()}
                | {"net_swa.norm.weight": torch.zeros(8)}
            )
        },
    ],
    ids="plain model state_dict net".split(),
)
def test_official_layouts_load(tmp_path: Path, variant: type[Passt], layout):
    state = variant(**TINY).state_dict()
    torch.save(layout(state), tmp_path / "passt.pt")
    encoder = variant(**TINY)
    encoder.load_official(tmp_path / "passt.pt")
    assert all(torch.equal(value, state[key]) for key, value in encoder.state_dict().items())


def without(state: dict, part: str) -> dict:
    return {key: value for key, value in state.items() if part not in key}


def save(state: object, path: Path, keep: int | None = None) -> None:
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:keep])


def passt_l_sized() -> dict:
    return PasstL(embed_dim=8, num_heads=2).state_dict()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p, state: None, "do not exist; set audio_encoder.checkpoint"),
        (lambda p, state: p.mkdir(), "is a folder, expected a file"),
        (lambda p, state: p.write_text("<html>404</html>"), "truncated or no PyTorch checkpoint"),
        (lambda p, state: save(state, p, keep=5000), "truncated or no PyTorch checkpoint"),
        (lambda p, state: save([1, 2], p), 'no "state_dict", no "model" and no tensors by name'),
        (
            lambda p, state: save({"epoch": 3}, p),
            'no "state_dict", no "model" and no tensors by name',
        ),
        (
            lambda p, state: save({"fc.weight": torch.zeros(3)}, p),
            r"lacks cls_token, .* of passt_s with embed_dim 8, depth 1",
        ),
        (
            lambda p, state: save(without(state, "head_dist"), p),
            "lacks head_dist.weight, head_dist.bias of passt_s",
        ),
        (
            lambda p, state: save(state | {"cls": torch.zeros(3)}, p),
            "has cls, which passt_s .* has not",
        ),
        (
            lambda p, state: save(PasstS(8, 2, 2).state_dict(), p),
            "has blocks.1.norm1.weight, .* set audio_encoder.embed_dim and audio_encoder.depth",
        ),
        (
            lambda p, state: save(PasstS(16, 1, 2).state_dict(), p),
            r"cls_token \[1, 1, 16\] for \[1, 1, 8\], .*set audio_encoder.embed_dim",
        ),
        (
            lambda p, state: save(state | {"time_new_pos_embed": torch.zeros(99)}, p),
            r"time_new_pos_embed \[99\] for \[1, 8, 1, 99\]",
        ),
        (
            lambda p, state: save(Passt(**TINY).state_dict(), p),
            "table of 62 frames .*passt_s has 99 and 1: set audio_encoder.name=passt$",
        ),
        (
            lambda p, state: save(Passt20(**TINY).state_dict(), p),
            "table of 200 frames .*: set audio_encoder.name=passt_20$",
        ),
        (
            lambda p, state: save(passt_l_sized(), p),
            "99 frames and depth 7; passt_s has 99 and 1: set audio_encoder.name=passt_l$",
        ),
        (
            lambda p, state: save(state | {"time_new_pos_embed": torch.zeros(1, 8, 1, 82)}, p),
            (
                "table of 82 frames .*, and no variant here has such a table: use official weights"
                " of passt, passt_s, passt_20, passt_l$"
            ),
        ),
    ],
    ids=(
        "absent folder html truncated list no_tensor another_network missing_key extra_key deeper"
        " other_size flat_table stride_16 seconds_20 passt_l unknown_table"
    ).split(),
)
def test_weights_that_do_not_fit_end_in_one_line_and_change_nothing(
    tmp_path: Path, make, message: str
):
    path, encoder = tmp_path / "weights.pt", PasstS(**TINY)
    make(path, PasstS(**TINY).state_dict())
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(UserError, match=message) as error:
        encoder.load_official(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
