"""Sounds decoded in another process: the same numbers, and a crash costs one file."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from retrieval.base import decoder_process, sound
from retrieval.base.errors import UserError
from retrieval.base.sound import SoundFacts, UnreadableSound
from tests.conftest import ROOT, SAMPLE_RATE

LONG = 60  # s, many blocks


@pytest.fixture
def order(tmp_path) -> Callable[[str], Path]:
    """Writes a file that tells crashing_reader what to do."""

    def write(words: str) -> Path:
        path = tmp_path / f"{words}.wav"
        path.write_text(words)
        return path

    return write


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> list[Path]:
    folder, rng = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    long = rng.uniform(-0.5, 0.5, (LONG * 8000, 2))
    soundfile.write(folder / "long.wav", long, 8000)
    soundfile.write(folder / "long.mp3", long[:, 0], 8000)
    soundfile.write(folder / "short.flac", long[:5000, 0], SAMPLE_RATE)
    latin = Path(os.fsdecode(os.fsencode(folder) + b"/latin\xe9.wav"))
    soundfile.write(os.fsencode(latin), long[:777], 44_100, format="WAV")
    return [folder / "long.wav", folder / "long.mp3", folder / "short.flac", latin]


def read(path: Path, **settings) -> np.ndarray:
    return np.concatenate(list(decoder_process.mono_blocks(path, SAMPLE_RATE, **settings)))


def pid_of_child(order) -> int:
    return int(read(order("pid")).view(np.float64)[0])


def wait_for_end(pid: int) -> None:
    """Until the process is gone, or a zombie that another process has to bury."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} lives on")


def num_open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- the same as in this process ---


@pytest.mark.parametrize("settings", [{}, {"max_seconds": 7.5}, {"quality": "VHQ"}], ids=str)
def test_blocks_and_facts_are_those_of_the_reader_to_the_last_bit(sounds, settings):
    for path in sounds:
        here, there = SoundFacts(), SoundFacts()
        expected = list(sound.mono_blocks(path, SAMPLE_RATE, facts=here, **settings))
        found = list(decoder_process.mono_blocks(path, SAMPLE_RATE, facts=there, **settings))
        assert [len(block) for block in found] == [
            len(block) for block in expected
        ] and here == there
        assert all(
            block.dtype == np.float32 and np.array_equal(block, other)
            for block, other in zip(found, expected)
        )


def test_errors_are_those_of_the_reader(sounds, tmp_path, monkeypatch):
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "empty.wav").touch()
    cut = tmp_path / "cut.wav"
    cut.write_bytes(sounds[0].read_bytes()[:-70_000])
    monkeypatch.chdir(tmp_path)  # a relative path is the parent's
    for path in ("absent.wav", tmp_path / "text.wav", "empty.wav", os.fsencode(cut)):
        raised, num_blocks = [], []
        for reader in (sound.mono_blocks, decoder_process.mono_blocks):
            blocks = []
            with pytest.raises((UnreadableSound, FileNotFoundError)) as caught:
                blocks.extend(reader(path, SAMPLE_RATE))
            raised.append(
                (type(caught.value), getattr(caught.value, "strerror", None) or str(caught.value))
            )
            num_blocks.append(len(blocks))
        assert raised[0] == raised[1] and num_blocks[0] == num_blocks[1]


def test_a_stream_that_is_left_in_the_middle_harms_no_other(sounds, crashing, order):
    expected, pid = read(sounds[2]), pid_of_child(order)
    for num_blocks in (1, 2, 3):
        stream = decoder_process.mono_blocks(sounds[0], SAMPLE_RATE)
        for _ in range(num_blocks):
            next(stream)
        stream.close()
        assert np.array_equal(read(sounds[2]), expected)
    assert pid_of_child(order) == pid  # by the same child


def test_several_threads_at_once(sounds):
    expected = [read(path) for path in sounds]
    wrong: list[object] = []

    def work(number: int) -> None:
        try:
            for step in range(6):
                place = (number + step) % len(sounds)
                if not np.array_equal(read(sounds[place]), expected[place]):
                    wrong.append(place)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_any_frames_of_a_file_with_its_channels(sounds):
    for path in sounds:
        with sound.SoundReader(path) as reader:
            whole = np.concatenate(list(reader.blocks(100_000)))
            facts = reader.sample_rate, reader.channels, reader.announced_frames
        for first, num_frames in (
            (0, 700),
            (300, 10),
            (len(whole) - 5, 100),
            (len(whole) + 9, 3),
            (0, 0),
            (0, 2 * len(whole)),
        ):
            found, info = decoder_process.read_frames(path, first, num_frames)
            assert (
                found.shape[1] == info.channels
                and (info.sample_rate, info.channels, info.num_frames) == facts
            )
            np.testing.assert_allclose(found, whole[first : first + num_frames], atol=1e-6)
    with pytest.raises(FileNotFoundError):
        decoder_process.read_frames(sounds[0].with_name("absent.wav"), 0, 1)


def test_frames_of_a_file_that_has_changed(tmp_path, sounds):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.full(1000, 0.25), SAMPLE_RATE)
    assert decoder_process.read_frames(path, 10, 5)[0].tolist() == [[0.25]] * 5
    soundfile.write(path, np.full((500, 2), 0.5), SAMPLE_RATE)
    found, info = decoder_process.read_frames(path, 490, 20)
    assert found.tolist() == [[0.5, 0.5]] * 10 and info.num_frames == 500
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(UnreadableSound):
        decoder_process.read_frames(tmp_path / "text.wav", 0, 1)


def test_a_player_survives_a_file_that_crashes_at_a_seek(crashing, sounds, tmp_path):
    bad = tmp_path / "dies from 1 s" / "bad.wav"
    bad.parent.mkdir()
    bad.write_bytes(sounds[0].read_bytes())
    for _ in range(2):
        assert len(decoder_process.read_frames(bad, 0, 100)[0]) == 100
        with pytest.raises(UnreadableSound, match="SIGSEGV"):
            decoder_process.read_frames(bad, 10_000, 100)
        assert len(decoder_process.read_frames(sounds[0], 10_000, 100)[0]) == 100


# --- what happens to the child ---

DEATHS = [
    ("die SIGSEGV 0", "crashed (SIGSEGV)"),
    ("die SIGSEGV 5", "crashed (SIGSEGV)"),
    ("die SIGABRT 1", "crashed (SIGABRT)"),
    ("die SIGBUS 2", "crashed (SIGBUS)"),
    ("die SIGFPE 0", "crashed (SIGFPE)"),
    ("die SIGKILL 1", "was killed"),
    ("null-pointer", "crashed (SIGSEGV)"),
    ("soxr", "decoder crashed (SIG"),
    ("exit", "exit code 3"),
    ("bomb", "memory"),
    ("hang", "no progress"),
    ("bug", "KeyError"),
]


@pytest.mark.parametrize(("words", "reason"), DEATHS)
def test_a_file_that_ends_the_decoder_costs_itself(crashing, order, capfd, words, reason):
    with pytest.raises(UnreadableSound) as caught:
        read(order(words))
    assert reason in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_the_files_between_those_that_end_the_decoder(sounds, crashing, order):
    for words, reason in (DEATHS[1], DEATHS[-2]):
        assert len(read(sounds[2])) == 5000
        with pytest.raises(UnreadableSound) as caught:
            read(order(words))
        assert reason in str(caught.value)
    assert len(read(sounds[2])) == 5000


def test_what_libraries_print_goes_nowhere(crashing, order, capfd):
    assert np.array_equal(read(order("chatter")), np.ones(1000))
    assert capfd.readouterr() == ("", "")


def test_what_an_earlier_file_has_spoilt_is_not_blamed_on_a_later_one(sounds, crashing, order):
    read(sounds[2])
    assert np.array_equal(read(order("die-unless-first")), np.ones(1000))


@pytest.mark.parametrize("is_first", [True, False])
def test_a_child_that_is_killed_from_outside(sounds, crashing, order, is_first):
    expected = np.concatenate(list(sound.mono_blocks(sounds[0], SAMPLE_RATE)))
    if not is_first:
        read(sounds[2])
    stream = decoder_process.mono_blocks(sounds[0], SAMPLE_RATE)
    blocks = [next(stream)]
    (child,) = decoder_process._all
    os.kill(child._process.pid, signal.SIGKILL)
    if is_first:  # it may well have been the file
        with pytest.raises(UnreadableSound, match="was killed"):
            blocks.extend(stream)
    else:  # goes on in the middle, in another child
        blocks.extend(stream)
        assert np.array_equal(np.concatenate(blocks), expected)
    (idle_pid,) = {pid_of_child(order)}
    os.kill(idle_pid, signal.SIGKILL)  # between two files
    assert len(read(sounds[2])) == 5000


def test_neither_processes_nor_open_files_are_left(sounds, crashing, order):
    read(sounds[2])
    decoder_process.close_all()
    before, pids = num_open_files(), []
    for _ in range(2):
        pids.append(pid_of_child(order))
        for words in ("die SIGSEGV 1", "exit"):
            with pytest.raises(UnreadableSound):
                read(order(words))
        stream = decoder_process.mono_blocks(sounds[0], SAMPLE_RATE)
        next(stream)
        pids.append(next(iter(decoder_process._all))._process.pid)
        decoder_process.close_all()
        stream.close()
        pids.append(pid_of_child(order))
    decoder_process.close_all()
    assert num_open_files() == before
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []  # no zombie either


PARENT = """
import sys
from retrieval.base import decoder_process
stream = decoder_process.mono_blocks(sys.argv[1], 16_000)
if sys.argv[2] == "streaming":
    next(stream)
else:
    list(stream)
print(*[child._process.pid for child in decoder_process._all], flush=True)
if sys.argv[2] != "ends":
    sys.stdin.read()
"""


@pytest.mark.parametrize("state", ["streaming", "idle", "ends"])
def test_a_child_ends_with_its_parent(sounds, state):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, sounds[0], state],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    (pid,) = map(int, parent.stdout.readline().split())
    if state != "ends":
        parent.kill()
    parent.wait()
    wait_for_end(pid)
    parent.stdin.close()
    parent.stdout.close()


def test_ctrl_c_is_the_parents_business(sounds, crashing, order):
    pid = pid_of_child(order)
    os.kill(pid, signal.SIGINT)
    assert pid_of_child(order) == pid and os.getpgid(pid) != os.getpgid(0)


def test_a_forked_copy_of_the_parent_has_children_of_its_own(sounds, crashing, order):
    pid = pid_of_child(order)
    stream = decoder_process.mono_blocks(sounds[0], SAMPLE_RATE)
    first = next(stream)
    copy = os.fork()
    if copy == 0:
        code = 1
        try:
            stream.close()
            code = 0 if len(read(sounds[2])) == 5000 and decoder_process._all else 2
            decoder_process.close_all()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]) == 0
    expected = np.concatenate(list(sound.mono_blocks(sounds[0], SAMPLE_RATE)))
    assert np.array_equal(np.concatenate([first, *stream]), expected) and pid_of_child(order) == pid


# --- where it starts ---


def test_a_file_in_the_current_folder_takes_the_place_of_no_module(sounds, tmp_path, monkeypatch):
    for name in ("json", "struct", "numpy", "soundfile", "soxr", "retrieval", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("import os; os._exit(9)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    decoder_process.close_all()
    assert len(read(sounds[2])) == 5000


def test_a_decoder_that_does_not_start_is_one_line(sounds, monkeypatch, capfd):
    decoder_process.close_all()
    monkeypatch.setattr(decoder_process, "READER", "no_such_module")
    with pytest.raises(UserError, match="no_such_module"):
        read(sounds[2])
    monkeypatch.setattr(sys, "executable", "/absent/python")
    with pytest.raises(UserError, match="cannot be started: No such file"):
        read(sounds[2])
    assert decoder_process._all == set() and capfd.readouterr().err == ""


def test_a_child_that_is_killed_while_it_starts_is_started_again(sounds, tmp_path, monkeypatch):
    decoder_process.close_all()
    kill = (
        f"import os; place = {str(tmp_path)!r}; number = len(os.listdir(place)); "
        "os.mkdir(os.path.join(place, str(number))); number < {} and os.kill(os.getpid(), 9)\n"
    )
    monkeypatch.setattr(decoder_process, "START", kill.format(2) + decoder_process.START)
    assert decoder_process.read_frames(sounds[0], 0, 10)[1].sample_rate > 0
    assert len(list(tmp_path.iterdir())) == 3  # two were killed
    decoder_process.close_all()
    with pytest.raises(UserError, match="does not start"):
        monkeypatch.setattr(decoder_process, "START", kill.format(9) + decoder_process.START)
        decoder_process.read_frames(sounds[0], 0, 10)


def test_a_child_is_light(sounds, crashing, order):
    modules = (Path(f"/proc/{pid_of_child(order)}/maps")).read_text()
    assert "soundfile" in modules or "sndfile" in modules
    assert "libtorch" not in modules and "pyarrow" not in modules


def test_a_child_writes_no_core_dump_and_takes_bounded_memory(crashing, order):
    limits = Path(f"/proc/{pid_of_child(order)}/limits").read_text()
    soft = {line[:26].strip(): line[26:].split()[0] for line in limits.splitlines()}
    assert (
        soft["Max core file size"] == "0"
        and int(soft["Max data size"]) <= decoder_process.MEMORY_LIMIT
    )
