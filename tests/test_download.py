"""build_clotho.py --download against a local server that breaks off, refuses, starts over, or sends something else."""

import hashlib
import http.server
import sys
import threading
from pathlib import Path

import py7zr
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "data_prep"))

import build_clotho  # noqa: E402
import resumable_download  # noqa: E402
from clotho_download import MD5  # noqa: E402
from prep_errors import UserError  # noqa: E402
from resumable_download import extract_wav_folder, fetch_file, file_md5  # noqa: E402
from test_build_clotho import error_line, load, write_split  # noqa: E402

PUBLISHED = ROOT.parent / "shared" / "data" / "clotho_v2.1_md5.txt"
CONTENT = bytes(range(256)) * 400


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`. `faults[name]` is used up one a request: an int breaks off after so many bytes, a str is a status or `no range`."""

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
        if name not in self.server.files or (fault and str(fault[0]).isdigit() and isinstance(fault[0], str)):
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
    assert [r for _, r in server.requests] == [None, "bytes=50000-", "bytes=50000-", "bytes=70000-", "bytes=70000-"]
    assert [path.name for path in tmp_path.iterdir()] == ["x.bin"]


def test_an_earlier_part_is_taken_up(tmp_path, server):
    server.files["x.bin"] = CONTENT
    (tmp_path / "x.bin.part").write_bytes(CONTENT[:60_000])
    fetch(server, tmp_path / "x.bin")
    assert (tmp_path / "x.bin").read_bytes() == CONTENT and server.requests == [("x.bin", "bytes=60000-")]


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
    assert (tmp_path / "x.bin").read_bytes() == CONTENT and (tmp_path / "x.bin.old").read_bytes() == b"my own"


def test_wrong_md5_is_an_error_and_leaves_nothing(tmp_path, server):
    server.files["x.bin"] = b"something else"
    with pytest.raises(UserError, match=f"md5 is {md5(b'something else')}, expected {md5(CONTENT)}"):
        fetch(server, tmp_path / "x.bin")
    assert not list(tmp_path.iterdir())


def test_a_server_that_gives_nothing_is_given_up(tmp_path, server):
    server.files["x.bin"] = CONTENT
    server.faults["x.bin"] = [10_000] + ["503"] * 20
    with pytest.raises(UserError, match="503 Service Unavailable, 6 times in a row; run the same command again to go on from 10000 bytes"):
        fetch(server, tmp_path / "x.bin")
    assert (tmp_path / "x.bin.part").stat().st_size == 10_000
    with pytest.raises(UserError, match="the server answers 404"):
        fetch(server, tmp_path / "absent.bin")
    with pytest.raises(UserError, match="Connection refused"):
        fetch_file("http://127.0.0.1:9/x.bin", tmp_path / "x.bin", md5(CONTENT))
    with pytest.raises(UserError, match="unknown url type"):
        fetch_file("nonsense/x.bin", tmp_path / "x.bin", md5(CONTENT))


def test_disk_full_is_one_line(tmp_path, server, monkeypatch):
    import resource

    server.files["x.bin"] = CONTENT
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(UserError, match="disk full"):
            fetch(server, tmp_path / "x.bin")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    fetch(server, tmp_path / "x.bin")
    assert server.requests[-1] == ("x.bin", "bytes=50000-") and (tmp_path / "x.bin").read_bytes() == CONTENT


def pack(folder, archive, name):
    with py7zr.SevenZipFile(archive, "w") as file:
        file.writeall(folder, name)


def test_extraction_is_all_or_nothing(tmp_path):
    write_split(tmp_path / "corpus")
    pack(tmp_path / "corpus" / "evaluation", tmp_path / "a.7z", "some/where")
    extract_wav_folder(tmp_path / "a.7z", tmp_path / "evaluation")
    assert sorted(path.name for path in (tmp_path / "evaluation").iterdir()) == ["a.wav", "b.wav"]
    content = (tmp_path / "a.7z").read_bytes()
    damaged = bytearray(content)
    damaged[200:220] = bytes(20)
    for name, data in (("cut", content[: len(content) // 2]), ("text", b"no archive"), ("damaged", bytes(damaged)), ("empty", b"")):
        (tmp_path / "b.7z").write_bytes(data)
        with pytest.raises(UserError, match="cannot be unpacked"):
            extract_wav_folder(tmp_path / "b.7z", tmp_path / name)
    (tmp_path / "corpus" / "evaluation" / "a.wav").rename(tmp_path / "corpus" / "a.wav")
    pack(tmp_path / "corpus", tmp_path / "c.7z", "corpus")
    with pytest.raises(UserError, match="holds 2 folders with .wav files, expected one"):
        extract_wav_folder(tmp_path / "c.7z", tmp_path / "two")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["corpus", "evaluation"]


@pytest.fixture
def mirror(tmp_path, server):
    """Arguments that download evaluation from the local server."""
    source = write_split(tmp_path / "source", names=["a.wav", "caf\u00e9 [2] .wav"])
    pack(source / "evaluation", source / "clotho_audio_evaluation.7z", "evaluation")
    server.files = {path.name: path.read_bytes() for path in source.iterdir() if path.is_file()}
    checksums = tmp_path / "md5.txt"
    checksums.write_text("# mirror\n" + "".join(f"{md5(content)}  {name}\n" for name, content in server.files.items()))
    root = tmp_path / "root"
    download = ["--download", "--base-url", server.url, "--checksums", str(checksums)]
    return root, ["--root", str(root), "--splits", "evaluation", "--num-proc", "1", *download]


def test_download_unpack_build(mirror, server, capsys):
    root, arguments = mirror
    server.faults["clotho_audio_evaluation.7z"] = [len(server.files["clotho_audio_evaluation.7z"]) // 2]
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
    for content, expected in (("d41d8\n", "expected lines of md5 and name"), ("# nothing\n", "has no line for clotho_captions")):
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
    lines = [line.split() for line in PUBLISHED.read_text().splitlines() if not line.startswith("#")]
    published = {name: value for value, name in lines}
    assert published == MD5
