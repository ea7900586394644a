"""README and docs do what they say: every command and every piece of Python in them runs here.

Each page gets a folder with tiny inputs under the names that the docs use, and runs its shell and
Python blocks in it, in order. bash expands the shell blocks (loops, variables, quotes) but starts
nothing: the commands are recorded, and their `main` is called in this process. train.py runs with
--dry-run. Commands that need a network, a server or minutes are parsed only. In prose, code spans
that are paths, settings, options, modules or commands are looked up, and links are followed.
"""

import argparse
import contextlib
import glob
import importlib
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.launch import launch_command_parser
from accelerate.state import AcceleratorState
from torch.distributed.run import get_args_parser as torchrun_parser
from torch.nn import functional
from transformers import RobertaConfig, RobertaModel

from retrieval.base.errors import UserError
from retrieval.config import Config, load_config
from retrieval.config.text import flatten
from retrieval.data import open_cache
from retrieval.data.schema import SPLITS
from retrieval.losses import functions
from retrieval.models import build_model
from retrieval.models.audio.passt import Passt
from tests.conftest import PATIENCE, ROOT, run_here
from tests.corpora import AUDIOCAPS_COLUMNS, write_csv, write_sound, write_wavcaps
from tests.models.lora_models import save_text_encoder
from tests.models.pretrained.test_salsa import foreign_names, write_checkpoint
from tests.pretrained_models import make

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])
PAGES += [ROOT / "benchmarks/README.md"]
LANGUAGES = ("sh", "python", "text", "yaml")
MAX_COLUMNS, MAX_README_LINES = 120, 200

# Parsed, not run: they need a server, the hub or a browser's user, or take minutes.
PARSED_ONLY = (
    "generate_captions",
    "build_hub",
    "retrieval.app",
    "retrieval.sharing push",
    "benchmarks.",
)
RUN_ALL_THE_SAME = ("benchmarks.compare_runs",)
# network; the real sample corpus; minutes; a database
PARSED_OPTIONS = ("--download", "--scenes", "--onnx", "--store")
# Programs of others that the docs start; nothing of them runs here.
PROGRAMS = {"curl", "docker", "hf", "mkdir", "mv", "nproc", "pre-commit", "source", "sudo"}
PROGRAMS |= {"tensorboard"}
# File names in prose that are not in the repository.
NOT_OURS = {"config.yaml", "build_NAME.py"}
# Options of programs of others, in prose.
OPTIONS_OF_OTHERS = {"--shm-size=8g", "--pty", "--ntasks=2"}

RECORD = r"""
PATH=/nowhere
record() { printf '%s\0' "$#" "$@" >&3; }
command_not_found_handle() { record "$@"; }
source() { record source "$@"; }
"""


class Wrong(Exception):
    """What is wrong with a command."""


@dataclass(frozen=True)
class Block:
    """Lines of a page in a fence, or indented by four spaces (shell)."""

    language: str
    line: int
    text: str


def split_page(text: str) -> tuple[list[Block], list[str]]:
    """The blocks of a page, and its lines with those of blocks empty."""
    lines = text.splitlines()
    prose = [*lines]
    blocks = []
    start = 0
    while start < len(lines):
        fence = re.match(r"\s*```(\S*)", lines[start])
        after_blank = start == 0 or not lines[start - 1].strip()
        is_indented = after_blank and lines[start].startswith("    ")
        if not fence and not is_indented:
            start += 1
            continue
        end = start + 1
        if fence:
            while end < len(lines) and not lines[end].strip().startswith("```"):
                end += 1
            blocks.append(Block(fence[1], start + 1, "\n".join(lines[start + 1 : end])))
            end += 1
        else:
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            block = "\n".join(line[4:] for line in lines[start:end])
            blocks.append(Block("sh", start + 1, block.strip()))
        prose[start:end] = [""] * (min(end, len(lines)) - start)
        start = end
    return blocks, prose


# --- a folder with tiny inputs ---


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """The current folder is `folder` (contextlib.chdir is not in Python 3.10)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


def tiny(settings: dict) -> dict:
    """A configuration of the project with small encoders."""
    name = settings.get("audio_encoder", {}).get("name", "atst_frame")
    shape = {"width": 0.1} if name == "mn40_as_ext" else {"embed_dim": 64, "depth": 1}
    shape |= {} if name == "mn40_as_ext" else {"num_heads": 1}
    dim = 32
    if name == "huggingface":  # a model of tests/pretrained_models.py, written by write_inputs
        is_clap = "clap" in settings["audio_encoder"]["checkpoint"]
        dim, seconds = (8, 1.0) if is_clap else (16, 30.0)
        shape = {"window_seconds": seconds, "hop_seconds": seconds}
    changes = {
        "dim": dim,
        "data": {"num_workers": 0},
        "audio_encoder": shape,
        "text_encoder": {"max_tokens": 16},
        "pooling": {"attention_dim": 48},
        "train": {"epochs": 1, "max_steps": 2, "batch_size": 4},
        "evaluation": {"num_pictures": 0},
    }
    for section, values in changes.items():
        settings[section] = (
            settings.get(section, {}) | values if isinstance(values, dict) else values
        )
    if settings["pooling"].get("name", "mean") in ("mean", "average"):
        del settings["pooling"]["attention_dim"]
    return settings


def write_clotho(root: Path, sizes: dict[str, int]) -> None:
    header = ["file_name", *(f"caption_{number}" for number in range(1, 6))]
    for split, size in sizes.items():
        names = [f"{split}_{number}.wav" for number in range(size)]
        for name in names:
            write_sound(root / split / name, seconds=1.0)
        rows = [[name, *(f"A tone {name} {i}." for i in range(5))] for name in names]
        write_csv(root / f"clotho_captions_{split}.csv", header, rows)
        metadata = [[name, "a;b", f"9{i}", "", "", "", "CC0"] for i, name in enumerate(names)]
        columns = "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license"
        path = root / f"clotho_metadata_{split}.csv"
        write_csv(path, columns.split(","), metadata, encoding="ISO-8859-1")


def write_inputs(root: Path) -> None:
    """All that the docs name and do not make themselves, in the current folder `root`."""
    sizes = {"development": 26, "validation": 3, "evaluation": 3}
    write_clotho(root / "data/clotho_v2", sizes)
    write_clotho(root / "data/sample", sizes)
    shutil.copytree(ROOT / "configs", root / "configs")
    for path in root.glob("configs/*.yaml"):
        path.write_text(yaml.safe_dump(tiny(yaml.safe_load(path.read_text()))))
    # A folder of that name is found before the hub.
    make_text_encoder = main_of_script("data_prep/make_text_encoder.py")
    captions = "data/clotho_v2/clotho_captions_development.csv"
    succeed(make_text_encoder, ["--captions", captions, "--output", "roberta-large"])
    torch.manual_seed(0)
    RobertaModel(RobertaConfig.from_pretrained("roberta-large")).save_pretrained("roberta-large")
    save_text_encoder(root / "Qwen/Qwen3-Embedding-0.6B", "qwen3")
    make("clap", root / "laion/clap-htsat-unfused")
    make("pe_a_frame", root / "facebook/pe-a-frame-base")
    for path in ("weights", "data/sample/weights", "data/sample"):
        name = "roberta-large" if path == "weights" else "text_encoder"
        shutil.copytree("roberta-large", root / path / name)
    (root / "data/sample/weights/audio_encoder.ckpt").touch()
    for name in ("atstframe_base_as2M.ckpt", "mn40_as_ext_mAP_487.pt"):
        (root / "weights" / name).touch()
    passt = Passt(embed_dim=64, depth=1, num_heads=1)
    torch.save(passt.state_dict(), root / "weights/passt-s-f128-p16-s16-ap.468.pt")
    model = build_model(load_config("configs/passt_tap.yaml"))
    write_checkpoint(root / "passt_roberta.ckpt", foreign_names(model))

    recordings = [f"{i}.wav" for i in range(10)] + ["dog.wav", "2024/rain.flac"]
    for name in recordings:
        write_sound(root / "recordings" / name, seconds=1.0)
        (root / "recordings" / name).with_suffix(".txt").write_text(f"A {name} tone.\n")
    for name in ("walks/0.wav", "walks/1.wav", "walks/2.wav", "meeting.wav"):
        write_sound(root / name, seconds=6.0)
    captions = [[name, f"A {name} tone.", f"A {name} note."] for name in recordings]
    write_csv(root / "captions.csv", ["file_name", "caption_1", "caption_2"], captions)
    moments = [[name, "a tone", 0.25, 0.75] for name in recordings]
    write_csv(root / "moments.csv", ["file_name", "query", "start", "end"], moments)
    clips = [f"evaluation_{number}.wav" for number in range(3)]
    for name in clips:
        write_sound(root / "archive" / name, seconds=1.0)
    write_csv(root / "queries.csv", ["caption"], [["A tone."], ["A dog barks."]])
    about = [["dog.wav", "garden", 2021], ["2024/rain.flac", "roof", 2024]]
    write_csv(root / "metadata.csv", ["file_name", "place", "year"], about)
    relevance = [["A tone.", str(clips[:2])], ["A dog barks.", str(clips[2:])]]
    write_csv(root / "relevance.csv", ["query", "audio_filenames"], relevance)
    styles = [["evaluation_0.wav", "tone", "tags"], ["evaluation_1.wav", "A hum?", "questions"]]
    write_csv(root / "styles.csv", ["file_name", "caption", "style"], styles)
    found = {"qid": "a_1", "query": "A tone", "vid": "a", "pred_relevant_windows": [[3, 5, 0.9]]}
    (root / "predictions.jsonl").write_text(json.dumps(found))
    true = {
        "qid": "a_1",
        "query": "A tone",
        "duration": 9,
        "vid": "a",
        "relevant_windows": [[3, 6]],
    }
    (root / "truth.jsonl").write_text(json.dumps(true))
    asked = {"qid": "b_1", "query": "A tone", "duration": 1, "vid": "evaluation_0"}
    (root / "queries.jsonl").write_text(json.dumps(asked))
    labels = list(zip(clips, ["dog", "rain", "dog"], strict=True))
    write_csv(root / "labels.csv", ["file_name", "label"], labels)
    for split, name in (("train", "abcdefghij0"), ("val", "abcdefghij1"), ("test", "abcdefghij2")):
        path = root / f"data/audiocaps/{split}.csv"
        write_csv(path, AUDIOCAPS_COLUMNS, [[1, name, 0, "A tone."]])
        write_sound(root / f"data/audiocaps/audio/{name}_0.wav")
        window = [[0, 0.1]]
        query = {"qid": f"{name}_1", "query": "A tone", "vid": name, "duration": 1}
        moment = {"local_caption": "A tone", "timestamps": window}
        entry = {"yid": name, "global_caption": "A tone.", "duration": 1, "moments": [moment]}
        contents = {
            f"castella/json/en/{split}.json": [entry],
            f"lighthouse/castella_{split}_release.jsonl": query | {"relevant_windows": window},
        }
        for path, content in contents.items():
            (root / "data" / path).parent.mkdir(parents=True, exist_ok=True)
            (root / "data" / path).write_text(json.dumps(content))
        write_sound(root / f"data/castella/audio/{name}.wav")
    for source in ("FreeSound", "BBC_Sound_Effects", "SoundBible", "AudioSet_SL"):
        entries = [{"id": f"Yklmnopqrst{i}.wav", "caption": "A tone."} for i in range(2)]
        if source != "AudioSet_SL":
            entries = [{"id": str(100 + i), "caption": "A tone."} for i in range(2)]
        write_wavcaps(root / "data/wavcaps", source, entries)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """`write_inputs`, with the caches of Clotho and a trained, scored model of each pooling."""
    root = tmp_path_factory.mktemp("docs")
    with inside(root):
        write_inputs(root)
        for corpus in ("clotho_v2", "sample"):
            arguments = ["--root", f"data/{corpus}", "--num-proc", "1"]
            arguments += ["--sample-rate", "16000"] if corpus == "sample" else []
            succeed(main_of_script("data_prep/build_clotho.py"), arguments)
        shutil.copytree("data/clotho_v2/cache", "data/mine")
        for name in ("mean", "tap"):
            config = "configs/baseline.yaml" if name == "mean" else "configs/tap.yaml"
            run = f"train.output=runs/{name}"
            changes = ["audio_encoder.checkpoint=null", run]
            succeed(main_of_script("train.py"), ["--config", config, *changes])
            for split in ("development", "evaluation"):
                arguments = ["--checkpoint", f"runs/{name}/best", "--split", split, "--save-scores"]
                succeed(main_of_script("evaluate.py"), arguments)
        for path in root.glob("configs/*.yaml"):
            make_run(root, path.stem)
    return root


def make_run(root: Path, name: str) -> None:
    """A run folder as training would leave it."""
    if not (root / "runs" / name).exists():
        source = "tap" if "tap" in name or "mine" in name or "small" in name else "mean"
        shutil.copytree(root / "runs" / source, root / "runs" / name)
        if name in ("passt_stage1", "passt_tap"):  # other runs start from them
            build_model(load_config(f"configs/{name}.yaml")).save_pretrained(f"runs/{name}/best")


# --- commands ---


def main_of_script(path: str) -> Callable[[list[str]], int | None]:
    """`main` of `python path`."""
    name, file = Path(path).with_suffix(""), ROOT / path
    if not file.is_file():
        raise Wrong(f"there is no {path}")
    if len(name.parts) > 1:
        return importlib.import_module(".".join(name.parts)).main
    # not by its name: `evaluate` is the Hugging Face package
    specification = importlib.util.spec_from_file_location(f"{name}_script", file)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.main


def main_of_module(name: str) -> Callable[[list[str]], int | None]:
    """`main` of `python -m name`."""
    if importlib.util.find_spec(name.split(".")[0]) is None or not importlib.util.find_spec(name):
        raise Wrong(f"there is no module {name}")
    module = importlib.import_module(name)
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{name}.__main__")
    return module.main


class Parsed(Exception):
    """The arguments are right."""


@contextlib.contextmanager
def parsing_only() -> Iterator[None]:
    """Commands end when they have parsed their arguments."""
    parser = argparse.ArgumentParser

    def ended(parse: Callable) -> Callable:
        def parsed(self, *arguments, **options):
            parse(self, *arguments, **options)
            raise Parsed

        return parsed

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Parsed):
        for name in ("parse_args", "parse_intermixed_args"):
            patch.setattr(parser, name, ended(getattr(parser, name)))
        yield


def succeed(main: Callable, arguments: list[str]) -> str:
    """Run `main` here; returns its output. Raises Wrong."""
    AcceleratorState._reset_state(reset_partial_state=True)
    ended = run_here(main, *arguments)
    if ended.returncode:
        lines = (ended.stderr or ended.stdout).strip().splitlines()
        raise Wrong(f"exit code {ended.returncode}: {lines[-1] if lines else ''}")
    return ended.stdout


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Arguments of a program of others. Raises Wrong."""
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        try:
            return parser.parse_args(arguments)
        except SystemExit:
            raise Wrong(printed.getvalue().strip().splitlines()[-1]) from None


def run(argv: list[str]) -> None:
    """A command of the docs in the current folder, as far as it can be run. Raises Wrong."""
    program, *arguments = argv
    if program in ("env", "srun", "mpirun"):
        while arguments and arguments[0].startswith("-"):
            arguments = arguments[1 if "=" in arguments[0] or arguments[0] == "--pty" else 2 :]
        run(arguments)
    elif program == "accelerate":
        if arguments[:1] != ["launch"]:
            raise Wrong(f"accelerate {arguments[0]}")
        launch = parse(launch_command_parser(), arguments[1:])
        if launch.config_file and not (ROOT / launch.config_file).is_file():
            raise Wrong(f"there is no {launch.config_file}")
        run_script(launch.training_script, launch.training_script_args)
    elif program == "torchrun":
        launch = parse(torchrun_parser(), arguments)
        run_script(launch.training_script, launch.training_script_args)
    elif program == "sbatch":
        if not (ROOT / arguments[0]).is_file():
            raise Wrong(f"there is no {arguments[0]}")
        run_script("train.py", arguments[1:])
    elif program == "python" and arguments[0] == "-m":
        run_module(arguments[1], arguments[2:])
    elif program == "python":
        run_script(arguments[0], arguments[1:])
    elif program == "make":
        check_make(arguments)
    elif program == "mv":
        if Path(arguments[0]).exists():
            shutil.copy2(*arguments)
        elif not Path(arguments[1]).parent.is_dir():
            raise Wrong(f"there is no folder for {arguments[1]}")
    elif program not in PROGRAMS:
        raise Wrong(f"unknown program {program}")


def run_script(path: str, arguments: list[str]) -> None:
    main = main_of_script(path)
    if path == "train.py":
        dry = succeed(main, [*arguments, "--dry-run"])
        if missing := [line for line in dry.splitlines() if line.startswith("missing: ")]:
            raise Wrong(missing[0])
        output = next(line for line in dry.splitlines() if line.startswith("  output: "))
        make_run(Path(), Path(output.split()[1]).name)
        return
    build = [] if not Path(path).name.startswith("build_") else ["--num-proc", "1"]
    run_main_of(Path(path).stem, main, [*arguments, *build])


def run_module(name: str, arguments: list[str]) -> None:
    if name == "timeit":
        compile("\n".join(arguments[1:]).replace("-s\n", ""), name, "exec")
    elif name == "pytest":
        files = [word for word in arguments if word.startswith("tests")]
        if absent := [file for file in files if not (ROOT / file).exists()]:
            raise Wrong(f"there is no {absent[0]}")
    else:
        run_main_of(name, main_of_module(name), arguments)


def run_main_of(name: str, main: Callable, arguments: list[str]) -> None:
    command = " ".join([name, *arguments])
    is_parsed = any(word in arguments for word in PARSED_OPTIONS)
    is_parsed |= command.startswith(PARSED_ONLY) and not command.startswith(RUN_ALL_THE_SAME)
    with parsing_only() if is_parsed else contextlib.nullcontext():
        succeed(main, arguments)


def check_make(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in arguments:
        name, is_variable, _ = word.partition("=")
        pattern = rf"^{name} \?=" if is_variable else rf"^{name}:"
        if not re.search(pattern, makefile, re.MULTILINE):
            raise Wrong(f"the Makefile has no {name}")


def commands_of(script: str, folder: Path) -> list[list[str]]:
    """The commands that a shell block starts, expanded by bash, which starts none of them."""
    with (folder / "commands").open("w+b") as record:
        command = ["bash", "--norc", "--noprofile", "-c", f'exec 3>>"$0"\n{RECORD}\n{script}']
        ended = subprocess.run(
            [*command, record.name], cwd=folder, capture_output=True, text=True, check=False
        )
        words = record.read().decode().split("\0")[:-1]
    if ended.returncode or ended.stderr:
        raise Wrong(ended.stderr.strip() or f"bash ended with {ended.returncode}")
    commands = []
    while words:
        end = int(words[0]) + 1
        commands.append(words[1:end])
        words = words[end:]
    return commands


# --- prose ---


def options_of(*parsers: argparse.ArgumentParser) -> set[str]:
    return {option for parser in parsers for option in parser._option_string_actions}


def known_options() -> set[str]:
    """Options of the project's commands, as its source writes them, and of the launchers."""
    files = [*ROOT.glob("*.py")]
    files += [path for folder in CODE_FOLDERS for path in (ROOT / folder).rglob("*.py")]
    source = "\n".join(path.read_text(encoding="utf-8") for path in files)
    found = set(re.findall(r'"(--[a-z][a-z0-9-]*)"', source))
    return found | options_of(launch_command_parser(), torchrun_parser()) | OPTIONS_OF_OTHERS


CODE_FOLDERS = ("retrieval", "data_prep", "benchmarks")
FOLDERS = (*CODE_FOLDERS, "configs", "docs", "tests")
# with the settings of the sections that are absent by default
SETTINGS = flatten(
    load_config(
        ROOT / "configs/clotho_lora_text.yaml", ["audio_encoder.lora={}", "moment_head={}"]
    ).model_dump()
)
OPTIONS = known_options()
FILE_NAMES = {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")}
COMMAND = re.compile(r"(python|accelerate|torchrun|sbatch|srun|make|pip) \S")
PATH = re.compile(r"[\w.*/-]+")
SETTING = re.compile(rf"(?:{'|'.join(Config.model_fields)})\.\w[\w.]*(?:=.*)?")
MODULE = re.compile(rf"(?:{'|'.join(CODE_FOLDERS)})(?:\.\w+)+")


def wrong_span(span: str) -> str | None:
    """What is wrong with a code span, or None."""
    first = span.split()[0]
    if COMMAND.match(span):
        return wrong_command(span.split())
    if first.startswith("--"):
        return None if first in OPTIONS else f"no command has the option {first}"
    if PATH.fullmatch(span) and span.split("/")[0] in FOLDERS and "/" in span:
        return None if glob.glob(str(ROOT / span)) else f"there is no {span}"
    if re.fullmatch(r"\w+\.(py|yaml|sh)", span) and span not in NOT_OURS:
        exists = span in FILE_NAMES or (ROOT / span).is_file()
        return None if exists else f"there is no file {span}"
    if SETTING.fullmatch(span) and not re.search(r"\.(md|parquet|csv)$", span):
        key, _, value = span.partition("=")
        if not any(f"{name}.".startswith(f"{key}.") for name in SETTINGS):
            return f"{key} is not a setting"
        return wrong_value(span) if value else None
    if MODULE.fullmatch(span):
        return wrong_module(span)
    return None


def wrong_value(override: str) -> str | None:
    """A setting with a value, which one of the configurations must take."""
    for path in ROOT.glob("configs/*.yaml"):
        try:
            load_config(path, [override])
        except UserError as error:
            problem = str(error)
        else:
            return None
    return problem


def wrong_module(name: str) -> str | None:
    """A module, or a name in one."""
    module, _, attribute = name.rpartition(".")
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
        return None
    with contextlib.suppress(ImportError):
        return None if hasattr(importlib.import_module(module), attribute) else f"no {name}"
    return f"there is no {name}"


def wrong_command(words: list[str]) -> str | None:
    """A command in prose is often a part of one: its files, modules, targets and options exist."""
    if words[0] == "make":
        with contextlib.suppress(Wrong):
            check_make(words[1:])
            return None
        return f"the Makefile has no {words[1:]}"
    if words[0] == "pip":
        return wrong_extra(" ".join(words))
    for before, word in zip(words, words[1:], strict=False):
        if before == "-m" and word.partition(".")[0] in CODE_FOLDERS and wrong_module(word):
            return f"there is no module {word}"
        if word.endswith((".py", ".sh", ".yaml")) and not (ROOT / word).is_file():
            return f"there is no {word}"
        if word.startswith("--") and word not in OPTIONS:
            return f"no command has the option {word}"
    return None


def wrong_extra(command: str) -> str | None:
    """Extras of the package that are installed by a command exist."""
    found = re.search(r"\[([\w,]+)\]", command)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in found[1].split(",") if found else []:
        if not re.search(rf"^{extra} = \[", project, re.MULTILINE):
            return f"the package has no extra {extra}"
    return None


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    _, prose = split_page(path.read_text(encoding="utf-8"))
    return {slug(line.lstrip("#")) for line in prose if line.startswith("#")}


def wrong_link(target: str, page: Path) -> str | None:
    path, _, anchor = target.partition("#")
    if target.startswith(("https://", "mailto:")):
        return None
    file = (page.parent / path) if path else page
    if not file.exists():
        return f"dead link: {target}"
    if anchor and anchor not in anchors(file):
        return f"dead anchor: {target}"
    return None


def wrong_prose(prose: list[str], page: Path) -> list[str]:
    wrong = []
    text = "\n".join(prose)
    defined = set(re.findall(r"(?m)^\[([^\]]+)\]: ", text))
    for number, line in enumerate(prose, 1):
        spans = re.findall(r"`([^`]+)`", line)
        targets = re.findall(r"\]\(([^)\s]+)\)", line) + re.findall(r"^\[[^\]]+\]: (\S+)", line)
        found = [wrong_span(span) for span in spans]
        found += [wrong_link(target, page) for target in targets]
        used = re.findall(r"\]\[(\w+)\]", line)
        found += [f"[{name}] is not defined" for name in used if name not in defined]
        wrong += [f"line {number}: {problem}" for problem in found if problem]
    return wrong


# --- pages ---


def wrong_with(text: str, page: Path, folder: Path) -> list[str]:
    """All that is wrong with a page: one line each, with its number."""
    blocks, prose = split_page(text)
    wrong = [
        f"line {number}: {len(line)} columns"
        for number, line in enumerate(text.splitlines(), 1)
        if len(line) > MAX_COLUMNS
    ]
    wrong += wrong_prose(prose, page)
    names: dict = {"__name__": "docs", "Tensor": torch.Tensor, "functional": functional}
    with inside(folder), pytest.MonkeyPatch.context() as patch:
        for block in blocks:
            if block.language not in LANGUAGES:
                wrong.append(f"line {block.line}: a block in {block.language or 'no language'}")
            elif block.language == "sh":
                wrong += wrong_script(block, folder)
            elif block.language == "python":
                wrong += wrong_python(block, names)
                if "max_margin" in names:  # extending.md tells where it goes
                    patch.setattr(functions, "max_margin", names["max_margin"], raising=False)
    return wrong


def wrong_script(block: Block, folder: Path) -> list[str]:
    wrong = []
    try:
        for argv in commands_of(block.text, folder):
            try:
                run(argv)
            except Wrong as problem:
                wrong.append(f"line {block.line}: {' '.join(argv)}: {problem}")
    except Wrong as problem:
        wrong.append(f"line {block.line}: {problem}")
    return wrong


def wrong_python(block: Block, names: dict) -> list[str]:
    if "import mteb" in block.text and importlib.util.find_spec("mteb") is None:
        return []  # it needs Python 3.11
    if "127.0.0.1:7860" in block.text:
        compile(block.text, f"line {block.line}", "exec")
        return []  # tests/search/page/test_api.py runs it, with a server
    AcceleratorState._reset_state(reset_partial_state=True)
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            exec(compile(block.text, f"line {block.line}", "exec"), names)
            for name in re.findall(r"(?m)^def (test_\w+)\(\)", block.text):
                names[name]()
        except Exception as error:
            return [f"line {block.line}: {type(error).__name__}: {error}"]
    return []


@pytest.fixture
def folder(inputs, tmp_path) -> Path:
    """A copy of the inputs for one page."""
    return shutil.copytree(inputs, tmp_path / "folder")


@pytest.fixture(scope="module")
def spare(inputs, tmp_path_factory) -> Path:
    """A copy of the inputs for commands and pages that are wrong, which change nothing."""
    return shutil.copytree(inputs, tmp_path_factory.mktemp("spare") / "folder")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_does_what_it_says(page: Path, folder: Path):
    assert "\n".join(wrong_with(page.read_text(encoding="utf-8"), page, folder)) == ""


def test_the_script_of_extending_builds_a_cache(tmp_path: Path):
    blocks, _ = split_page((ROOT / "docs/extending.md").read_text(encoding="utf-8"))
    (script,) = (block for block in blocks if "build_from_plans" in block.text)
    data_prep = tmp_path / "data_prep"
    shutil.copytree(ROOT / "data_prep", data_prep)
    (tmp_path / "retrieval").symlink_to(ROOT / "retrieval")
    (data_prep / "build_tabbed.py").write_text(script.text, encoding="utf-8")
    root = tmp_path / "tabbed"
    for split in SPLITS:
        names = [f"{split}_{number}.wav" for number in range(2)]
        for name in names:
            write_sound(root / "audio" / name)
        lines = [f"{name}\tA tone.\n" for name in names]
        (root / f"{split}.tsv").write_text("".join(lines), encoding="utf-8")
    command = [sys.executable, data_prep / "build_tabbed.py", "--root", root, "--num-proc", "1"]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
    split = open_cache(root / "cache").split("evaluation")
    assert split.file_names == ["evaluation_0.wav", "evaluation_1.wav"]
    (root / "audio" / "evaluation_0.wav").unlink()
    lost = subprocess.run([*command, "--overwrite"], capture_output=True, text=True)
    assert lost.returncode == 2 and "'evaluation_0.wav': no such file" in lost.stderr


def test_training_on_own_recordings_runs_to_the_end(folder: Path, monkeypatch):
    """The README's commands, with the trainings themselves in place of the dry runs."""
    monkeypatch.chdir(folder)
    _, _, section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Train on your")
    blocks = [block.text for block in split_page(section.partition("\n## ")[0])[0][:2]]
    first, second = (commands_of(text, folder) for text in blocks)
    assert [argv[0] for argv in first] == ["python", "accelerate", "python"]
    assert [argv[0] for argv in second] == ["curl", "accelerate", "python"]
    assert (
        second[0][second[0].index("-o") + 1]
        == load_config(ROOT / "configs/passt_tap.yaml").audio_encoder.checkpoint
    )
    shutil.rmtree("runs/finetune_clap")
    run(first[0])
    for commands, name in ((first, "finetune_clap"), (second, "mine")):
        succeed(main_of_script("train.py"), commands[1][3:])
        run(commands[2])
        assert Path(f"runs/{name}/metrics.json").exists()
    assert Path("finetuned.index").is_dir() and Path("mine.index").is_dir()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES


NEGATIVE_CONTROLS = {
    "python evaluate.py --checkpoint runs/tap/best --splitt evaluation": "--splitt",
    "python evaluate.py --checkpoint runs/never_trained/best": "never_trained",
    "python -m retrieval.searching query": "retrieval.searching",
    "python data_prep/build_absent.py": "build_absent.py",
    "python -m retrieval.app --indices recordings.index": "--index",
    "accelerate launch train.py --config configs/absent.yaml": "absent.yaml",
    "accelerate launch train.py --config configs/tap.yaml train.epoch=3": "train.epoch",
    "accelerate launch --gpus 3 train.py --config configs/tap.yaml": "--gpus",
    "accelerate launch train.py --config configs/tap.yaml data.cache=data/absent": "data/absent",
    "torchrun --nproc_per_node 2 training.py": "training.py",
    "make everything": "everything",
    "make test WORKER=8": "WORKER",
    "frobnicate --now": "frobnicate",
    "for seed in 1 2; do": "syntax error",
}


@pytest.mark.parametrize("command", NEGATIVE_CONTROLS)
def test_negative_control_a_wrong_command_is_seen(command: str, spare: Path):
    for text in (f"Text.\n\n```sh\n{command}\n```\n", f"Text.\n\n    {command}\n\nMore.\n"):
        (found,) = wrong_with(text, ROOT / "README.md", spare)
        assert NEGATIVE_CONTROLS[command] in found and found.startswith("line 3")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a page](docs/absent.md)", "docs/absent.md"),
        ("[a heading](docs/search.md#absent)", "#absent"),
        ("[a reference][nowhere]", "[nowhere]"),
        ("The file `retrieval/absent.py`.", "retrieval/absent.py"),
        ("The file `absent.yaml`.", "absent.yaml"),
        ("The setting `train.absent`.", "train.absent"),
        ("The option `--absent`.", "--absent"),
        ("The name `retrieval.search.Absent`.", "retrieval.search.Absent"),
        ("The command `python -m benchmarks.absent`.", "benchmarks.absent"),
        ("The command `python evaluate.py --absent`.", "--absent"),
        ('The command `pip install ".[absent]"`.', "absent"),
        ("A long line: " + "very " * 30, "columns"),
        ("```\nno language\n```", "no language"),
        ("```python\nfrom retrieval.search import Absent\n```", "Absent"),
    ],
)
def test_negative_control_a_wrong_page_is_seen(text: str, expected: str, spare: Path):
    (found,) = wrong_with(text, ROOT / "README.md", spare)
    assert expected in found


def test_blocks_are_found():
    text = "a\n\n```sh\none \\\n  two\n```\n\n    three\n\n    four\n\nb `c`\n- d\n    e\n"
    blocks, prose = split_page(text)
    assert blocks == [Block("sh", 3, "one \\\n  two"), Block("sh", 8, "three\n\nfour")]
    assert [line for line in prose if line] == ["a", "b `c`", "- d", "    e"]
