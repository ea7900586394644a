"""data_prep/make_text_encoder.py: a RoBERTa folder that transformers loads offline."""

import json
import os
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from data_prep import make_text_encoder
from tests.conftest import digests
from tests.corpora import write_csv

SUBJECTS = ("dog barks", "bell rings", "siren wails", "train passes", "cow moos")
CAPTIONS = [f"A {first}, then a {second}." for first in SUBJECTS for second in SUBJECTS]


def write_captions(path, captions):
    header = ["file_name", *(f"caption_{i}" for i in range(1, 6))]
    rows = [["a.wav", *captions[i : i + 5]] for i in range(0, len(captions), 5)]
    return write_csv(path, header, rows)


def make(captions, output, *arguments):
    return make_text_encoder.main(
        ["--captions", str(captions), "--output", str(output), *map(str, arguments)]
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_captions(tmp_path_factory.mktemp("captions") / "captions.csv", CAPTIONS)


@pytest.fixture(scope="module")
def folder(table, tmp_path_factory):
    output = tmp_path_factory.mktemp("encoder") / "text_encoder"
    assert make(table, output, "--hidden-size", 32, "--num-heads", 2, "--vocab-size", 300) == 0
    return output


def error_line(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def test_official_layout(folder):
    assert sorted(os.listdir(folder)) == [
        "config.json",
        "made_from.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    assert (
        config.model_type == "roberta"
        and config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.1
    )
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (32, 2, 2)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert tokenizer.is_fast and len(tokenizer) == config.vocab_size <= 300
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    assert (tokenizer.pad_token_id, config.pad_token_id, tokenizer.model_max_length) == (1, 1, 40)


def test_truncation_and_padding(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    batch = tokenizer(
        ["a dog barks", "a dog " * 30],
        padding=True,
        truncation=True,
        max_length=32,
        return_tensors="pt",
    )  # (2, 32)
    assert batch["input_ids"].shape == (2, 32) and (batch["input_ids"][:, 0] == 0).all()
    assert batch["input_ids"][1, -1] == 2 and batch["attention_mask"][1].all()
    valid = batch["attention_mask"][0].sum()
    assert batch["input_ids"][0, valid - 1] == 2 and (batch["input_ids"][0, valid:] == 1).all()


def test_words_of_the_corpus_are_tokens_wherever_they_stand(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    first, middle = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in ("dog barks", "then a dog barks")
    )
    assert middle[-len(first) :] == first
    for text in ("a dog barks then a bell rings", "schnörkel – 漢字"):  # bytes: nothing is unknown
        assert (
            tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).strip() == text
        )
        assert 3 not in tokenizer(text)["input_ids"]


def test_the_longest_caption_fits_the_model(folder):
    tokenizer, config = AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder)
    batch = tokenizer("dog " * 100, truncation=True, max_length=40, return_tensors="pt")
    hidden = (
        AutoModel.from_config(config, add_pooling_layer=False).eval()(**batch).last_hidden_state
    )  # (1, 40, 32)
    assert hidden.shape == (1, 40, 32) and torch.isfinite(hidden).all()
    # negative control: one position more has no embedding
    with pytest.raises(Exception, match=r"(index|range)"):
        AutoModel.from_config(config, add_pooling_layer=False)(input_ids=torch.full((1, 41), 5))


def test_the_tokenizer_sees_captions_as_the_encoder_does(folder):
    assert (
        make_text_encoder.normalise_caption("A dog's bark, LOUD -- and a bell!")
        == "a dogs bark loud  and a bell"
    )
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"][
        "vocab"
    ]
    words = [token for token in vocabulary if len(token) > 1 and not token.startswith("<")]
    assert "Ġthen" in words and not [
        token for token in words if "." in token or "," in token or "A" in token
    ]


def test_same_captions_same_bytes_and_reuse(table, folder, tmp_path, capsys):
    settings = ("--hidden-size", 32, "--num-heads", 2, "--vocab-size", 300)
    assert make(table, tmp_path / "again", *settings) == 0
    assert digests(tmp_path / "again") == digests(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    capsys.readouterr()
    assert make(table, folder, *settings) == 0
    assert "reused" in capsys.readouterr().out and before == {
        path: path.stat().st_mtime_ns for path in folder.iterdir()
    }


def test_other_captions_or_sizes_are_written_anew(table, tmp_path):
    output = tmp_path / "text_encoder"
    assert make(table, output, "--vocab-size", 300) == 0
    first = digests(output)
    assert make(table, output, "--vocab-size", 280) == 0
    second = digests(output)
    other = write_captions(
        tmp_path / "other.csv", [caption.replace("dog", "hound") for caption in CAPTIONS]
    )
    assert make(other, output, "--vocab-size", 280) == 0
    assert (
        len({first["tokenizer.json"], second["tokenizer.json"], digests(output)["tokenizer.json"]})
        == 3
    )
    (output / "config.json").unlink()  # an incomplete folder is not reused
    assert make(other, output, "--vocab-size", 280) == 0 and (output / "config.json").is_file()
    assert sorted(os.listdir(tmp_path)) == ["other.csv", "text_encoder"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--vocab-size", "200"], "261"),
        (["--hidden-size", "30"], "--num-heads 4"),
        (["--num-layers", "0"], "--num-layers 0"),
        (["--max-tokens", "2"], "--max-tokens 2"),
        (["--vocab-size", "many"], "--vocab-size"),
    ],
)
def test_wrong_sizes_are_one_line(table, tmp_path, capsys, arguments, expected):
    try:
        code = make(table, tmp_path / "text_encoder", *arguments)
    except SystemExit as stop:  # argparse's own
        code = stop.code
    assert code == 2 and expected in error_line(capsys) and not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "file_name,caption_1\n",
        "name,text\na.wav,A dog.\n",
        b"file_name,caption_1\na.wav,caf\xe9\n",
    ],
)
def test_unusable_captions_are_one_line(tmp_path, capsys, content):
    table = tmp_path / "captions.csv"
    if content is not None:
        table.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert make(table, tmp_path / "text_encoder") == 2
    assert "captions.csv" in error_line(capsys) and not (tmp_path / "text_encoder").exists()


def test_foreign_folders_are_left_alone(table, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("keep")
    assert make(table, tmp_path / "mine") == 2
    assert "mine" in error_line(capsys) and os.listdir(tmp_path / "mine") == ["letter.txt"]


def test_a_failed_replacement_keeps_the_old_folder(
    table, folder, tmp_path, no_finished_folder, capsys
):
    output = tmp_path / "text_encoder"
    shutil.copytree(folder, output)
    assert make(table, output, "--hidden-size", 64) == 2
    assert "Directory not empty" in error_line(capsys)
    assert digests(output) == digests(folder) and os.listdir(tmp_path) == ["text_encoder"]


def test_the_folder_of_pretrained_weights_is_left_alone(table, tmp_path, capsys):
    (tmp_path / "made_from.json").write_text('{"settings": {}, "files": {}}')
    assert make(table, tmp_path) == 2
    assert "was not made by this command" in error_line(capsys) and os.listdir(tmp_path) == [
        "made_from.json"
    ]
