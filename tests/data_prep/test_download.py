"""build_clotho.py --download from a server that breaks off, refuses, or sends something else."""

import hashlib
import http.server
import os
import resource
import shutil
import struct
import threading
import zlib
from pathlib import Path

import py7zr
import pytest

from data_prep import build_clotho
from data_prep.corpora import resumable_download
from data_prep.corpora.clotho_download import MD5
from data_prep.corpora.resumable_download import extract_wav_folder, fetch_file, file_md5
from retrieval.base.errors import UserError
from tests.conftest import ROOT
from tests.data_prep.test_build_clotho import error_line, load, write_split

PUBLISHED = ROOT.parent / "shared" / "data" / "clotho_v2.1_md5.txt"
CONTENT = bytes(range(256)) * 400


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; each request for a file uses up the next of its `faults`.

    An int breaks off after that many bytes; a str is a status or `no range`.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.requests = {}, {}, []  # requests: (name, Range header)
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.partition("?")[0].lstrip("/")
        range_header = self.headers.get("Range")
        self.server.requests.append((name, range_header))
        fault = self.server.faults.get(name, [])[:1]
        del self.server.faults.get(name, [])[:1]
        if name not in self.server.files or (
            fault and str(fault[0]).isdigit() and isinstance(fault[0], str)
        ):
            return self.send_error(int(fault[0]) if fault else 404)
        content = self.server.files[name]
        start = int(range_header[6:-1]) if range_header and fault != ["no range"] else 0
        if start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        end = start + fault[0] if fault and isinstance(fault[0], int) else len(content)
        self.wfile.write(content[start:end])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(resumable_download, "BACKOFF", 0.001)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def md5(content):
    return hashlib.md5(content).hexdigest()


def fetch(server, path, expected=CONTENT):
    fetch_file(f"{server.url}/{path.name}?download=1", path, md5(expected))


def test_a_broken_connection_is_taken_up_where_it_broke(tmp_path, server):
    server.files["x.bin"] = CONTENT
    server.faults["x.bin"] = [50_000, "503", 20_000, 0]
    fetch(server, tmp_path / "x.bin")
    assert (tmp_path / "x.bin").read_bytes() == CONTENT
    assert [r for _, r in server.requests] == [
        None,
        "bytes=50000-",
        "bytes=50000-",
        "bytes=70000-",
        "bytes=70000-",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["x.bin"]


def test_an_earlier_part_is_taken_up(tmp_path, server):
    server.files["x.bin"] = CONTENT
    (tmp_path / "x.bin.part").write_bytes(CONTENT[:60_000])
    fetch(server, tmp_path / "x.bin")
    assert (tmp_path / "x.bin").read_bytes() == CONTENT and server.requests == [
        ("x.bin", "bytes=60000-")
    ]


def test_a_server_without_ranges_starts_over(tmp_path, server):
    server.files["x.bin"] = CONTENT
    server.faults["x.bin"] = [70_000, "no range"]
    fetch(server, tmp_path / "x.bin")
    assert (tmp_path / "x.bin").read_bytes() == CONTENT and len(server.requests) == 2


@pytest.mark.parametrize("part", [b"of another file", CONTENT + b"too long"])
def test_a_part_of_another_file_is_fetched_afresh(tmp_path, server, part):
    server.files["x.bin"] = CONTENT
    (tmp_path / "x.bin.part").write_bytes(part)
    fetch(server, tmp_path / "x.bin")
    assert (tmp_path / "x.bin").read_bytes() == CONTENT and server.requests[-1] == ("x.bin", None)


def test_a_good_file_is_not_fetched_again_and_another_one_is_kept(tmp_path, server):
    server.files["x.bin"] = CONTENT
    fetch(server, tmp_path / "x.bin")
    fetch(server, tmp_path / "x.bin")
    assert len(server.requests) == 1
    (tmp_path / "x.bin").write_bytes(b"my own")
    fetch(server, tmp_path / "x.bin")
    assert (tmp_path / "x.bin").read_bytes() == CONTENT and (
        tmp_path / "x.bin.old"
    ).read_bytes() == b"my own"


def test_wrong_md5_is_an_error_and_leaves_nothing(tmp_path, server):
    server.files["x.bin"] = b"something else"
    with pytest.raises(
        UserError, match=f"md5 is {md5(b'something else')}, expected {md5(CONTENT)}"
    ):
        fetch(server, tmp_path / "x.bin")
    assert not list(tmp_path.iterdir())


def test_a_server_that_gives_nothing_is_given_up(tmp_path, server):
    server.files["x.bin"] = CONTENT
    server.faults["x.bin"] = [10_000] + ["503"] * 20
    with pytest.raises(
        UserError,
        match=(
            "503 Service Unavailable, 6 times in a row; run the same command again to go on from"
            " 10000 bytes"
        ),
    ):
        fetch(server, tmp_path / "x.bin")
    assert (tmp_path / "x.bin.part").stat().st_size == 10_000
    with pytest.raises(UserError, match="the server answers 404"):
        fetch(server, tmp_path / "absent.bin")
    with pytest.raises(UserError, match="Connection refused"):
        fetch_file("http://127.0.0.1:9/x.bin", tmp_path / "x.bin", md5(CONTENT))
    with pytest.raises(UserError, match="unknown url type"):
        fetch_file("nonsense/x.bin", tmp_path / "x.bin", md5(CONTENT))


def test_disk_full_is_one_line(tmp_path, server, monkeypatch):
    server.files["x.bin"] = CONTENT
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(UserError, match="ulimit -f"):
            fetch(server, tmp_path / "x.bin")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    fetch(server, tmp_path / "x.bin")
    assert (
        server.requests[-1] == ("x.bin", "bytes=50000-")
        and (tmp_path / "x.bin").read_bytes() == CONTENT
    )


def pack(folder, archive, name):
    with py7zr.SevenZipFile(archive, "w") as file:
        file.writeall(folder, name)


def test_extraction_is_all_or_nothing(tmp_path):
    write_split(tmp_path / "corpus")
    pack(tmp_path / "corpus" / "evaluation", tmp_path / "a.7z", "some/where")
    extract_wav_folder(tmp_path / "a.7z", tmp_path / "evaluation", 1e9)
    assert sorted(path.name for path in (tmp_path / "evaluation").iterdir()) == ["a.wav", "b.wav"]
    content = (tmp_path / "a.7z").read_bytes()
    damaged = bytearray(content)
    damaged[200:220] = bytes(20)
    for name, data in (
        ("cut", content[: len(content) // 2]),
        ("text", b"no archive"),
        ("damaged", bytes(damaged)),
        ("empty", b""),
    ):
        (tmp_path / "b.7z").write_bytes(data)
        with pytest.raises(UserError, match="cannot be unpacked"):
            extract_wav_folder(tmp_path / "b.7z", tmp_path / name, 1e9)
    (tmp_path / "corpus" / "evaluation" / "a.wav").rename(tmp_path / "corpus" / "a.wav")
    pack(tmp_path / "corpus", tmp_path / "c.7z", "corpus")
    with pytest.raises(UserError, match="holds 2 folders with .wav files, expected one"):
        extract_wav_folder(tmp_path / "c.7z", tmp_path / "two", 1e9)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [
        "corpus",
        "evaluation",
    ]


# --- archives that are no plain folder of WAV files; written by py7zr, or changed as a writer of
# malice would ---


def wav_archive(
    path: Path,
    *,
    names: tuple[str, ...] = ("folder/a.wav", "folder/b.wav"),
    num_bytes: int = 3000,
    **settings,
) -> Path:
    with py7zr.SevenZipFile(path, "w", **settings) as file:
        file.set_encoded_header_mode(False)  # names and methods can be read in the file
        for name in names:
            file.writestr(os.urandom(10) + bytes(num_bytes - 10), name)
    return path


def patched(path: Path, old: bytes, new: bytes) -> Path:
    """`old` in the archive's table of contents replaced, its checksums right again."""
    content = bytearray(path.read_bytes())
    offset, size = struct.unpack("<QQ", content[12:28])
    header = bytes(content[32 + offset : 32 + offset + size])
    assert header.count(old) == 1 and len(old) == len(new)
    content[32 + offset : 32 + offset + size] = header = header.replace(old, new)
    content[28:32] = struct.pack("<I", zlib.crc32(header))
    content[8:12] = struct.pack("<I", zlib.crc32(content[12:32]))
    path.write_bytes(content)
    return path


def with_link(path: Path) -> Path:
    folder = path.parent / "folder"
    folder.mkdir()
    (folder / "a.wav").write_bytes(bytes(100))
    (folder / "b.wav").symlink_to("/etc/passwd")
    with py7zr.SevenZipFile(path, "w") as file:
        file.writeall(folder, "folder")
    return path


def first_volume(path: Path) -> Path:
    wav_archive(path)
    path.write_bytes(path.read_bytes()[:60])
    return path


def empty_archive(path: Path) -> Path:
    py7zr.SevenZipFile(path, "w").close()
    return path


def name(text: str) -> bytes:
    return text.encode("utf-16-le")


ARCHIVES = {
    "password": (lambda path: wav_archive(path, password="secret"), "password"),
    "password, names hidden": (
        lambda path: wav_archive(path, password="secret", header_encryption=True),
        "password",
    ),
    "link": (with_link, "link"),
    "absolute name": (
        lambda path: patched(
            wav_archive(path, names=("xsrv/a.wav",)), name("xsrv/"), name("/srv/")
        ),
        "outside",
    ),
    "name that climbs": (
        lambda path: patched(wav_archive(path, names=("xx/a.wav",)), name("xx/"), name("../")),
        "outside",
    ),
    "name of a drive": (
        lambda path: patched(wav_archive(path, names=("xx/a.wav",)), name("xx/"), name("C:/")),
        "outside",
    ),
    "unknown method": (
        lambda path: patched(wav_archive(path), b"\x21\x21\x01", b"\x21\x7f\x01"),
        "cannot be unpacked",
    ),
    "one of several parts": (first_volume, "cannot be unpacked"),
    "nothing in it": (empty_archive, "7z"),
    "no sounds in it": (lambda path: wav_archive(path, names=("a.txt",)), "0 folders"),
    "bomb": (lambda path: wav_archive(path, num_bytes=3_000_000), "announces"),
    "disk too small for it": (wav_archive, "free"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_of_another_kind_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, kind):
    write, expected = ARCHIVES[kind]
    if kind == "disk too small for it":
        monkeypatch.setattr(
            shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 4000, 4000)
        )
    archive = write(tmp_path / "a.7z")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=expected) as caught:
        extract_wav_folder(archive, tmp_path / "evaluation", 1e6)
    assert str(archive) in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_disk_that_fills_up_while_unpacking(tmp_path):
    archive = wav_archive(tmp_path / "a.7z", num_bytes=200_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(UserError, match="ulimit -f"):
            extract_wav_folder(archive, tmp_path / "evaluation", 1e9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["a.7z"]
    extract_wav_folder(archive, tmp_path / "evaluation", 1e9)


def test_damage_anywhere_is_one_line_or_does_no_harm(tmp_path):
    content = wav_archive(tmp_path / "a.7z").read_bytes()
    (header,) = struct.unpack("<Q", content[12:20])
    refused = 0
    for place in [*range(32), *range(32, 32 + header, 40), *range(32 + header, len(content))]:
        for byte in (0, 0xFF):
            damaged = bytearray(content)
            damaged[place] = byte
            if place >= 32 + header:  # checksums that fit, as a writer of malice would have
                damaged[28:32] = struct.pack("<I", zlib.crc32(damaged[32 + header :]))
                damaged[8:12] = struct.pack("<I", zlib.crc32(damaged[12:32]))
            (tmp_path / "b.7z").write_bytes(damaged)
            try:
                extract_wav_folder(tmp_path / "b.7z", tmp_path / "evaluation", 1e6)
                shutil.rmtree(tmp_path / "evaluation")
            except UserError as error:
                assert "\n" not in str(error)
                refused += 1
            assert sorted(path.name for path in tmp_path.iterdir()) == ["a.7z", "b.7z"]
    assert refused > 100


@pytest.fixture
def mirror(tmp_path, server):
    """Arguments that download evaluation from the local server."""
    source = write_split(tmp_path / "source", names=["a.wav", "caf\u00e9 [2] .wav"])
    pack(source / "evaluation", source / "clotho_audio_evaluation.7z", "evaluation")
    server.files = {path.name: path.read_bytes() for path in source.iterdir() if path.is_file()}
    checksums = tmp_path / "md5.txt"
    checksums.write_text(
        "# mirror\n"
        + "".join(f"{md5(content)}  {name}\n" for name, content in server.files.items())
    )
    root = tmp_path / "root"
    download = ["--download", "--base-url", server.url, "--checksums", str(checksums)]
    return root, ["--root", str(root), "--splits", "evaluation", "--num-proc", "1", *download]


def test_download_unpack_build(mirror, server, capsys):
    root, arguments = mirror
    server.faults["clotho_audio_evaluation.7z"] = [
        len(server.files["clotho_audio_evaluation.7z"]) // 2
    ]
    assert build_clotho.main(arguments) == 0
    assert load(root / "cache")["file_name"][:] == ["a.wav", "caf\u00e9 [2] .wav"]
    num_requests = len(server.requests)
    assert num_requests == 4
    (root / "clotho_audio_evaluation.7z").unlink()  # not needed again while the folder is there
    assert build_clotho.main(arguments) == 0
    assert len(server.requests) == num_requests and "already built" in capsys.readouterr().out


def test_bad_mirrors_are_one_line(mirror, server, capsys, tmp_path):
    root, arguments = mirror
    good = server.files["clotho_metadata_evaluation.csv"]
    server.files["clotho_metadata_evaluation.csv"] = b"<html>not here</html>"
    assert build_clotho.main(arguments) == 2
    assert "clotho_metadata_evaluation.csv?download=1: md5 is" in error_line(capsys)
    server.files["clotho_metadata_evaluation.csv"] = good
    for content, expected in (
        ("d41d8\n", "expected lines of md5 and name"),
        ("# nothing\n", "has no line for clotho_captions"),
    ):
        (tmp_path / "md5.txt").write_text(content)
        assert build_clotho.main(arguments) == 2
        assert expected in error_line(capsys)
    assert build_clotho.main([*arguments[:-1], str(tmp_path / "absent.txt")]) == 2
    assert "cannot be read" in error_line(capsys)
    assert not (root / "cache").exists()


def test_file_md5(tmp_path):
    (tmp_path / "x").write_bytes(CONTENT * 20)  # more than one block
    assert file_md5(tmp_path / "x") == md5(CONTENT * 20) != md5(CONTENT)


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the list of published md5 values is not here")
def test_md5_values_are_the_published_ones():
    lines = [
        line.split() for line in PUBLISHED.read_text().splitlines() if not line.startswith("#")
    ]
    published = {name: value for value, name in lines}
    assert published == MD5
