"""The published experiments from their downloads to the page of results, in miniature."""

import ctypes
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import py7zr
import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from transformers import RobertaConfig, RobertaForMaskedLM

from benchmarks.compare_runs import NAMES
from benchmarks.full_size import write_atst_checkpoint, write_corpus
from benchmarks.published import PUBLISHED
from benchmarks.reproduce import __main__ as reproduce
from benchmarks.reproduce import checks, commands, gpus, page, weights
from benchmarks.reproduce.gpus import Gpu
from benchmarks.reproduce.measured import format_experiment, format_interval, measure, verdict
from benchmarks.reproduce.plan import EXPERIMENTS, parse_seeds
from benchmarks.reproduce.record import TrainingRecord
from retrieval.base.errors import UserError
from retrieval.config import AudioEncoderConfig
from retrieval.evaluation.bootstrap import Interval
from retrieval.models import build_model
from tests.conftest import PATIENCE, ROOT, digests, run_here, wait_for, write_text_encoder
from tests.data_prep.test_download import Server
from tests.hub_stub import Hub, running_hub, use_hub

CLIPS = {"development": 6, "validation": 3, "evaluation": 4}
ATST = {"embed_dim": 24, "depth": 1, "num_heads": 2}
TINY = (
    "dim=16 data.num_workers=0 data.sample_rate=16000 data.max_seconds=2"
    " audio_encoder.embed_dim=24 audio_encoder.depth=1 audio_encoder.num_heads=2"
    " audio_encoder.window_seconds=1 audio_encoder.hop_seconds=1 pooling.attention_dim=32"
    " train.batch_size=4 train.epochs=6 train.save_every_steps=1 evaluation.num_pictures=0"
).split()
CARD = Gpu("NVIDIA Test Card", 24 * 2**30, "GPU-1234")


# --- the whole way ---


@dataclass
class Downloads:
    """Clotho in miniature on a server in Zenodo's place, roberta-large on a hub's stand-in."""

    server: Server
    hub: Hub
    folder: Path

    def options(self, place: Path) -> list[str]:
        return [
            *("--experiments", "tap", "--cpu", "--unchecked", "--set", *TINY),
            *("--root", str(place / "clotho"), "--weights", str(self.folder / "weights")),
            *("--output", str(place / "runs"), "--results", str(place / "results.md")),
            *("--base-url", self.server.url, "--checksums", str(self.folder / "md5.txt")),
        ]


@pytest.fixture(scope="module")
def downloads(tmp_path_factory) -> Iterator[Downloads]:
    folder = tmp_path_factory.mktemp("downloads")
    write_corpus(folder / "clotho", CLIPS, (0.2, 0.5))
    for split in CLIPS:
        with py7zr.SevenZipFile(folder / "clotho" / f"clotho_audio_{split}.7z", "w") as archive:
            archive.writeall(folder / "clotho" / split, split)
    files = {path.name: path.read_bytes() for path in (folder / "clotho").glob("*.*")}
    lines = [f"{hashlib.md5(content).hexdigest()}  {name}\n" for name, content in files.items()]
    (folder / "md5.txt").write_text("".join(lines))
    torch.manual_seed(0)
    roberta = RobertaConfig.from_pretrained(write_text_encoder(folder / "roberta"))
    RobertaForMaskedLM(roberta).save_pretrained(folder / "roberta")
    (folder / "weights").mkdir()
    write_atst_checkpoint(folder / "weights" / "atst_as2M.ckpt", ATST)
    with Server() as server, running_hub() as hub:
        server.files = files
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        hub.add("roberta-large", folder / "roberta")
        yield Downloads(server, hub, folder)
        server.shutdown()
        thread.join()


@pytest.fixture
def here(downloads, tmp_path, monkeypatch) -> list[list[str]]:
    """Commands run in this process, where torch is imported already; returns them."""
    started = []

    def run_in_this_process(words: list[str], environment: dict[str, str]) -> None:
        started.append([Path(words[1]).name, *words[2:]])
        file = ROOT / os.path.relpath(words[1], ROOT)
        specification = importlib.util.spec_from_file_location(f"{file.stem}_script", file)
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        ended = run_here(lambda: module.main(words[2:]), *words[2:])
        print(ended.stderr, file=sys.stderr, end="")
        if ended.returncode:
            raise SystemExit(ended.returncode)

    use_hub(downloads.hub, downloads.folder / "hub", monkeypatch)
    monkeypatch.setattr(commands, "run", run_in_this_process)
    monkeypatch.chdir(ROOT)
    return started


def run_main(*options: str) -> subprocess.CompletedProcess:
    return run_here(lambda: reproduce.main([*options]), *options)


@pytest.mark.slow
def test_from_downloads_to_the_page(downloads, here, tmp_path):
    """The command itself until Ctrl-C in the training; then the same command in this process."""
    archive, server = "clotho_audio_development.7z", downloads.server
    half = len(server.files[archive]) // 2
    server.faults[archive] = [half, "503"]
    options = downloads.options(tmp_path)
    variables = {"HF_ENDPOINT": downloads.hub.address, "HF_HUB_CACHE": downloads.folder / "hub"}
    variables |= {"HF_HUB_DISABLE_XET": 1, "HF_HUB_OFFLINE": 0, "OMP_NUM_THREADS": 1}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.reproduce", *options],
            cwd=ROOT,
            env=os.environ | {name: str(value) for name, value in variables.items()},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    wait_for(lambda: list(tmp_path.glob("runs/*/states/step-*")), process)
    process.send_signal(signal.SIGINT)
    code, said = process.wait(timeout=PATIENCE), (tmp_path / "log").read_text()
    assert code == 130, said
    assert "Traceback" not in said and "continue from" in said
    assert said.splitlines()[-1].startswith("interrupted; go on with the same command: python -m")
    digest = hashlib.sha256((downloads.folder / "weights/atst_as2M.ckpt").read_bytes()).hexdigest()
    assert f"atst_as2M.ckpt loads, sha256 {digest}" in said
    assert f"roberta-large loads, revision {downloads.hub.sha('roberta-large')}" in said
    ranges = [found for name, found in server.requests if name == archive]
    assert ranges == [None, f"bytes={half}-", f"bytes={half}-"]
    (run,) = (path for path in (tmp_path / "runs").iterdir() if path.is_dir())
    assert not (run / "metrics.json").exists() and not (tmp_path / "results.md").exists()

    ended = run_main(*options)
    assert ended.returncode == 0, ended.stderr
    assert [words[0] for words in here] == ["train.py", "evaluate.py", "evaluate.py"]
    assert here[0][-1] == "--resume"
    history = (run / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in history] == [*range(1, 7)]
    assert "published, last" in ended.stdout and "31.041" in ended.stdout
    record = TrainingRecord.read(run.with_suffix(".json"))
    assert len(record.sessions) == 2 and record.is_complete and 0 < record.hours < 1

    (row,) = json.loads((tmp_path / "results.json").read_text())["runs"]
    trained = json.loads((run / "metrics.json").read_text())  # by train.py, not by evaluate.py
    for name in ("last", "best"):
        for metric, (mean, low, high) in row["scores"][name].items():
            assert mean == pytest.approx(trained[name]["text_to_audio"][metric])
            assert low <= mean <= high
    assert row["changed"][-1] == "clips: 6 development, 3 validation, 4 evaluation"
    assert row["seed"] == 124 and set(TINY) - {*row["changed"]} == {
        "data.num_workers=0",
        "train.save_every_steps=1",
        "evaluation.num_pictures=0",
    }
    text = (tmp_path / "results.md").read_text()
    assert "| tap | 1, altered | last |" in text and "| tap | published | last | 31.041" in text

    # what is done is not done again
    here.clear()
    server.requests.clear()
    measure.cache_clear()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}, digests(tmp_path)
    again = run_main(*options)
    assert again.returncode == 0 and here == server.requests == []
    tables = [said[said.index("tap: %") :] for said in (ended.stdout, again.stdout)]
    assert tables[0] == tables[1] and again.stdout.count("done") == 1
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}, digests(tmp_path)
    assert after == before

    # a run of other settings is not taken for this one
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("max_tokens: 32", "max_tokens: 16"))
    refused = run_main(*options)
    assert refused.returncode == 2 and "text_encoder.max_tokens" in refused.stderr


def test_a_corrupted_archive_is_one_line_and_no_training(downloads, here, tmp_path):
    archive, server = "clotho_audio_evaluation.7z", downloads.server
    whole = server.files[archive]
    server.files[archive] = whole[:-1] + b"x"
    try:
        ended = run_main(*downloads.options(tmp_path))
    finally:
        server.files[archive] = whole
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 2 and archive in line and "md5" in line
    assert [words[0] for words in here] == ["build_clotho.py"]
    assert not (tmp_path / "clotho" / "cache").exists() and not (tmp_path / "runs").exists()


# --- checks ---


def refused(*options: str) -> str:
    """The errors of a command that ends with exit code 2, a line each."""
    ended = run_main(*options)
    assert ended.returncode == 2, ended
    lines = [line for line in ended.stderr.splitlines() if "out of reach" not in line]  # the hub
    assert lines and all(line.startswith("error: ") for line in lines), ended
    return "\n".join(lines)


@pytest.fixture
def with_card(monkeypatch) -> None:
    monkeypatch.setattr(reproduce, "visible_gpus", lambda: [CARD])


def tiny_weights(folder: Path) -> Path:
    folder.mkdir()
    write_atst_checkpoint(folder / "atstframe_base_as2M.ckpt", ATST)
    return folder


def test_no_gpu_is_refused_with_the_days_and_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "visible_gpus", list)
    output = ("--output", str(tmp_path / "runs"), "--experiments", "tap")
    line = refused(*output)
    assert "no GPU" in line and "days" in line and "--cpu" in line
    monkeypatch.setattr(reproduce, "visible_gpus", lambda: [CARD])
    assert "--num-processes 1" in refused("--num-processes", "2", *output)
    assert list(tmp_path.iterdir()) == []


def test_missing_weights_are_named_with_address_and_place(tmp_path, with_card):
    places = ("--weights", str(tmp_path / "w"), "--output", str(tmp_path / "runs"))
    places += ("--experiments", "tap")
    line = refused(*places)
    assert weights.ATST_PAGE in line and f"{tmp_path / 'w'}/" in line
    assert all(name in line for name in ("atstframe_base_as2M.ckpt", "atst_as2M.ckpt"))
    # even where the rest is not checked
    assert weights.ATST_PAGE in refused("--unchecked", *places)


@pytest.mark.parametrize("name", weights.AUDIO_WEIGHTS["atst_frame"].names)
def test_both_names_of_atst_are_taken(tmp_path, name):
    (tmp_path / name).touch()
    assert weights.AUDIO_WEIGHTS["atst_frame"].place(tmp_path) == tmp_path / name


def test_passt_is_downloaded_without_a_checksum(tmp_path, downloads, monkeypatch):
    downloads.server.files["passt.pt"] = b"weights" * 1000
    downloads.server.faults["passt.pt"] = [3000]
    url = f"{downloads.server.url}/passt.pt"
    passt = weights.AudioWeights(("passt.pt",), url, by_hand=False, gigabytes=0.1)
    passt.provide(tmp_path / "weights")
    assert passt.place(tmp_path / "weights").read_bytes() == b"weights" * 1000
    downloads.server.requests.clear()
    passt.provide(tmp_path / "weights")
    assert downloads.server.requests == []


def test_addresses_are_those_of_the_docs():
    text = (ROOT / "docs/clotho.md").read_text(encoding="utf-8")
    for audio in weights.AUDIO_WEIGHTS.values():
        assert audio.url in text and f"`{audio.names[0]}`" in text and audio.names[-1] in text


def test_too_little_disk_memory_or_gpu_memory(tmp_path, with_card, monkeypatch):
    places = ["--weights", str(tiny_weights(tmp_path / "w")), "--root", str(tmp_path / "clotho")]
    options = [*places, "--output", str(tmp_path / "runs"), "--experiments", "tap", "--dry-run"]
    free = SimpleNamespace(free=10**12)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    size = checks.ModelSize(450_000_000, step_bytes=10.0 * 2**30, host_bytes=6.0 * 2**30)
    monkeypatch.setattr(checks, "model_size", lambda *of: size)
    monkeypatch.setattr(checks, "available_memory", lambda: 2.0**40)
    fine = run_main(*options)
    assert fine.returncode == 0, fine.stderr
    assert "NVIDIA Test Card" in fine.stdout and "Clotho 26.6 GB" in fine.stdout
    assert f"Clotho, {tmp_path / 'clotho'}: to be downloaded and built" in fine.stdout
    # two models of 1.8 GB, two states of 5.4 GB, a model beside them
    assert "1 run 16.2 GB" in fine.stdout

    free.free = 5 * 10**9
    line = refused(*options)
    assert "too little disk" in line and "--root" in line and "5.0 GB are free" in line
    free.free = 10**12
    monkeypatch.setattr(checks, "available_memory", lambda: 2.0**30)
    assert "too little memory" in refused(*options)
    free.free = 5 * 10**9
    both = refused(*options).splitlines()
    assert len(both) == 2 and "too little disk" in both[0] and "too little memory" in both[1]
    free.free = 10**12
    monkeypatch.setattr(checks, "available_memory", lambda: 2.0**40)
    small = Gpu("Small", 4 * 2**30, "GPU-5")
    monkeypatch.setattr(reproduce, "visible_gpus", lambda: [small])
    line = refused(*options)
    assert "Small has 4.0 GiB" in line and "train.micro_batch_size" in line
    goes_on = run_main("--unchecked", *options)
    assert goes_on.returncode == 0 and "warning: too little memory" in goes_on.stdout
    assert not (tmp_path / "clotho").exists() and not (tmp_path / "runs").exists()


def test_sizes_are_counted_without_weights(downloads):
    options = ["--experiments", "tap,baseline", "--set", *TINY]
    options += ["--text-encoder", str(downloads.folder / "roberta")]
    tap, baseline = reproduce.plan(reproduce.parse_arguments(options))
    model = build_model(tap.config.model_copy(update={"audio_encoder": AudioEncoderConfig(**ATST)}))
    size = checks.model_size(tap.config, 1, on_gpu=False)
    assert size.num_parameters == sum(weight.numel() for weight in model.parameters())
    assert size.num_parameters > checks.model_size(baseline.config, 1, False).num_parameters
    assert size.step_bytes > 16 * size.num_parameters  # weights, gradients, AdamW's two moments
    assert checks.model_size(tap.config, 2, on_gpu=False).step_bytes < size.step_bytes


def test_what_is_on_the_disk_is_not_needed_again(tmp_path):
    root = tmp_path / "clotho"
    (root / "development").mkdir(parents=True)
    (root / "development" / "a.wav").touch()
    os.truncate(root / "development" / "a.wav", 7_100_000_000)  # sparse
    (need,) = checks.disk_needs([], 10**6, root, tmp_path / "runs")
    assert need.gigabytes == pytest.approx(26.6 - 7.1)
    (root / "cache").mkdir()
    (root / "cache" / "cache.json").touch()
    assert checks.disk_needs([], 10**6, root, tmp_path / "runs") == []


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        (["--experiments", "tap,tape"], "'tape'"),
        (["--experiments", "tap,tap"], "twice"),
        (["--experiments", "passt_stage2"], "passt_stage2"),
        (["--seeds", "0"], "--seeds 0"),
        (["--seeds", "a"], "--seeds 'a'"),
        (["--seeds", "7,7"], "--seeds 7,7"),
        (["--set", "seed=7"], "--seeds"),
        (["--set", "data.cache=x"], "--root"),
        (["--set", "train.epoch=7"], "train.epochs"),
        (["--num-processes", "0"], "--num-processes 0"),
        (["--output", "runs/a,b"], "comma"),
        (["--text-encoder", "absent"], "--text-encoder absent"),
        (["--checksums", "absent"], "--checksums absent"),
        (["--results", ""], "--results"),
        (["--results", "docs"], "--results docs"),
        (["--results", "results.json"], "results.md"),
    ],
)
def test_mistakes_are_one_line(options, culprit):
    assert culprit in refused(*options)


@pytest.mark.parametrize("option", ["--output", "--root"])
def test_a_file_in_place_of_a_folder_is_refused_at_once(option, tmp_path, with_card):
    (tmp_path / "file").touch()
    places = {"--output": str(tmp_path / "runs"), "--root": str(tmp_path / "clotho")}
    places |= {option: str(tmp_path / "file" / "folder"), "--results": str(tmp_path / "page.md")}
    line = refused("--dry-run", *(word for place in places.items() for word in place))
    assert str(tmp_path / "file") in line


def test_a_run_folder_that_is_a_file_and_a_damaged_cache_are_refused_at_once(tmp_path, with_card):
    words = ["--output", str(tmp_path), "--root", str(tmp_path / "clotho"), "--dry-run"]
    words += ["--results", str(tmp_path / "page.md")]
    (tmp_path / "tap_124").touch()
    assert f"{tmp_path / 'tap_124'} is not a folder" in refused(*words)
    (tmp_path / "tap_124").unlink()
    (tmp_path / "clotho" / "cache").mkdir(parents=True)
    (tmp_path / "clotho" / "cache" / "cache.json").touch()
    assert "cache.json" in refused(*words)


def test_seeds_are_a_number_or_a_list():
    assert (parse_seeds("3"), parse_seeds("7,8"), parse_seeds("7,")) == (3, [7, 8], [7])
    planned = reproduce.plan(
        reproduce.parse_arguments(["--seeds", "2", "--set", "data.num_workers=1"])
    )
    assert [(one.experiment, one.seed) for one in planned] == [
        *(("tap", 124), ("tap", 125), ("low_lr", 327), ("low_lr", 328)),
        *(("baseline", 123), ("baseline", 124)),
    ]
    assert not any(one.changed for one in planned) and planned[0].is_published_seed
    (altered,) = reproduce.plan(
        reproduce.parse_arguments(["--experiments", "tap", "--set", "train.epochs=2"])
    )
    assert altered.changed == ("train.epochs=2",) and altered.folder != planned[0].folder
    assert set(EXPERIMENTS) < set(PUBLISHED)


# --- commands, GPUs, energy ---


def test_several_gpus_train_by_the_launcher(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(commands, "run", lambda words, environment: started.append(words))
    monkeypatch.setattr(reproduce, "describe_weights", lambda config: [])
    monkeypatch.setattr(reproduce, "clips_of_cache", lambda cache: {})
    options = ["--experiments", "tap", "--output", str(tmp_path / "runs")]
    (training,) = reproduce.plan(reproduce.parse_arguments(options))
    reproduce.train(training, 2, [CARD, CARD], {})
    (words,) = started
    launch, script = words[: words.index("train.py")], words[words.index("train.py") :]
    assert launch_command_parser().parse_args([*launch[4:], "train.py"]).num_processes == 2
    assert script[1:3] == ["--config", "configs/tap.yaml"] and "seed=124" in script
    assert TrainingRecord.read(training.record).processor == "2 x NVIDIA Test Card"


def test_a_command_that_fails_or_is_killed(capfd):
    with pytest.raises(SystemExit) as failed:
        commands.run([sys.executable, "-c", "raise SystemExit(2)"], {})
    assert failed.value.code == 2
    kill = "import os; os.kill(os.getpid(), 9)"
    with pytest.raises(UserError, match="SIGKILL"):
        commands.run([sys.executable, "-c", kill], {})
    with pytest.raises(KeyboardInterrupt):  # somebody else stopped a training
        commands.run([sys.executable, "-c", "raise SystemExit(130)"], {})
    commands.run([sys.executable, "-c", "import os; print(os.environ['X'])"], {"X": "given"})
    assert capfd.readouterr().out.endswith("given\n")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_command_as_it_came(signum, tmp_path):
    """SIGTERM as Ctrl-C: the command ends first, then every `finally` here, and one line."""
    wait = f"""
import signal, sys, time
from pathlib import Path
def handle(number, frame):
    Path({str(tmp_path / "got")!r}).write_text(str(number))
    sys.exit(1)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, handle)
Path({str(tmp_path / "started")!r}).touch()
time.sleep(600)
"""
    code = f"""
import sys
from benchmarks.reproduce import commands
from retrieval.base.command import run_main
from retrieval.base.interrupts import watch_sigterm
def main():
    try:
        commands.run([sys.executable, "-c", {wait!r}], {{}})
    finally:
        print("finally")
watch_sigterm()
run_main(main, interrupted="interrupted; go on")
"""
    command = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        wait_for(lambda: (tmp_path / "started").exists(), process)
        process.send_signal(signum)
        output, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said) == (130, "interrupted; go on\n")
    assert output.endswith("finally\n") and (tmp_path / "got").read_text() == str(int(signum))


def test_a_command_ends_with_a_killed_parent(tmp_path):
    child = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
    script = f"""
import sys
from benchmarks.reproduce import commands
commands.run([sys.executable, "-c", {child + "time.sleep(1000)"!r}], {{}})
"""
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), parent)
    number = int((tmp_path / "pid").read_text())
    parent.kill()
    parent.wait()

    def is_gone() -> bool:
        with suppress(OSError):
            return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        return True

    wait_for(is_gone)


def test_gpus_are_those_that_torch_sees(monkeypatch, capsys):
    card = SimpleNamespace(name="Card", total_memory=2**34, uuid="12-34")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    assert gpus.main() == 0
    said = capsys.readouterr().out
    answer = subprocess.CompletedProcess([], 0, said, "")
    monkeypatch.setattr(subprocess, "run", lambda *words, **options: answer)
    assert gpus.visible_gpus() == [Gpu("Card", 2**34, "GPU-12-34")]
    answer.returncode, answer.stderr = 1, "Traceback\nImportError: no CUDA\n"
    with pytest.raises(UserError, match="no CUDA"):
        gpus.visible_gpus()


class FakeNvml:
    """libnvidia-ml as its C header declares the four functions; two GPUs of 5 and 7 joules."""

    def __init__(self, supported: bool = True):
        self.supported, self.open = supported, 0

    def nvmlInit_v2(self) -> int:
        self.open += 1
        return 0

    def nvmlShutdown(self) -> int:
        self.open -= 1
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle) -> int:
        known = {b"GPU-a": 5000, b"GPU-b": 7000}
        handle._obj.value = known.get(uuid)
        return 0 if uuid in known else 6

    def nvmlDeviceGetTotalEnergyConsumption(self, handle, energy) -> int:
        energy._obj.value = handle.value or 0
        return 0 if self.supported else 3


def test_energy_where_the_driver_tells_it(monkeypatch):
    nvml = FakeNvml()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: nvml)
    both = [Gpu("A", 1, "GPU-a"), Gpu("B", 1, "GPU-b")]
    assert gpus.energy_joules(both) == 12.0
    assert gpus.energy_joules([Gpu("C", 1, "GPU-c")]) is None
    assert gpus.energy_joules([]) is None
    assert nvml.open == 0
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeNvml(supported=False))
    assert gpus.energy_joules(both) is None

    def absent(name: str) -> None:
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert gpus.energy_joules(both) is None


def test_the_record_sums_sessions_and_knows_a_killed_one(tmp_path, monkeypatch):
    counted = iter([1e6, 4.6e6, 5e6, 8.6e6, None, None])
    monkeypatch.setattr("benchmarks.reproduce.record.energy_joules", lambda gpus: next(counted))
    record = TrainingRecord(tmp_path / "tap.json", [], "Card")
    with record.session([]):
        pass
    with suppress(KeyboardInterrupt), TrainingRecord.read(record.path).session([]):
        raise KeyboardInterrupt
    found = TrainingRecord.read(record.path)
    assert len(found.sessions) == 2 and found.is_complete and found.kilowatt_hours == 2.0
    found.sessions[0]["seconds"], found.sessions[1]["seconds"] = 7200, None
    with found.session([]):
        pass
    killed = TrainingRecord.read(record.path)
    assert killed.hours == pytest.approx(2.0, abs=0.01) and not killed.is_complete
    assert killed.kilowatt_hours is None
    record.path.write_text("[]")
    with pytest.raises(UserError, match=r"tap\.json"):
        TrainingRecord.read(record.path)


# --- tables ---


def make_row(score: float = 0.31, commit: str = "a" * 40, **more) -> page.Row:
    triple = [score, score - 0.01, score + 0.01]
    return {
        "experiment": "tap",
        "seed": 124,
        "commit": commit,
        "changed": [],
        "scores": {name: dict.fromkeys(NAMES, triple) for name in ("last", "best")},
        "processor": "NVIDIA GeForce RTX 4090",
        "hours": 7.25,
        "hours_complete": True,
        "kilowatt_hours": 2.5,
        "day": "2026-12-01",
        "command": "python -m benchmarks.reproduce --experiments tap",
        "weights": [],
        **more,
    }


def test_a_row_takes_the_place_of_the_same_run(tmp_path):
    path = tmp_path / "results.md"
    page.add_row(path, make_row())
    page.add_row(path, make_row(seed=125, score=0.33))
    page.add_row(path, make_row(commit="b" * 40, hours_complete=False, kilowatt_hours=None))
    page.add_row(path, make_row(score=0.35))
    assert [row["seed"] for row in page.read_rows(path)] == [124, 125, 124]
    text = path.read_text()
    assert "| tap | 1 | last | 35.00 [34.0, 36.0] |" in text
    # (35 + 33) / 2, and the standard deviation of a sample
    assert "| tap | mean of 2 at `aaaaaaa` | last | 34.00 ± 1.41 |" in text
    card = "NVIDIA GeForce RTX 4090"
    assert f"| 1 | tap | 124 | `aaaaaaa` | {card} | 7.25 | 2.50 kWh | 2026-12-01 |" in text
    assert f"| 3 | tap | 124 | `bbbbbbb` | {card} | over 7.25 | not told |" in text
    wide = {"experiment": "passt_stage1", "seed": 409194, "changed": ["clips: 1 evaluation"]}
    page.add_row(path, make_row(score=0.4, **wide))
    changed = make_row(
        changed=["train.epochs=2", "clips: 1 evaluation"], commit="c" * 40 + "-dirty"
    )
    page.add_row(path, changed)
    text = path.read_text()
    assert "| tap | 5, altered | best |" in text and "`ccccccc-dirty`" in text
    assert "1 changed setting, other clips: results.json" in text
    assert max(map(len, text.splitlines())) <= 120


def test_text_around_the_tables_stays_and_markers_are_needed(tmp_path):
    path = tmp_path / "results.md"
    path.write_text(f"# Mine\n\nbefore\n\n{page.BEGIN}\nold\n{page.END}\n\nafter\n")
    page.add_row(path, make_row())
    text = path.read_text()
    assert text.startswith("# Mine\n\nbefore\n") and text.endswith("\n\nafter\n")
    assert "old" not in text
    path.write_text("# Mine\n")
    with pytest.raises(UserError, match=r"results\.md"):
        page.check(path)
    path.write_bytes(b"\xe9")
    with pytest.raises(UserError, match=r"results\.md is not UTF-8"):
        page.check(path)
    for damaged in ('{"runs": [{}]}', '{"runs": null}', '{"runs": {}}', "[]"):
        path.with_suffix(".json").write_text(damaged)
        with pytest.raises(UserError, match=r"results\.json"):
            page.check(path)


def test_the_page_of_the_project_is_made_from_its_rows():
    path = ROOT / "docs/results.md"
    text = path.read_text(encoding="utf-8")
    assert f"{page.BEGIN}\n{page.render(page.read_rows(path))}\n{page.END}" in text


def test_the_table_of_several_seeds(tmp_path):
    """Two runs of four queries about two clips, with ranks that are known."""
    options = ["--experiments", "tap", "--seeds", "2", "--output", str(tmp_path / "runs")]
    trainings = reproduce.plan(reproduce.parse_arguments(options))
    for training, ranks in zip(trainings, ((1, 1, 2, 20), (1, 5, 2, 1)), strict=True):
        for name in ("last", "best"):
            folder = training.results(name)
            folder.mkdir(parents=True)
            (folder / "metrics.json").write_text(
                json.dumps(
                    {
                        "num_clips": 2,
                        "text_to_audio": dict.fromkeys(NAMES, 0),
                        "chance": {"text_to_audio": dict.fromkeys(NAMES, 0)},
                    }
                )
            )
            rows = [f"text {i},{'ab'[i // 2]}.wav,x,{rank}" for i, rank in enumerate(ranks)]
            lines = ["query,clip,top_1,ranks", *rows]
            (folder / "ranks.csv").write_text("\n".join(lines) + "\n")
    table = format_experiment(trainings).splitlines()
    assert "over 2 clips" in table[0] and table[2].split()[:3] == ["published,", "last", "31.041"]
    # R@1: 2 of 4, 2 of 4; R@5: 3 of 4, 4 of 4
    assert table[3].startswith("seed 124, last") and "75.00 [50.0, 100.0]" in table[3]
    (mean,) = (line for line in table if line.startswith("mean of 2 seeds, last"))
    assert "50.00 ± 0.00" in mean and "87.50 ± 17.68" in mean
    assert table[-1].startswith("altered")  # two clips are not Clotho
    # clip a has 4 of 4, clip b 3 of 4
    assert "87.50 ± 17.68 [75.0, 100.0]" in mean


def test_the_verdict_names_where_the_published_score_lies():
    # published: 31.041, 19.368, 46.775, 60.976
    low = Interval(0.30, 0.29, 0.305)
    scores = dict(zip(NAMES, [low, Interval(0.2, 0.19, 0.21), low, Interval(0.7, 0.69, 0.71)]))
    text = verdict("tap", scores)
    assert "within it for R@1;" in text and "above it for mAP@10, R@5;" in text
    assert text.endswith("below it for R@10")
    assert format_interval(low) == "30.00 [29.0, 30.5]"
    assert format_interval(low, spread=0.001) == "30.00 ± 0.10 [29.0, 30.5]"
