"""A stand-in for the Hugging Face hub: what huggingface_hub asks when it makes a repository,
uploads a folder and downloads it again.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

WRITER, READER = "hf_writer", "hf_reader"  # tokens; any other is not valid
LFS_BYTES = 10_000  # larger files go to the large-file storage, as *.safetensors do


class Hub:
    """`repos`: name -> path -> content, of what was committed. `visibility`: name -> what
    create_repo asked for. `requests`: what was called.
    """

    def __init__(self):
        self.repos: dict[str, dict[str, bytes]] = {}
        self.visibility: dict[str, str | None] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.address = ""

    def sha(self, repo: str) -> str:
        return hashlib.sha1(repr(sorted(self.repos[repo].items())).encode()).hexdigest()


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


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
                ):
                    return self.refuse(403)
                return function(self, body, *match.groups())
        return self.refuse(404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

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

    def info(self, _body: bytes, repo: str) -> None:
        if repo not in self.hub.repos:
            return self.refuse(404, X_Error_Code="RepoNotFound")
        files = [{"rfilename": path} for path in self.hub.repos[repo]]
        return self.answer(
            {
                "_id": "1",
                "id": repo,
                "modelId": repo,
                "sha": self.hub.sha(repo),
                "private": False,
                "tags": [],
                "siblings": files,
            }
        )

    def tree(self, _body: bytes, repo: str) -> None:
        files = self.hub.repos[repo].items()
        self.answer(
            [
                {
                    "type": "file",
                    "path": path,
                    "size": len(content),
                    "oid": hashlib.sha1(content).hexdigest(),
                }
                for path, content in files
            ]
        )

    def file(self, _body: bytes, repo: str, path: str) -> None:
        content = self.hub.repos.get(repo, {}).get(path)
        if content is None:
            return self.refuse(
                404, X_Error_Code="EntryNotFound" if repo in self.hub.repos else "RepoNotFound"
            )
        return self.answer(
            content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=self.hub.sha(repo)
        )


REPO = r"([\w.\-]+/[\w.\-]+)"
ROUTES = (
    ("GET", "/?", _Handler.root),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("POST", rf"/api/models/{REPO}/preupload/main", _Handler.preupload),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/lfs/(\w+)", _Handler.store),
    ("POST", rf"/api/models/{REPO}/commit/main", _Handler.commit),
    ("GET", rf"/api/models/{REPO}(?:/revision/\w+)?", _Handler.info),
    ("GET", rf"/api/models/{REPO}/tree/\w+", _Handler.tree),
    ("GET", rf"/{REPO}/resolve/\w+/(.+)", _Handler.file),
)
