"""Start weights of small encoders, which training loads like official ones."""

import math
import shutil

import pytest
import torch
from torch.nn import functional

from retrieval.base.errors import UserError
from retrieval.config import load_config
from retrieval.data import open_cache
from retrieval.models.audio.atst import AtstFrame
from retrieval.models.build import build_model
from retrieval.models.text import TextEncoder, load_tokenizer, text_architecture
from retrieval.training import pretraining
from tests.conftest import digests, write_cache, write_rows, write_text_encoder

SIZES = {"embed_dim": 32, "depth": 1, "num_heads": 2}
ARGUMENTS = {"--embed-dim": "32", "--depth": "1", "--num-heads": "2", "--steps": "40"}


def pretrain(tiny, output, *arguments):
    """The command with `arguments`, and with these options unless `arguments` gives them."""
    options = ARGUMENTS | {
        "--cache": f"{tiny}/cache",
        "--text-encoder": f"{tiny}/text_encoder",
        "--output": str(output),
    }
    words = [
        word for name, value in options.items() if name not in arguments for word in (name, value)
    ]
    return pretraining.main([*words, *arguments])


@pytest.fixture(scope="module")
def weights(tiny, tmp_path_factory):
    output = tmp_path_factory.mktemp("pretraining") / "weights"
    assert pretrain(tiny, output) == 0
    return output


def test_a_configuration_loads_both(tiny, weights):
    settings = [
        f"audio_encoder.checkpoint={weights}/audio_encoder.ckpt",
        f"text_encoder.name={weights}/text_encoder",
        "text_encoder.pretrained=true",
    ]
    model = build_model(load_config(tiny / "tiny.yaml", settings))
    saved = torch.load(weights / "audio_encoder.ckpt", weights_only=True)["state_dict"]
    assert len(saved) == len(model.audio_encoder.state_dict())
    for name, value in model.audio_encoder.state_dict().items():
        assert torch.equal(value, saved["encoder.encoder." + name])
    other = TextEncoder(text_architecture(f"{weights}/text_encoder", 0.0), 32)
    other.load_pretrained(f"{weights}/text_encoder")
    for name, value in model.text_encoder.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name])


def test_the_patch_embedding_whitens(tiny, weights):
    clips = open_cache(tiny / "cache").split("development")
    encoder = AtstFrame(**SIZES)
    encoder.load_official(weights / "audio_encoder.ckpt")
    waveforms = [torch.from_numpy(clips.read(index))[None] for index in range(len(clips))]
    patches = torch.cat(
        [
            encoder.patch_embed.patches(encoder.log_mel(waveform))[0, :: pretraining.EVERY_FRAME]
            for waveform in waveforms
        ]
    )
    with torch.no_grad():
        features = encoder.patch_embed.patch_embed(patches).double()
    assert features.mean(dim=0).abs().max() < 1e-4
    variances = torch.linalg.eigvalsh(torch.cov(patches.double().T)).flip(0)[:32]
    expected = variances / (variances + pretraining.VARIANCE_FLOOR * variances[0])
    assert torch.allclose(torch.cov(features.T), torch.diag(expected), atol=1e-3)


def test_fewer_patch_values_than_features():
    whitening, mean = pretraining._whitening(torch.randn(50, 4).double(), 9)
    assert whitening.shape == (4, 4) and mean.shape == (4,)


def test_token_0_tells_captions_apart(tiny):
    cache = open_cache(tiny / "cache")
    captions = [caption for captions in cache.split("validation").captions for caption in captions]

    def mean_cosine(encoder):
        with torch.no_grad():
            vectors = functional.normalize(encoder.eval()(captions), dim=-1)
        return (vectors @ vectors.T).mean()

    untrained = TextEncoder(text_architecture(f"{tiny}/text_encoder", 0.0), 32)
    untrained.tokenizer = load_tokenizer(tiny / "text_encoder")
    trained = pretraining.untrained_text_encoder(tiny / "text_encoder")
    pretraining.train_text_encoder(trained, cache.split("development"), steps=250, seed=0)
    assert mean_cosine(untrained) > 0.99 > 0.7 > mean_cosine(trained)


def test_token_shares(tmp_path):
    encoder = TextEncoder(text_architecture(str(write_text_encoder(tmp_path)), 0.0), 32)
    encoder.tokenizer = load_tokenizer(tmp_path)
    shares = pretraining.token_shares(encoder, ["A low tone.", "A high tone!", "a", "A low note"])
    low, high, tone, note = (
        encoder.tokenizer.convert_tokens_to_ids(word) for word in ("low", "high", "tone", "note")
    )
    assert shares[2].sum() == 0  # its only word is in every caption
    assert torch.allclose(shares[0, [low, tone]], torch.tensor([0.5, 0.5])) and shares[
        0
    ].sum() == pytest.approx(1.0)
    assert shares[1, high] == pytest.approx(math.log(4) / (math.log(4) + math.log(2)))
    assert shares[3, note] == pytest.approx(math.log(4) / (math.log(4) + math.log(2)))


def test_same_seed_same_bytes_and_equal_weights_are_reused(tiny, weights, tmp_path, capsys):
    before = digests(weights)
    assert pretrain(tiny, tmp_path / "again") == 0
    assert digests(tmp_path / "again") == before
    capsys.readouterr()
    assert pretrain(tiny, weights) == 0
    assert "reused" in capsys.readouterr().out and digests(weights) == before
    assert pretrain(tiny, tmp_path / "again", "--seed", "1") == 0
    after = digests(tmp_path / "again")
    assert after["audio_encoder.ckpt"] != before["audio_encoder.ckpt"]
    assert after["text_encoder/model.safetensors"] != before["text_encoder/model.safetensors"]


def test_a_damaged_folder_is_made_again(tiny, weights, tmp_path):
    shutil.copytree(weights, tmp_path / "weights")
    (tmp_path / "weights" / "audio_encoder.ckpt").unlink()
    assert pretrain(tiny, tmp_path / "weights") == 0
    assert digests(tmp_path / "weights") == digests(weights)


def test_very_short_clips_of_another_sample_rate(tiny, tmp_path):
    write_cache(tmp_path / "cache", {"development": 4}, seconds=(0.005, 0.01), sample_rate=44_100)
    encoder = pretraining.whitened_audio_encoder(
        open_cache(tmp_path / "cache").split("development"), SIZES
    )
    assert all(parameter.isfinite().all() for parameter in encoder.parameters())


def test_weights_cut_short_or_of_another_tokenizer_are_made_again(tiny, weights, tmp_path):
    shutil.copytree(weights, tmp_path / "weights")
    with open(tmp_path / "weights" / "audio_encoder.ckpt", "r+b") as file:
        file.truncate(1000)
    assert pretrain(tiny, tmp_path / "weights") == 0
    assert digests(tmp_path / "weights") == digests(weights)
    shutil.copytree(tiny / "text_encoder", tmp_path / "text")
    path = tmp_path / "text" / "tokenizer.json"
    path.write_text(path.read_text().replace("note", "tune"))
    assert pretrain(tiny, tmp_path / "weights", "--text-encoder", str(tmp_path / "text")) == 0
    assert digests(tmp_path / "weights") != digests(weights)


def test_what_it_is_made_from_is_never_replaced(tiny, tmp_path):
    text = str(write_text_encoder(tmp_path / "text"))
    for output in (
        tmp_path / "text",
        tmp_path / "text" / "weights",
        tmp_path,
        tiny / "cache" / "weights",
    ):
        with pytest.raises(UserError, match="from which it is made"):
            pretrain(tiny, output, "--text-encoder", text)
    assert (tmp_path / "text" / "tokenizer.json").is_file()


def test_another_command_s_folder_is_left_alone(tiny, tmp_path):
    (tmp_path / "made_from.json").write_text('{"captions_sha256": "0"}')
    with pytest.raises(UserError, match="was not made by this command"):
        pretrain(tiny, tmp_path)


def test_a_link_keeps_pointing_to_the_weights(tiny, weights, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert pretrain(tiny, tmp_path / "link") == 0
    assert (tmp_path / "link").is_symlink() and digests(tmp_path / "real") == digests(weights)


def test_a_failed_replacement_keeps_the_old_weights(tiny, weights, tmp_path, no_finished_folder):
    shutil.copytree(weights, tmp_path / "weights")
    with pytest.raises(UserError, match="cannot be written"):
        pretrain(tiny, tmp_path / "weights", "--seed", "1")
    assert digests(tmp_path / "weights") == digests(weights)
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_a_full_disk_is_one_line(tiny, tmp_path, monkeypatch):
    def full(*_):
        raise RuntimeError("unexpected pos 64\nvs 0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="no weights were written to .*unexpected pos 64 vs 0"):
        pretrain(tiny, tmp_path / "weights")
    assert list(tmp_path.iterdir()) == []


def silence(row):
    return row | {"audio": bytes(len(row["audio"]))}


def wordless(row):
    return row | {"captions": ["!", "..."]}


@pytest.mark.parametrize(
    ("change", "message"),
    [(silence, "all sound alike, or are silent"), (wordless, "no words that tell them apart")],
)
def test_a_corpus_with_nothing_to_learn(tiny, tmp_path, change, message):
    clips = open_cache(tiny / "cache").split("development")
    rows = []
    for index in range(len(clips)):
        pcm = (clips.read(index) * 32768).astype("<i2").tobytes()
        names = {
            "clip_id": clips.clip_ids[index],
            "file_name": clips.file_names[index],
            "captions": clips.captions[index],
        }
        rows.append(change(names | {"audio": pcm, "num_samples": len(pcm) // 2}))
    write_rows(tmp_path / "cache", {"development": rows})
    with pytest.raises(UserError, match=message):
        pretrain(tiny, tmp_path / "weights", "--cache", str(tmp_path / "cache"))
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "-1"], "--seed -1: must be 0 to"),
        (["--embed-dim", "1000000000000"], "must be 1 to"),
        (["--steps", "0"], "--steps 0: must be 1 to"),
        (["--embed-dim", "33"], "embed_dim 33 is not a multiple of num_heads 2"),
        (["--cache", "absent"], "absent"),
        (["--text-encoder", "absent"], "--text-encoder absent has no config.json"),
    ],
)
def test_bad_input_writes_nothing(tiny, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        pretrain(tiny, tmp_path / "weights", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_left_alone(tiny, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is not empty and was not made by this command"):
        pretrain(tiny, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    (tmp_path / "made_from.json").write_text('{"settings": {}, "files": []}')
    with pytest.raises(UserError, match="was not made by this command"):
        pretrain(tiny, tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        pretrain(tiny, tmp_path / "thesis.txt")


def test_a_cache_without_a_development_split(tiny, tmp_path):
    write_cache(tmp_path / "cache", {"evaluation": 4})
    with pytest.raises(UserError, match="development"):
        pretrain(tiny, tmp_path / "weights", "--cache", str(tmp_path / "cache"))
    assert not (tmp_path / "weights").exists()
