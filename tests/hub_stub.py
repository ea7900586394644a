"""A stand-in for the Hugging Face hub: what huggingface_hub asks when it makes a repository,
uploads a folder and downloads it again, from any revision, and what `datasets` asks to read one.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from huggingface_hub import constants

from retrieval.models.hub import hub_answers

WRITER, READER = "hf_writer", "hf_reader"  # tokens; any other is not valid
LFS_BYTES = 10_000  # larger files go to the large-file storage, as *.safetensors do


class Hub:
    """`repos`: name -> path -> content, of what was committed. `visibility`: name -> what
    create_repo asked for. `requests`: what was called. `revisions`: name -> branch, tag or commit
    -> path -> content, beside the main branch. `gated`: names whose files are refused. `broken`:
    paths whose download ends half-way.
    """

    def __init__(self):
        self.repos: dict[str, dict[str, bytes]] = {}
        self.visibility: dict[str, str | None] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.revisions: dict[str, dict[str, dict[str, bytes]]] = {}
        self.gated: set[str] = set()
        self.broken: set[str] = set()
        self.address = ""

    def sha(self, repo: str, revision: str = "main") -> str:
        files = self.files(repo, revision)
        return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()

    def files(self, repo: str, revision: str) -> dict[str, bytes] | None:
        """The files of a branch, tag or commit; None if there is none."""
        if repo not in self.repos:
            return None
        named = {**self.revisions.get(repo, {}), "main": self.repos[repo]}
        for files in named.values():
            if hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest() == revision:
                return files
        return named.get(revision)

    def add(self, repo: str, folder: Path, revision: str = "main") -> None:
        """The content of a folder as a repository, or as one of its revisions."""
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        self.revisions.setdefault(repo, {})[revision] = files
        if revision == "main":
            self.repos[repo] = files


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    # 0.01 s: how soon it ends
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def use_hub(hub: Hub, home: Path, monkeypatch) -> None:
    """Make this process ask `hub`, with its cache in `home`. Without xet, whose protocol the
    stand-in does not speak.
    """
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub_answers.cache_clear()


@contextmanager
def hub_of(folders: dict[str, Path], home: Path, monkeypatch) -> Iterator[Hub]:
    """A hub that this process asks, with model folders as some/NAME."""
    with running_hub() as running:
        for name, folder in folders.items():
            running.add(f"some/{name}", folder)
        use_hub(running, home, monkeypatch)
        yield running
    monkeypatch.undo()


def go_offline(monkeypatch) -> None:
    """As HF_HUB_OFFLINE=1, which is read at import."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub_answers.cache_clear()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def answer(self, content: dict | list | bytes, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, **headers: str) -> None:
        self.answer({"error": "refused"}, status, **headers)

    def handle_request(self) -> None:
        path, body = (
            unquote(urlsplit(self.path).path),
            self.rfile.read(int(self.headers.get("Content-Length") or 0)),
        )
        self.hub.requests.append(f"{self.command} {path}")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in (WRITER, READER):
            return self.refuse(401)
        for method, pattern, function in ROUTES:
            if method == self.command.replace("HEAD", "GET") and (
                match := re.fullmatch(pattern, path)
            ):
                if (
                    method != "GET"
                    and not path.startswith("/lfs/")
                    and token != WRITER
                    and "validate" not in path
                    and "paths-info" not in path
                ):
                    return self.refuse(403)
                return function(self, body, *match.groups())
        return self.refuse(404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def absent(self, repo: str) -> str:
        return "RevisionNotFound" if repo in self.hub.repos else "RepoNotFound"

    def root(self, _body: bytes) -> None:
        self.answer(b"")

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization'] or 'me'}/{asked['name']}"
        if name in self.hub.repos:
            return self.answer({"error": "exists", "url": f"{self.hub.address}/{name}"}, 409)
        self.hub.repos[name], self.hub.visibility[name] = {}, asked.get("visibility")
        return self.answer({"url": f"{self.hub.address}/{name}"})

    def validate(self, body: bytes) -> None:
        header = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
        self.answer(
            {
                "errors": [] if isinstance(header, dict) else [{"message": "no header"}],
                "warnings": [],
            }
        )

    def preupload(self, body: bytes, _repo: str) -> None:
        modes = {True: "lfs", False: "regular"}
        files = json.loads(body)["files"]
        self.answer(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": modes[file["size"] > LFS_BYTES],
                        "shouldIgnore": False,
                    }
                    for file in files
                ]
            }
        )

    def batch(self, body: bytes, _repo: str) -> None:
        objects = json.loads(body)["objects"]
        actions = {
            item["oid"]: {"upload": {"href": f"{self.hub.address}/lfs/{item['oid']}"}}
            for item in objects
        }
        self.answer(
            {
                "transfer": "basic",
                "objects": [item | {"actions": actions[item["oid"]]} for item in objects],
            }
        )

    def store(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self.refuse(400)
        self.hub.large[oid] = body
        return self.answer(b"")

    def commit(self, body: bytes, repo: str) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.hub.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.repos[repo][value["path"]] = self.hub.large[value["oid"]]
        sha = self.hub.sha(repo)
        self.answer(
            {
                "success": True,
                "commitOid": sha,
                "commitUrl": f"{self.hub.address}/{repo}/commit/{sha}",
                "hookOutput": "",
            }
        )

    def info(self, _body: bytes, repo: str, revision: str | None) -> None:
        revision = revision or "main"
        content = self.hub.files(repo, revision)
        if content is None:
            return self.refuse(404, X_Error_Code=self.absent(repo))
        files = [{"rfilename": path} for path in content]
        return self.answer(
            {
                "_id": "1",
                "id": repo,
                "modelId": repo,
                "sha": self.hub.sha(repo, revision),
                "private": False,
                "gated": "manual" if repo in self.hub.gated else False,
                "tags": [],
                "siblings": files,
            }
        )

    def may_read(self, _body: bytes, repo: str) -> None:
        if repo in self.hub.gated:
            return self.refuse(403, X_Error_Code="GatedRepo")
        return self.answer(b"")

    def tree(self, _body: bytes, repo: str, revision: str, below: str | None = None) -> None:
        files = self.hub.files(repo, revision)
        if files is None:
            return self.refuse(404, X_Error_Code=self.absent(repo))
        prefix, entries = f"{below}/" if below else "", {}
        is_recursive = "recursive=true" in self.path.lower()
        for path, content in files.items():
            if not path.startswith(prefix):
                continue
            first, slash, _ = path.removeprefix(prefix).partition("/")
            if slash:
                folder = {"type": "directory", "path": prefix + first, "oid": "0" * 40, "size": 0}
                entries[prefix + first] = folder
            if is_recursive or not slash:
                entries[path] = _entry(path, content)
        return self.answer([*entries.values()])

    def paths_info(self, _body: bytes, repo: str, revision: str) -> None:
        self.answer([_entry(*item) for item in self.hub.files(repo, revision).items()])

    def file(self, _body: bytes, repo: str, revision: str, path: str) -> None:
        if repo in self.hub.gated:
            return self.refuse(403, X_Error_Code="GatedRepo")
        content = (self.hub.files(repo, revision) or {}).get(path)
        if content is not None and path in self.hub.broken and self.command == "GET":
            self.close_connection = True
            headers = {"Content-Length": str(len(content))}
            return self.answer(content[: len(content) // 2], **headers)
        if content is None:
            return self.refuse(
                404, X_Error_Code="EntryNotFound" if repo in self.hub.repos else "RepoNotFound"
            )
        headers = {
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "X-Repo-Commit": self.hub.sha(repo, revision),
            "Accept-Ranges": "bytes",
        }
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), min(len(content) - 1, int(asked[2] or len(content)))
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return self.answer(content[first : last + 1], 206, **headers)
        return self.answer(content, **headers)


def _entry(path: str, content: bytes) -> dict[str, str | int]:
    oid = hashlib.sha1(content).hexdigest()
    return {"type": "file", "path": path, "size": len(content), "oid": oid}


REPO = r"([\w.\-]+(?:/[\w.\-]+)?)"  # user/name, and old names such as roberta-large
KIND = "(?:models|datasets)"
ROUTES = (
    ("GET", "/?", _Handler.root),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("POST", rf"/api/models/{REPO}/preupload/main", _Handler.preupload),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/lfs/(\w+)", _Handler.store),
    ("POST", rf"/api/models/{REPO}/commit/main", _Handler.commit),
    ("GET", rf"/api/{KIND}/{REPO}(?:/revision/(\w+))?", _Handler.info),
    ("GET", rf"/api/{KIND}/{REPO}/auth-check", _Handler.may_read),
    ("GET", rf"/api/{KIND}/{REPO}/tree/(\w+)(?:/(.+))?", _Handler.tree),
    ("POST", rf"/api/{KIND}/{REPO}/paths-info/(\w+)", _Handler.paths_info),
    ("GET", rf"/(?:datasets/)?{REPO}/resolve/(\w+)/(.+)", _Handler.file),
)
