"""House rules: directions of imports, every setting is read, docstrings, no machine's paths."""

import ast
import inspect
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from retrieval.config import (
    AudioEncoderConfig,
    AugmentationConfig,
    Config,
    LearningRates,
    LossConfig,
    PoolingConfig,
    ProjectionConfig,
    ScheduleConfig,
)
from retrieval.config.text import flatten
from retrieval.data.augmentation import waveform_augmentation
from retrieval.losses import LOSSES, TARGETS, settings_of
from retrieval.models.audio import AUDIO_ENCODERS
from retrieval.models.dual_encoder import POOLINGS
from retrieval.models.mel_augmentation import mel_augmentation
from retrieval.models.projection import PROJECTIONS
from retrieval.training.optim import GROUPS, learning_rate

ROOT = Path(__file__).resolve().parents[2]
GENERATED = [ROOT / name for name in ("data", "runs", "weights", "build", "dist")]


def is_project_folder(folder: Path) -> bool:
    if folder.name.startswith("."):
        return folder == ROOT / ".ci"
    if folder.name == "__pycache__" or folder.suffix == ".egg-info":
        return False
    return folder not in GENERATED


def project_files() -> Iterator[Path]:
    """Files that belong to the project: nothing hidden or generated."""
    for folder, subfolders, names in os.walk(ROOT):
        subfolders[:] = [name for name in subfolders if is_project_folder(Path(folder, name))]
        yield from (Path(folder, name) for name in names if name != ".git")  # a file in a worktree


FILES = sorted(project_files())
PYTHON = [path for path in FILES if path.suffix == ".py"]
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PYTHON}
CODE = [path for path in PYTHON if not path.is_relative_to(ROOT / "tests")]
RETRIEVAL = [path for path in CODE if path.is_relative_to(ROOT / "retrieval")]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    """Name of a module as `python -m` has it: `retrieval.search` for its __main__.py too."""
    return (
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        .removesuffix(".__init__")
        .removesuffix(".__main__")
    )


def imports_of(path: Path, tree: ast.Module | None = None) -> set[str]:
    """Full names of a file's imports, also within functions.

    `from retrieval.data import open_cache` gives `retrieval.data` and `retrieval.data.open_cache`.
    """
    names = set()
    for node in ast.walk(tree or TREES[path]):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = [*path.relative_to(ROOT).parts[:-1]] if node.level else []
            base = ".".join(
                [*package[: len(package) - node.level + 1], *([node.module] if node.module else [])]
            )
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


# --- imports ---

# The rooms of `retrieval`, in order: each may import those before it.
ROOMS = (
    "base",
    "config",
    "data",
    "losses",
    "models",
    "evaluation",
    "moments",
    "training",
    "sharing",
    "search",
)
# Parts that may import less than their room.
NARROWER = {
    "data": {"base"},
    "evaluation.metrics": set(),
    "losses": {"base"},
    "models.audio": {"base", "models.hub", "models.blocks"},
    "models.pooling": {"base"},
    "models.windows": set(),
    "models.text": {"base", "models.hub", "models.blocks"},
    "models.pretrained.tensor_files": {"base"},
    "models.pretrained.lightning": {"base", "models.pretrained.tensor_files"},
    "search": {
        *("base", "models", "moments", "evaluation.attention", "evaluation.submission"),
        "sharing.export",
    },
    "sharing": {"base", "config", "data", "models", "evaluation", "training.splits"},
    "training.optim": {"base", "config"},
}
COMMANDS = {path.stem for path in (ROOT / "retrieval").glob("*.py")} - {"__init__"}


def is_within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def allowed_imports(module: str) -> set[str]:
    """Parts of `retrieval` that a module may import; module without the prefix `retrieval.`"""
    if module in COMMANDS:
        return set(ROOMS)
    part = max((part for part in NARROWER if is_within(module, part)), key=len, default=None)
    if part is not None:
        return {part} | NARROWER[part]
    room = module.partition(".")[0]
    assert room in ROOMS, f"retrieval/{room} is no room: add it to ROOMS, after what it imports"
    return set(ROOMS[: ROOMS.index(room) + 1])


def forbidden_imports(path: Path, tree: ast.Module | None = None) -> list[str]:
    allowed = allowed_imports(module_of(path).removeprefix("retrieval."))
    within = {
        name.removeprefix("retrieval.")
        for name in imports_of(path, tree)
        if name.startswith("retrieval.")
    }
    return sorted(name for name in within if not any(is_within(name, other) for other in allowed))


@pytest.mark.parametrize(
    "path", [path for path in RETRIEVAL if path != ROOT / "retrieval" / "__init__.py"], ids=name_of
)
def test_imports_flow_one_way(path: Path):
    assert forbidden_imports(path) == []


@pytest.mark.parametrize(
    ("file", "statement", "found"),
    [
        (
            "retrieval/data/cache.py",
            "from retrieval.models import build_model",
            ["models", "models.build_model"],
        ),
        ("retrieval/losses/functions.py", "def f():\n    import retrieval.config", ["config"]),
        (
            "retrieval/models/pooling.py",
            "from .text import TextEncoder",
            ["models.text", "models.text.TextEncoder"],
        ),
        (
            "retrieval/evaluation/metrics/text_audio_retrieval/ranking.py",
            "from retrieval.base.errors import UserError",
            ["base.errors", "base.errors.UserError"],
        ),
        ("retrieval/models/text.py", "from retrieval.models.hub import local_files_only", []),
    ],
)
def test_negative_control_a_wrong_import_is_seen(file: str, statement: str, found: list[str]):
    assert forbidden_imports(ROOT / file, ast.parse(statement)) == found


def test_data_prep_imports_base_and_the_cache_only():
    files = [path for path in CODE if path.is_relative_to(ROOT / "data_prep")]
    assert files
    within = {
        name
        for path in files
        for name in imports_of(path)
        if is_within(name, "retrieval") and name != "retrieval"
    }
    allowed = ("retrieval.base", "retrieval.data.schema", "retrieval.data.moments")
    allowed += ("retrieval.data.cache",)  # to read one: it needs no torch
    assert [name for name in within if not any(is_within(name, part) for part in allowed)] == []


def test_nobody_imports_the_scripts():
    assert [name_of(path) for path in CODE if "train" in imports_of(path)] == []
    # `import evaluate` is the Hugging Face package, which only the metrics need.
    users = [
        name_of(path)
        for path in CODE
        if any(is_within(name, "evaluate") for name in imports_of(path))
    ]
    metrics = ("audio_moment_retrieval", "text_audio_retrieval")
    assert users == [f"retrieval/evaluation/metrics/{name}/{name}.py" for name in metrics]


def test_torch_distributed_is_touched_where_processes_meet_and_where_they_exchange():
    mention = "torch." + "distributed"
    users = [
        name_of(path)
        for path in CODE
        if mention in path.read_text(encoding="utf-8") or "torch.distributed" in imports_of(path)
    ]
    assert users == ["retrieval/base/exchange.py", "retrieval/base/rendezvous.py"]


def test_one_function_makes_the_accelerator():
    """It reads the environment first."""
    calls = {
        path: (node.func for node in ast.walk(TREES[path]) if isinstance(node, ast.Call))
        for path in CODE
    }
    names = {
        path: {getattr(function, "id", getattr(function, "attr", "")) for function in functions}
        for path, functions in calls.items()
    }
    users = [name_of(path) for path, called in names.items() if "Accelerator" in called]
    assert users == ["retrieval/base/launch.py"]


def test_configuration_stays_out_of_models_and_losses():
    models = [
        path
        for path in RETRIEVAL
        if name_of(path).startswith(("retrieval/losses", "retrieval/models/"))
    ]
    users = [
        name_of(path)
        for path in models
        if any(is_within(name, "retrieval.config") for name in imports_of(path))
    ]
    assert users == ["retrieval/models/build.py"]  # build_model, which unpacks it


# --- one of each, on every platform ---

PLATFORM_MODULES = {"fcntl", "msvcrt", "resource", "pwd", "grp", "termios", "tty", "pty"}


def unguarded_platform_modules(tree: ast.Module) -> list[str]:
    """Modules that Windows or macOS lack, imported without a `try` and its fallback."""
    guarded = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.Try)
        for node in ast.walk(outer)
    }
    names = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import) and id(node) not in guarded
        for alias in node.names
    ]
    return [name for name in names if name in PLATFORM_MODULES]


def test_modules_of_one_platform_have_a_fallback():
    """tests/search/test_other_platform.py runs without them."""
    files = [path for path in CODE if not path.is_relative_to(ROOT / "benchmarks")]
    assert [name_of(path) for path in files if unguarded_platform_modules(TREES[path])] == []


def test_negative_control_an_unguarded_module_is_seen():
    assert unguarded_platform_modules(ast.parse("import fcntl")) == ["fcntl"]


@pytest.mark.parametrize(
    ("call", "places"),
    [
        ("flock", ["retrieval/base/locks.py"]),
        ("locking", ["retrieval/base/locks.py"]),
        ("posix_fallocate", ["retrieval/base/files.py"]),
        # the database of an index is replaced by SQLite's own rules
        ("os.replace", ["retrieval/base/files.py", "retrieval/search/local/writer.py"]),
        ("sched_getaffinity", ["retrieval/base/processes.py"]),
    ],
)
def test_there_is_one_lock_and_one_way_to_replace_a_file(call: str, places: list[str]):
    users = {
        name_of(path)
        for path in CODE
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Call) and f".{ast.unparse(node.func)}".endswith(f".{call}")
    }
    assert sorted(users) == places


# --- files of others run nothing ---


def calls_of(*names: str) -> Iterator[tuple[str, ast.Call]]:
    """Calls of methods and functions by these names, with the file and line of each."""
    for path in CODE:
        for node in ast.walk(TREES[path]):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in names
            ):
                yield f"{name_of(path)}:{node.lineno}", node


def test_no_call_of_transformers_may_run_code_of_a_model():
    """Each takes retrieval.models.hub.loading(name) or NO_CODE.

    These say trust_remote_code=False; without it transformers ask on the terminal.
    """
    ours = ("DualEncoder", "super()", "cls")
    calls = [
        (place, call)
        for place, call in calls_of("from_pretrained", "from_config")
        if ast.unparse(call.func.value) not in ours
    ]
    assert len(calls) >= 7
    assert [
        place for place, call in calls if None not in [keyword.arg for keyword in call.keywords]
    ] == []


def test_pickles_are_never_loaded_with_their_objects():
    loads = [
        (place, call)
        for place, call in calls_of("load", "loads")
        if ast.unparse(call.func.value) in ("torch", "pickle")
    ]
    assert (
        loads
        and [place for place, call in loads if "weights_only=True" not in ast.unparse(call)] == []
    )


# --- settings ---

# Sections that are handed on whole, `**section.model_dump()`: their fields are compared with what
# takes them.
HANDED_ON = (
    "optimizer.lr",
    "optimizer.schedule",
    "pooling",
    "audio_encoder",
    "loss",
    "augmentation",
)


def attributes_read() -> set[str]:
    """Names read as attributes (`config.train.epochs`) outside of the settings themselves.

    Also those picked by `model_dump(include={...})`.
    """
    names = set()
    for path in CODE:
        if path == ROOT / "retrieval" / "config" / "settings.py" or path.is_relative_to(
            ROOT / "data_prep"
        ):
            continue
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
            elif isinstance(node, ast.keyword) and node.arg == "include":
                names |= {
                    constant.value
                    for constant in ast.walk(node.value)
                    if isinstance(constant, ast.Constant)
                }
    return names


SETTINGS = list(flatten(Config().model_dump()))


@pytest.mark.parametrize(
    "setting", [setting for setting in SETTINGS if not setting.startswith(HANDED_ON)]
)
def test_every_setting_is_read(setting: str):
    *sections, field = setting.split(".")
    assert {*sections, field} <= attributes_read()


def test_negative_control_a_setting_that_nobody_reads_is_seen():
    assert "num_unused_layers" not in attributes_read()


def keyword_arguments(function) -> set[str]:
    return set(inspect.signature(function).parameters)


def test_sections_that_are_handed_on_fit_what_takes_them():
    assert set(ScheduleConfig.model_fields) == keyword_arguments(learning_rate) - {
        "epoch",
        "base_lr",
    }
    assert set(LearningRates.model_fields) == set(GROUPS.values())
    given = {"dim", "feature_dim", "max_frames", "args", "kwargs"}  # not settings
    taken = [
        keyword_arguments(pooling) | set(pooling.runtime_settings) for pooling in POOLINGS.values()
    ]
    assert set(PoolingConfig.model_fields) - {"name"} == set().union(*taken) - given
    projections = set().union(*map(keyword_arguments, PROJECTIONS.values()))
    assert set(ProjectionConfig.model_fields) - {"name"} <= projections
    assert set(AugmentationConfig().mel) == keyword_arguments(mel_augmentation)
    assert set(AugmentationConfig().waveform) == keyword_arguments(waveform_augmentation) - {
        "sample_rate"
    }
    assert {"mix_probability", *AugmentationConfig().mel, *AugmentationConfig().waveform} == set(
        AugmentationConfig.model_fields
    )


def test_settings_of_encoders_and_losses_are_taken_by_one():
    taken = AudioEncoderConfig.of_all.union(*map(keyword_arguments, AUDIO_ENCODERS.values()))
    read_from_files = {"architecture", "feature_extractor"}  # of the huggingface encoder
    assert set(AudioEncoderConfig.model_fields) == taken - read_from_files
    assert set(LossConfig.model_fields) == LossConfig.of_all.union(*map(settings_of, LOSSES))
    read = {*AudioEncoderConfig.of_all, *LossConfig.of_all, *set().union(*TARGETS.values())}
    assert read <= attributes_read()


def test_every_setting_is_described_or_named_like_its_use():
    """Units and bounds: a number without a description says all in its name."""
    self_explaining = {
        "seed",
        "epochs",
        "min_lr",
        "beta1",
        "beta2",
        "eps",
        "weight_decay",
        *LearningRates.model_fields,
    }

    def undescribed(section) -> Iterator[str]:
        for name, field in section.model_fields.items():
            if hasattr(field.annotation, "model_fields"):
                yield from undescribed(field.annotation)
            elif not field.description and name not in self_explaining:
                yield name

    assert list(undescribed(Config)) == []


# --- files ---


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_every_file_says_what_it_is(path: Path):
    assert ast.get_docstring(TREES[path])


@pytest.mark.parametrize(
    "path",
    [path for path in CODE if '__name__ == "__main__"' in path.read_text(encoding="utf-8")],
    ids=name_of,
)
def test_a_file_that_runs_says_how(path: Path):
    docstring = ast.get_docstring(TREES[path])
    assert path.name in docstring or f"-m {module_of(path)}" in docstring


def test_no_file_mentions_the_paths_of_one_machine():
    machine = ["/" + folder + "/" for folder in ("work", "tmp", "root", "home", "Users")]
    mentions = []
    for path in FILES:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # pictures and golden numbers
        mentions += [f"{name_of(path)}: {prefix}" for prefix in machine if prefix in text]
    assert mentions == []
