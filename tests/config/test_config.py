"""Settings: defaults, YAML, overrides, one-line errors; the experiments in configs/."""

import os
from pathlib import Path

import pytest
import yaml

from retrieval.base.errors import UserError
from retrieval.config import Config, config_differences, load_config, parse_config
from retrieval.config.text import apply_override, flatten, read_yaml

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
EXPERIMENTS = sorted(CONFIGS.glob("*.yaml"))
LEARNING_RATES = ("audio_encoder", "text_encoder", "audio_projection", "text_projection", "pooling")


def write(folder: Path, text: str) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def error_of(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert "pydantic" not in message and "https://" not in message
    return message


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    return write(tmp_path, "")


# --- order of precedence ---


def test_an_empty_file_gives_the_defaults_and_its_own_run_folder(empty: Path):
    assert load_config(empty) == parse_config({"train": {"output": "runs/experiment"}}, "test")
    assert config_differences(Config(), load_config(empty)) == ["train.output:  -> runs/experiment"]


def test_yaml_wins_over_defaults_and_overrides_over_both(tmp_path: Path):
    path = write(tmp_path, "seed: 7\ntrain:\n  epochs: 3\n  batch_size: 8\n")
    config = load_config(
        path, ["train.epochs=5", "optimizer.lr.audio_encoder=4e-6", "train.output=elsewhere"]
    )
    assert (config.seed, config.train.epochs, config.train.batch_size) == (7, 5, 8)
    assert config.optimizer.lr.audio_encoder == 4e-6
    assert config.optimizer.lr.text_encoder == Config().optimizer.lr.text_encoder
    assert config.train.output == "elsewhere"


def test_the_last_override_wins(empty: Path):
    assert load_config(empty, ["seed=1", "seed=2"]).seed == 2


def test_sections_without_content_count_as_absent(tmp_path: Path):
    path = write(tmp_path, "train:\noptimizer:\n  # everything commented out\nseed: 5\n")
    assert config_differences(Config(), load_config(path)) == [
        "seed: 123 -> 5",
        "train.output:  -> runs/experiment",
    ]


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 3
    with pytest.raises(ValueError, match="frozen"):
        Config().train.epochs = 3


# --- what YAML 1.1 makes of numbers and words ---


@pytest.mark.parametrize("written", ["3e-4", "3.0e-4", "0.0003", "'3e-4'"])
def test_learning_rates_are_numbers_however_they_are_written(tmp_path: Path, written: str):
    path = write(tmp_path, f"optimizer:\n  lr:\n    pooling: {written}\n")
    assert load_config(path).optimizer.lr.pooling == 3e-4
    assert load_config(path, [f"optimizer.eps={written}"]).optimizer.eps == 3e-4


@pytest.mark.parametrize("written", ["no", "'no'", "No", "off"])
def test_mixed_precision_no_is_the_word(tmp_path: Path, written: str):
    assert (
        load_config(
            write(tmp_path, f"train:\n  mixed_precision: {written}\n")
        ).train.mixed_precision
        == "no"
    )
    assert (
        load_config(write(tmp_path, ""), [f"train.mixed_precision={written}"]).train.mixed_precision
        == "no"
    )


@pytest.mark.parametrize(
    "override",
    [
        "train.epochs=yes",
        "optimizer.lr.pooling=no",
        "text_encoder.name=no",
        "train.mixed_precision=yes",
        "data.num_workers=true",
    ],
)
def test_a_boolean_is_no_number_and_no_name(empty: Path, override: str):
    message = error_of(empty, override)
    assert override.split("=")[0].split(".")[-1] in message and "boolean" in message


def test_booleans_are_read_where_they_belong(empty: Path):
    assert (
        load_config(
            empty, ["text_encoder.pretrained=no", "loss.learnable_temperature=yes"]
        ).text_encoder.pretrained
        is False
    )


@pytest.mark.parametrize(
    "name", ["optimizer.max_grad_norm", "train.max_steps", "audio_encoder.checkpoint"]
)
def test_null_takes_an_optional_setting_back(empty: Path, name: str):
    assert flatten(load_config(empty, [f"{name}=null"]).model_dump())[name] is None


# --- mistakes ---


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("optimizer.lr.audio_encodr=1e-5", "did you mean optimizer.lr.audio_encoder?"),
        ("train.batchsize=4", "did you mean train.batch_size?"),
        ("sed=4", "did you mean seed?"),
        ("poolin.name=tap", "did you mean pooling?"),
        ("batch_size=4", "did you mean train.batch_size?"),
        ("train.rampdown_stop=4", "did you mean optimizer.schedule.rampdown_stop?"),
        (
            "evaluation.zzz=1",
            "evaluation holds: audio_batch_size, text_batch_size, bf16_validation, num_pictures",
        ),
        ("zzz=1", "the top level holds: seed, dim, data"),
    ],
)
def test_an_unknown_setting_names_the_nearest(empty: Path, override: str, nearest: str):
    message = error_of(empty, override)
    assert f"{override.split('=')[0].split('.')[0]}" in message
    assert "is not a setting" in message and nearest in message


def test_an_unknown_setting_in_the_file_names_the_file(tmp_path: Path):
    path = write(tmp_path, "audio_encoder:\n  window_secs: 5\n")
    assert (
        error_of(path) == f"config {path}: audio_encoder.window_secs is not a setting; did you mean"
        " audio_encoder.window_seconds?"
    )


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs=many", "train.epochs='many': input should be a valid integer"),
        ("train.epochs=2.5", "train.epochs=2.5: input should be a valid integer"),
        ("train.epochs=0", "train.epochs=0: input should be greater than or equal to 1"),
        ("train.epochs=", "train.epochs='': input should be a valid integer"),
        ("train.epochs=null", "train.epochs=None: input should be a valid integer"),
        ("train.epochs=[1]", "train.epochs=[1]: input should be a valid integer"),
        ("train.batch_size=1", "train.batch_size=1: input should be greater than or equal to 2"),
        ("seed=-1", "seed=-1: input should be greater than or equal to 0"),
        ("seed=4294967296", "seed=4294967296: input should be less than 4294967296"),
        ("text_encoder.dropout=1", "text_encoder.dropout=1: input should be less than 1"),
        (
            "optimizer.lr.pooling=-1e-3",
            "optimizer.lr.pooling='-1e-3': input should be greater than or equal to 0",
        ),
        ("optimizer.lr.pooling=.nan", "optimizer.lr.pooling=nan: input should be a finite number"),
        ("optimizer.lr.pooling=.inf", "optimizer.lr.pooling=inf: input should be"),
        ("loss.temperature=0", "loss.temperature=0: input should be greater than 0"),
        ("pooling.readout=max", "pooling.readout='max': input should be 'first' or 'mean'"),
        ("pooling.readout=Mean", "pooling.readout='Mean': input should be 'first' or 'mean'"),
        (
            "train.mixed_precision=fp8",
            "train.mixed_precision='fp8': input should be 'auto', 'no', 'bf16' or 'fp16'",
        ),
        (
            "optimizer.lr=3e-4",
            "optimizer.lr='3e-4': optimizer.lr is a section with settings of its own",
        ),
        ("seed.x=1", "seed={'x': 1}: input should be a valid integer"),
        (
            "train={compile: true, activation_checkpointing: true}",
            "train: compile and activation_checkpointing exclude each other",
        ),
        (
            "audio_encoder={embed_dim: 768, num_heads: 7}",
            "audio_encoder: embed_dim 768 is not a multiple of num_heads 7",
        ),
        (
            "optimizer.schedule.rampdown_stop=1",
            "optimizer.schedule: rampdown_stop 1.0 must be above rampdown_start 1.0",
        ),
    ],
)
def test_a_mistyped_or_out_of_range_value_is_named(empty: Path, override: str, expected: str):
    assert error_of(empty, override).startswith(f"config {empty}: {expected}")


def test_all_mistakes_are_told_at_once(empty: Path):
    message = error_of(empty, "train.epochs=0", "sed=1", "pooling.readout=max")
    assert (
        "train.epochs=0" in message
        and "did you mean seed?" in message
        and "pooling.readout='max'" in message
    )


@pytest.mark.parametrize("override", ["seed", "=3", "--seed"])
def test_an_override_without_name_or_value(empty: Path, override: str):
    assert (
        error_of(empty, override)
        == f"override {override!r} is not of the form section.key=value, for example train.epochs=5"
    )


def test_an_override_beneath_a_setting_of_the_file(tmp_path: Path):
    assert "seed is a setting, not a section" in error_of(write(tmp_path, "seed: 1\n"), "seed.x=1")


@pytest.mark.parametrize("text", ["seed: [1", "a: b: c", "\tseed: 1", "seed: 1\n  dim: 2"])
def test_invalid_yaml(tmp_path: Path, text: str):
    path = write(tmp_path, text)
    assert error_of(path).startswith(f"config {path} is not valid YAML: ")


@pytest.mark.parametrize(("text", "found"), [("- seed", "list"), ("seed", "str"), ("3", "int")])
def test_yaml_that_is_no_mapping(tmp_path: Path, text: str, found: str):
    path = write(tmp_path, text)
    assert error_of(path) == f"config {path} must be a mapping of sections, found {found}"


@pytest.mark.parametrize("text", ["1: 2", "no: 3", "train:\n  yes: 3", "? [a, b]\n: 3"])
def test_keys_that_are_no_names(tmp_path: Path, text: str):
    path = write(tmp_path, text)
    assert error_of(path).startswith(f"config {path}")


def test_files_that_cannot_be_read(tmp_path: Path):
    assert (
        error_of(tmp_path / "absent.yaml")
        == f"config {tmp_path / 'absent.yaml'} does not exist; the experiments are in configs/"
    )
    assert error_of(tmp_path).startswith(f"config {tmp_path} is a folder")
    (tmp_path / "latin.yaml").write_bytes("# \xe9\n".encode("latin-1"))
    assert error_of(tmp_path / "latin.yaml").startswith(
        f"config {tmp_path / 'latin.yaml'} cannot be read: "
    )


# --- differences ---


def test_differences_name_setting_old_and_new(empty: Path):
    new = load_config(empty, ["optimizer.lr.pooling=1e-3", "seed=5"])
    assert config_differences(load_config(empty), new) == [
        "seed: 123 -> 5",
        "optimizer.lr.pooling: 2e-05 -> 0.001",
    ]
    assert config_differences(new, new) == []


# --- the experiments ---


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_yaml_loads_and_survives_being_written(path: Path):
    config = load_config(path)
    assert config.train.output == f"runs/{path.stem}"
    assert parse_config(yaml.safe_load(yaml.safe_dump(config.model_dump())), "written") == config


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_yaml_opens_with_its_command(path: Path):
    assert f"#   accelerate launch train.py --config configs/{path.name}\n" in path.read_text(
        encoding="utf-8"
    )


# recipe of the published runs: what differs between the three.
PUBLISHED = {
    "baseline": {"seed": 123, "audio_lr": 2e-5, "pooling": "mean"},
    "low_lr": {"seed": 327, "audio_lr": 4e-6, "pooling": "mean"},
    "tap": {"seed": 124, "audio_lr": 4e-6, "pooling": "tap"},
    "passt_stage1": {"seed": 409194, "audio_lr": 2e-5, "pooling": "mean", "batch_size": 64},
    "passt_stage2": {
        "seed": 523528930,
        "audio_lr": 2e-5,
        "pooling": "mean",
        "batch_size": 64,
        "loss": "distillation",
    },
    "passt": {"seed": 409194, "audio_lr": 2e-5, "pooling": "mean"},
    "passt_tap": {"seed": 409194, "audio_lr": 2e-5, "pooling": "tap", "window_seconds": 5.0},
    "passt_tap_captions": {
        "seed": 409194,
        "audio_lr": 2e-5,
        "pooling": "tap",
        "window_seconds": 5.0,
    },
    "all_stage1": {"seed": 409194, "audio_lr": 2e-5, "pooling": "mean", "batch_size": 64},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_experiments_are_exact(name: str):
    published, config = PUBLISHED[name], load_config(CONFIGS / f"{name}.yaml")
    assert config.seed == published["seed"]
    assert config.pooling.name == published["pooling"]
    lr = config.optimizer.lr.model_dump()
    assert lr.pop("audio_encoder") == published["audio_lr"]
    assert lr == dict.fromkeys(LEARNING_RATES[1:], 2e-5) | {"loss": 0.1, "moment_head": 1e-3}
    if config.pooling.name == "tap":
        pooling, expected = config.pooling, (2048, 0.1, 0.0) if name == "tap" else (1024, 0.1, 0.1)
        assert (
            pooling.attention_dim,
            pooling.attention_dropout,
            pooling.output_dropout,
        ) == expected and pooling.init == "default"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_experiments_share_the_recipe(name: str):
    config = load_config(CONFIGS / f"{name}.yaml")
    audio, text, schedule = config.audio_encoder, config.text_encoder, config.optimizer.schedule
    assert (config.dim, config.data.sample_rate, config.data.max_seconds) == (1024, 32_000, 30.0)
    published = PUBLISHED[name]
    assert (audio.embed_dim, audio.depth, audio.num_heads, audio.frozen) == (
        None,
        None,
        None,
        False,
    )  # the encoder's own
    weights = {
        "atst_frame": "weights/atstframe_base_as2M.ckpt",
        "passt": "weights/passt-s-f128-p16-s16-ap.468.pt",
    }
    assert audio.checkpoint == weights[audio.name] and audio.name == (
        "passt" if name.startswith(("passt", "all")) else "atst_frame"
    )
    assert audio.window_seconds == audio.hop_seconds == published.get("window_seconds", 10.0)
    assert (text.name, text.pretrained, text.dropout, text.max_tokens) == (
        "roberta-large",
        True,
        0.2,
        32,
    )
    assert (config.loss.name, config.loss.temperature) == (
        published.get("loss", "nt_xent"),
        0.05,
    ) and not config.loss.learnable_temperature
    assert (schedule.shape, schedule.warmup_epochs, schedule.min_lr) == ("cosine", 1, 1e-7)
    assert (schedule.rampdown_start, schedule.rampdown_stop) == (1, 15)
    optimizer = config.optimizer
    assert (optimizer.beta1, optimizer.beta2, optimizer.eps) == (0.9, 0.999, 1e-8)
    assert (optimizer.weight_decay, optimizer.max_grad_norm) == (0.0, None)
    assert (config.train.epochs, config.train.batch_size, config.train.max_steps) == (
        20,
        published.get("batch_size", 16),
        None,
    )


@pytest.mark.parametrize(
    "changed", ["seed=124", "optimizer.lr.audio_encoder=4e-6", "train.batch_size=32"]
)
def test_negative_control_a_changed_experiment_differs(changed: str):
    path = CONFIGS / "baseline.yaml"
    assert len(config_differences(load_config(path), load_config(path, [changed]))) == 1


# --- YAML ---


def test_a_key_that_occurs_twice_is_an_error(tmp_path: Path):
    assert "epochs is set twice" in error_of(write(tmp_path, "train:\n  epochs: 1\n  epochs: 2\n"))


@pytest.mark.parametrize(
    "name", ["2026-01-01", "2026-13-01", "2026-01-01 10:00:00", "1:30", "010", "1_0_x", "0x1f"]
)
def test_names_that_yaml_takes_for_dates_or_numbers(tmp_path: Path, empty: Path, name: str):
    assert load_config(empty, [f"train.output={name}"]).train.output == name
    assert load_config(write(tmp_path, f"train:\n  output: {name}\n")).train.output == name


@pytest.mark.parametrize(
    ("written", "number"), [("010", 10), ("1_000", 1000), ("+7", 7), ("0", 0), ("'12'", 12)]
)
def test_numbers_are_decimal(tmp_path: Path, written: str, number: int):
    assert load_config(write(tmp_path, f"seed: {written}\n")).seed == number


@pytest.mark.parametrize("written", ["0x1f", "0b11", "1:30", "0o17", "-1", "\u0663"])
def test_numbers_that_are_not_are_named(tmp_path: Path, written: str):
    assert error_of(write(tmp_path, f"seed: {written}\n")).split(": ", 1)[1].startswith("seed=")


# --- files from anyone ---

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{this}: &{this} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, this in zip("abcdefgh", "bcdefghi")
)
MERGES = "a: &a {x: 1, y: 2}\n" + "".join(
    f"{this}: &{this} {{<<: [{', '.join([f'*{before}'] * 9)}]}}\n"
    for before, this in zip("abcdefg", "bcdefgh")
)
HOSTILE = {
    "alias bomb": (BOMB, "aliases"),
    "alias bomb in a typed setting": (f"{BOMB}train:\n  epochs: *i\n", "aliases"),
    "bomb of merges": (f"{MERGES}train:\n  <<: *h\n", "aliases"),
    "many values": ("loss:\n  teachers: [" + "x, " * 20_000 + "x]\n", "values"),
    "nested lists": ("seed: " + "[" * 3000 + "]" * 3000, "nested"),
    "nested mappings": ("seed: " + "{a: " * 3000 + "1" + "}" * 3000, "nested"),
    "nested blocks": ("".join(" " * depth + "-\n" for depth in range(900)), "nested"),
    "alias within itself": ("seed: &a [*a]", "alias"),
    "null byte": ('seed: "a\\0b"', "null byte"),
    "half a surrogate pair": ('seed: "\\ud800"', "surrogate"),
    "section within itself": ("train: &a {epochs: *a}", "alias"),
    "object": ("seed: !!python/object/apply:os.getpid []", "python/object"),
    "number that is none": ("seed: !!int ''", "tag"),
    "boolean that is none": ("seed: !!bool maybe", "tag"),
    "date that is none": ("seed: !!timestamp x", "tag"),
    "binary": ("seed: !!binary aGVsbG8=", "tag"),
    "enormous number": ("seed: " + "9" * 5000, "5000 digits"),
    "enormous hexadecimal number": ("seed: 0x" + "f" * 50_000, "seed="),
    "enormous word": ("seed: " + "x" * 900_000, "seed="),
    "enormous word for a section": ("train: " + "x" * 900_000, "train="),
    "enormous name": ("x" * 900 + ": 1", "is not a setting"),
    "enormous file": ("# " + "x" * 2**21, "larger"),
    "many unknown settings": ("".join(f"k{number}: 1\n" for number in range(4000)), "3,990 more"),
    "two documents": ("seed: 1\n---\nseed: 2\n", "document"),
    "tab": ("train:\n\tepochs: 1\n", "line 2"),
    "no end": ("seed: 'x", "valid YAML"),
    "no such alias": ("seed: *x", "valid YAML"),
    "merge of a word": ("train:\n  <<: x\n", "valid YAML"),
    "a list as a name": ("? [a, b]\n: 1\n", "valid YAML"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_one_short_line(tmp_path: Path, name: str):
    text, expected = HOSTILE[name]
    message = error_of(write(tmp_path, text))
    assert expected in message and len(message) < 3000 and message.startswith("config ")


@pytest.mark.parametrize(
    "name",
    [
        "alias bomb",
        "nested lists",
        "nested mappings",
        "alias within itself",
        "null byte",
        "object",
        "enormous number",
    ],
)
def test_a_hostile_override_is_one_short_line(empty: Path, name: str):
    text = HOSTILE[name][0]
    message = error_of(
        empty, f"seed={text if name == 'alias bomb' else text.removeprefix('seed: ')}"
    )
    assert message.startswith("override 'seed=") and len(message) < 400


@pytest.mark.parametrize(
    "override",
    [
        "x." * 5000 + "x=1",
        "data." + "cache." * 3000 + "x=1",
        "seed=" + "[" * 3000,
        "x" * 100_000,
        "x" * 100_000 + "=1",
    ],
)
def test_other_overrides_of_any_length_are_one_short_line(empty: Path, override: str):
    assert len(error_of(empty, override)) < 1000


def test_negative_control_small_aliases_and_depths_are_read(tmp_path: Path):
    path = write(
        tmp_path,
        "optimizer:\n  lr: &lr {pooling: 1e-3}\nloss: {teachers: [a, b]}\nx: &n 7\n".replace(
            "x: &n 7", "seed: &n 7\ndim: *n"
        ),
    )
    with pytest.raises(UserError, match="teachers have no effect"):
        load_config(path)
    assert load_config(path, ["loss.name=distillation"]).dim == 7


def test_an_override_changes_one_place_of_an_alias(tmp_path: Path):
    path = write(
        tmp_path,
        "optimizer:\n  lr: &lr {pooling: 1e-3}\n  schedule: {<<: {min_lr: 1e-5}}\naugmentation: &a"
        " {gain_db: 1}\n",
    )
    assert load_config(path).optimizer.lr.pooling == 1e-3
    shared = read_yaml("a: &x {b: {c: 1}}\nd: *x\n")
    apply_override(shared, "a.b.c=2")
    assert shared == {"a": {"b": {"c": 2}}, "d": {"b": {"c": 1}}}


def test_files_that_are_no_text(tmp_path: Path):
    contents = {
        "bytes": bytes(range(256)),
        "utf-16": "seed: 1".encode("utf-16"),
        "nul": b"seed: 1\0",
        "latin-1": "a: é".encode("latin-1"),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert "UTF-8" in error_of(tmp_path / name) or "valid YAML" in error_of(tmp_path / name)
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfseed: 5\r\n")
    assert load_config(tmp_path / "bom.yaml").seed == 5


def test_places_that_are_no_files(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/stdin"), tmp_path):
        assert "regular file" in error_of(path) or "folder" in error_of(path)
    assert "does not exist" in error_of(tmp_path / "absent" / "x.yaml")


@pytest.mark.parametrize("override", ["train.output=", "train.output=null"])
def test_an_empty_run_folder_is_the_default_one(empty: Path, override: str):
    assert load_config(empty, [override]).train.output == "runs/experiment"


def test_windows_leave_no_gap_and_a_hop_is_some_time(empty: Path):
    assert "would not be heard" in error_of(empty, "audio_encoder.hop_seconds=11")
    assert "greater than or equal to 0.01" in error_of(empty, "audio_encoder.hop_seconds=0.000001")
