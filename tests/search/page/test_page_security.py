"""The page under attack: paths and URLs in events, origins, others' uploads, passwords, floods.

The requests are those of a program. test_page.py shows, in Chromium, that a browser's still work.
"""

import asyncio
import gc
import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

import pytest

from retrieval.search import AudioIndex
from retrieval.search.page import clients as clients_module
from retrieval.search.page import password as password_module
from retrieval.search.page.clients import Clients, Refused, safe_name
from retrieval.search.page.command import main
from retrieval.search.page.gate import ANSWERS, FILES, JOIN, PREFIXES, ROUTES, UPLOAD
from retrieval.search.page.password import Password
from tests.conftest import ROOT, mistake
from tests.search.page.test_page import QUERY, indexed, models, served, sounds  # noqa: F401

BOUNDARY = "----boundary"
FIELDS = ("", 0, 8, 10, "", None)  # below the question: folder, lengths, number, ...
NEEDS_ORIGIN = [
    ("POST", JOIN),
    ("POST", UPLOAD),
    ("GET", "/presence"),
    ("GET", "/recording?file=low%20steady.wav"),
    ("GET", "/config"),
]


def ask_directly(app, event: object) -> tuple[int, bytes]:
    """Post an event to the application without a network between: thousands of them in seconds."""
    messages, body = [], json.dumps(event).encode()
    headers = {
        "host": "localhost:1",
        "content-type": "application/json",
        "content-length": str(len(body)),
    }
    scope = {
        "type": "http",
        "method": "POST",
        "scheme": "http",
        "path": JOIN,
        "query_string": b"",
        "server": ("localhost", 1),
        "client": ("127.0.0.1", 2),
    }

    async def receive() -> dict:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict) -> None:
        messages.append(message)

    asyncio.run(
        app(
            scope
            | {"headers": [(name.encode(), value.encode()) for name, value in headers.items()]},
            receive,
            send,
        )
    )
    return messages[0]["status"], messages[1]["body"]


def browser_form(content: bytes, name: str = "own.wav") -> bytes:
    disposition = f'Content-Disposition: form-data; name="files"; filename="{name}"'
    head = f"--{BOUNDARY}\r\n{disposition}\r\nContent-Type: audio/wav\r\n\r\n"
    return head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()


class Browser:
    """A client with its own cookie jar, as it reaches the page over HTTP."""

    def __init__(self, address: str):
        self.address, self.cookie = address, ""

    def ask(
        self, method: str, path: str, body: bytes | str | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=60)
        connection.request(
            method,
            path,
            body,
            ({"Cookie": self.cookie} if self.cookie else {})
            | {key.replace("_", "-"): value for key, value in headers.items()},
        )
        answer = connection.getresponse()
        content = answer.read()
        self.cookie = (answer.getheader("set-cookie") or self.cookie).partition(";")[0]
        connection.close()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content

    def post(self, path: str, event: object, **headers: str) -> tuple[int, bytes]:
        code, _, body = self.ask(
            "POST", path, json.dumps(event), Content_Type="application/json", **headers
        )
        return code, body

    def upload(self, content: bytes, name: str = "own.wav", **headers: str) -> tuple[int, bytes]:
        body = browser_form(content, name)
        code, _, answer = self.ask(
            "POST",
            UPLOAD,
            body,
            Content_Type=f"multipart/form-data; boundary={BOUNDARY}",
            **headers,
        )
        return code, answer

    def answer(self, session_hash: str) -> str:
        return self.ask("GET", f"/gradio_api/queue/data?session_hash={session_hash}")[2].decode()


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Iterator[Path]:
    """Where Gradio would put its copies of files."""
    folder = tmp_path_factory.mktemp("gradio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def index(indexed) -> AudioIndex:  # noqa: F811
    return AudioIndex.open(indexed)


@pytest.fixture(scope="module")
def address(index, cache) -> Iterator[str]:
    with served(index) as address:
        yield address


@pytest.fixture
def browser(address) -> Browser:
    browser = Browser(address)
    assert browser.ask("GET", "/")[0] == 200 and browser.cookie
    return browser


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


# --- events ---


def dependencies(browser: Browser) -> Iterator[tuple[dict, list]]:
    """Every dependency of the page's own /config, with arguments that it would take."""
    config = json.loads(browser.ask("GET", "/config")[2])
    kinds = {component["id"]: component for component in config["components"]}
    valid = {
        "textbox": "a tone",
        "dropdown": "",
        "number": 3,
        "slider": 5,
        "button": "a tone",
        "file": None,
    }
    for dependency in config["dependencies"]:
        inputs = [kinds[number] for number in dependency["inputs"]]
        yield (
            dependency,
            [
                "" if one["props"].get("elem_id") == "upload-reference" else valid[one["type"]]
                for one in inputs
            ],
        )


def places(tmp_path: Path, address: str, others: str) -> dict[str, str]:
    """Everything that a path or URL can lead to."""
    (tmp_path / "secret.txt").write_text("the secret")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link.wav").symlink_to(tmp_path / "secret.txt")
    return {
        "file": str(tmp_path / "secret.txt"),
        "relative": os.path.relpath(tmp_path / "secret.txt"),
        "dots": f"{tmp_path}/no/../secret.txt",
        "device": "/dev/zero",
        "fifo": str(tmp_path / "fifo"),
        "folder": str(tmp_path),
        "link": str(tmp_path / "link.wav"),
        "url": f"{address}/config",
        "file url": f"file://{tmp_path}/secret.txt",
        "data": "data:audio/wav;base64,UklGRg==",
        "another client's": others,
    }


def shapes(place: str) -> list[object]:
    """A path or URL as an argument, in the shapes that Gradio opens and some around them."""
    file = {"path": place, "meta": {"_type": "gradio.FileData"}}
    return [
        file,
        file
        | {
            "url": place,
            "orig_name": place,
            "size": 1,
            "mime_type": "audio/wav",
            "is_stream": True,
        },
        {"path": "a.wav", "url": place, "meta": {"_type": "gradio.FileData"}},
        {"video": file, "subtitles": None},
        [[{"deep": [file]}]],
        {"value": place, "__type__": "update"},
        [place],
    ]


def test_no_argument_of_any_event_takes_a_path_or_url(
    address, browser, cache, index, tmp_path, capfd
):
    from retrieval.search.page.server import make_server

    app = make_server(index, tmp_path / "uploads", frozenset({"localhost"}))
    reference = json.loads(Browser(address).upload(b"another's")[1])[0]
    found, num_refused = list(dependencies(browser)), 0
    assert len(found) >= 10 and sum(len(data) for _, data in found) > 40
    for name, place in places(tmp_path, address, reference).items():
        for dependency, data in found:
            usual = {"fn_index": dependency["id"], "trigger_id": None, "session_hash": "s1"}
            events = [
                usual | {"data": [*data[:number], shape, *data[number + 1 :]]}
                for number in range(len(data))
                for shape in shapes(place)
            ]
            for shape in shapes(place):
                events += [
                    usual | {"data": data} | {key: shape}
                    for key in ("event_data", "session_hash", "trigger_id", "fn_index", "meta")
                ]
            events += [
                usual | {"data": data, "event_data": {"file": place, "start": 0, "end": 1}},
                usual | {"data": shapes(place)[0]},
            ]
            assert browser.post(JOIN, events[0])[0] in (404, 422)
            for event in events:
                code, body = ask_directly(app, event)
                assert 400 <= code < 500, (name, event)
                assert str(tmp_path).encode() not in body and str(cache).encode() not in body, body
                num_refused += 1
    assert num_refused > 5000
    assert list(cache.rglob("*")) == []
    assert "Traceback" not in capfd.readouterr().err


def test_no_other_way_to_an_event_is_open(address, browser, cache, tmp_path):
    paths = places(tmp_path, address, "x")
    for prefix in ("/gradio_api", ""):
        for dependency, data in dependencies(browser):
            for name in {"predict", str(dependency["api_name"] or "words"), str(dependency["id"])}:
                for way in (
                    f"/run/{name}",
                    f"/run/{name}/",
                    f"/api/{name}",
                    f"/call/{name}",
                    f"/call/v2/{name}",
                    f"/call/{name}/",
                ):
                    for event in (
                        {"data": data},
                        {"data": [shapes(paths["file"])[0]] * len(data)},
                        shapes(paths["device"])[0],
                    ):
                        if isinstance(event, dict) and "data" in event:
                            event |= {"fn_index": dependency["id"], "session_hash": "s1"}
                        assert browser.post(prefix + way, event)[0] in (404, 405)
    assert list(cache.rglob("*")) == []


def test_of_gradios_routes_those_of_the_page_are_open_alone(address, browser, index, tmp_path):
    """Whatever a new Gradio adds is closed."""
    from retrieval.search.page.server import make_server

    gate = make_server(index, tmp_path, frozenset({"localhost"}))
    mounted = [
        route.app
        for route in gate.app.routes
        if hasattr(route, "app") and hasattr(route.app, "routes")
    ]
    routes = [route for app in mounted for route in all_routes(app.routes)]
    assert len(routes) > 50
    for path, methods in routes:
        own = re.sub(r"\{[^}]*\}", "x", path)
        if own in ROUTES or own.startswith(PREFIXES):
            continue
        for method in methods | {"GET", "POST", "PUT", "DELETE", "OPTIONS"}:
            assert browser.ask(method, own)[0] in (404, 405), (method, own)


def all_routes(routes: list) -> list[tuple[str, set[str]]]:
    """Paths and methods, also of routers within."""
    found = []
    for route in routes:
        inner = getattr(getattr(route, "original_router", None), "routes", None) or getattr(
            route, "routes", None
        )
        if inner and not getattr(route, "methods", None):
            found += all_routes(inner)
        elif getattr(route, "path", None):
            found.append((route.path, set(route.methods or ())))
    return found


@pytest.mark.parametrize(
    "place",
    ["/etc/passwd", "etc/passwd", "../secret.wav", "http://127.0.0.1/x", "/dev/zero", "a/b", ""],
)
def test_no_file_is_served_but_ones_own_upload(browser, place):
    for way in (
        FILES,
        "/gradio_api/file/",
        "/file=",
        "/file/",
        "/gradio_api/proxy=",
        "/gradio_api/stream/",
        "/static/",
        "/assets/",
        "/svelte/",
    ):
        for spelling in (
            place,
            quote(place),
            quote(place, safe=""),
            f"../../../..{place}",
            f"..%2f..%2f..{place}",
            f"..%5c..{place}",
        ):
            code, _, body = browser.ask("GET", way + spelling.replace(" ", "%20"))
            assert code in (400, 403, 404) and b"root:" not in body


WRONG_EVENTS = [
    b"",
    b"no JSON",
    b"[]",
    b"null",
    b'{"data": [NaN]}',
    b'{"fn_index": 1e999, "data": []}',
    b"[" * 100_000,
    b'{"fn_index": ' + b"1" * 5000 + b', "data": []}',
    b"\xff\xfe",
    b'{"fn_index": 999, "data": [], "session_hash": "s1"}',
    b'{"fn_index": true, "data": [], "session_hash": "s1"}',
    b'{"fn_index": WORDS, "data": ["a"], "session_hash": "s1"}',
    b'{"fn_index": WORDS, "data": "a tone", "session_hash": "s1"}',
    b'{"fn_index": WORDS, "data": ["a tone", "not one", 0, 8, 10, "", null], "session_hash": "s1"}',
    b'{"fn_index": WORDS, "data": ["a tone", "", 0, 8, 10, 1, null], "session_hash": "s1"}',
    b'{"fn_index": WORDS, "data": ["a tone", "", 0, 8, 10, "", "0"], "session_hash": "s1"}',
    b'{"fn_index": WORDS, "data": ["a tone", "", 0, 8, 10, "", 1e99], "session_hash": "s1"}',
    b'{"fn_index": WORDS, "data": ["a tone", "", "0", 8, 10, "", null], "session_hash": "s1"}',
    b'{"fn_index": WORDS, "data": ["a tone", "", 0, 1e308, 10, "", null], "session_hash": "s1"}',
    b'{"fn_index": WORDS, "data": ["a tone", "", 0, 8, 1000000, "", null], "session_hash": "s1"}',
    b'{"fn_index": WORDS, "data": ["a tone", "", 0, 8, 2.5, "", null], "session_hash": "s1"}',
    b'{"fn_index": WORDS, "data": ["a tone", "", 0, 8, true, "", null], "session_hash": "s1"}',
    b'{"fn_index": WORDS, "data": ["a tone", "", 0, 8, 10, "", null], "session_hash": "../s1"}',
    b'{"fn_index": WORDS, "data": ["a tone", "", 0, 8, 10, "", null], "session_hash": null}',
    (
        b'{"fn_index": WORDS, "data": ["a tone", "", 0, 8, 10, "", null], "session_hash": "s1", '
        b'"event_data": {"file": "low steady.wav"}}'
    ),
    (
        b'{"fn_index": WORDS, "data": ["a tone", "", 0, 8, 10, "", null], "session_hash": "s1", '
        b'"batched": true}'
    ),
    b'{"fn_index": WORDS, "data": ["a tone", "../..", 0, 8, 10, "", null], "session_hash": "s1"}',
    b'{"fn_index": WORDS, "data": ["a tone", "far/", 0, 8, 10, "", null], "session_hash": "s1"}',
    b'{"fn_index": WORDS, "data": ["a tone", ["far"], 0, 8, 10, "", null], "session_hash": "s1"}',
    (
        b'{"fn_index": WORDS, "data": ["a tone", "", 0, 8, 10, "", null], "session_hash": "s1", '
        b'"event_data": ["text"]}'
    ),
    b'{"fn_index": LIKE, "data": ["", 0, 8, 10, "", null], "session_hash": "s1"}',
    (
        b'{"fn_index": LIKE, "data": ["", 0, 8, 10, "", null], "session_hash": "s1", '
        b'"event_data": {"file": "low steady.wav", "start": 1e15, "end": 2e15}}'
    ),
    (
        b'{"fn_index": LIKE, "data": ["", 0, 8, 10, "", null], "session_hash": "s1", '
        b'"event_data": {"file": "low steady.wav", "start": 100, "end": 101}}'
    ),
]


@pytest.mark.parametrize("body", WRONG_EVENTS, ids=lambda body: body[:60].decode("latin-1"))
def test_a_wrong_event_is_4xx_without_a_traceback(browser, capfd, body):
    for name in ("words", "like"):
        number = event_of(browser, name, session_hash="")["fn_index"]
        body = body.replace(name.upper().encode(), str(number).encode())
    code, _, answer = browser.ask("POST", JOIN, body, Content_Type="application/json")
    assert 400 <= code < 500 and set(json.loads(answer)) == {"detail"}
    # forms of other sites can send these
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert browser.ask("POST", JOIN, body, Content_Type=kind)[0] == 415
    assert "Traceback" not in capfd.readouterr().err


def test_an_event_is_small(browser):
    connection = http.client.HTTPConnection(urlsplit(browser.address).netloc, timeout=60)
    connection.putrequest("POST", JOIN)
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(10**9))
    connection.endheaders(b"{")
    assert connection.getresponse().status == 413


@pytest.mark.parametrize(
    "path",
    [
        *(
            f"/picture?file=low%20steady.wav&{span}"
            for span in (
                "start=1e15&end=1.1e15",
                "start=1e308&end=1e309",
                "start=9&end=10",
                "start=nan&end=1",
            )
        ),
        *(
            "/picture?start=0&end=1",
            "/recording",
            "/recording?file=",
            "/gradio_api/queue/data",
            "/gradio_api/queue/data?session_hash=no",
            "/x" * 3000,
        ),
        "/recording?file=" + "a" * 20_000,
        "/recording?" + "a=1&" * 100,
        "/recording?file=%ff%fe",
        "/?deep_link=../../etc",
    ],
    ids=lambda path: path[:60],
)
def test_a_wrong_request_is_4xx_without_a_traceback(browser, capfd, path):
    code = browser.ask("GET", path)[0]
    assert 400 <= code < 500 or path.startswith("/?")
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "span",
    [
        "bytes=" + "9" * 5000 + "-",
        "bytes=0-" + "9" * 5000,
        "bytes=-" + "1" * 5000,
        "bytes=x-y",
        "bytes=5-1",
        "bytes=-",
        "bytes=0-1,4-5",
    ],
)
def test_a_wrong_range_is_4xx_without_a_traceback(browser, capfd, span):
    assert browser.ask("GET", "/recording?file=low%20steady.wav", Range=span)[0] in (400, 416)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "host", ["[1:2]", "[::::]", "[127.0.0.1]", "127.0.0.1:99999", "localhost:0", "[::1", "a b"]
)
def test_a_host_that_is_none_is_4xx_without_a_traceback(browser, capfd, host):
    assert browser.ask("GET", "/config", Host=host)[0] == 400
    # none is not the origin of none
    assert browser.ask("GET", "/config", Host=host, Origin="null")[0] == 400
    assert "Traceback" not in capfd.readouterr().err


def test_two_streams_of_a_session_that_break_off_leave_no_traceback(
    browser, index, monkeypatch, capfd
):
    go_on = threading.Event()
    monkeypatch.setattr(index, "search", lambda *_, **__: go_on.wait(60) and [])
    try:
        assert (
            browser.post(JOIN, event_of(browser, "words", QUERY, *FIELDS, session_hash="twice"))[0]
            == 200
        )
        streams = []
        for _ in range(3):
            connection = http.client.HTTPConnection(urlsplit(browser.address).netloc, timeout=60)
            connection.request(
                "GET", f"{ANSWERS}?session_hash=twice", headers={"Cookie": browser.cookie}
            )
            streams.append(connection)
        assert streams[0].getresponse().status == 200
        for connection in streams:
            connection.close()
        wait_for(lambda: browser.ask("GET", f"{ANSWERS}?session_hash=twice")[0] == 404)
    finally:
        go_on.set()
    assert "Traceback" not in capfd.readouterr().err


MARK = {"file": "low steady.wav", "start": 0, "end": 1.5, "right": True}
JUDGED = {"query": QUERY, "marks": [MARK], "name": "", "detector": ""}
PLACES = [
    "/etc/passwd",
    "../secret.wav",
    "http://127.0.0.1/x",
    {"path": "/etc/passwd"},
    [],
    None,
    1,
]
WRONG_MARKS = [
    *(MARK | {"file": place} for place in PLACES),
    *(MARK | {"right": value} for value in (1, "true", None)),
    *(MARK | {key: value} for key in ("start", "end") for value in ("0", -1, 1e15, True, [0])),
    *(MARK | span for span in ({"start": 1, "end": 1}, {"start": 2, "end": 1}, {"start": 99})),
    *(MARK | {"url": "x"}, {"file": "low steady.wav"}, "low steady.wav", None, [MARK]),
]


def test_marks_and_detectors_name_files_of_the_index_only(browser, index, tmp_path, capfd):
    event = event_of(browser, "judged", *FIELDS, session_hash="judging")
    wrong = [JUDGED | {"marks": [MARK, mark]} for mark in WRONG_MARKS]
    wrong += [JUDGED | {key: value} for key in JUDGED for value in PLACES[3:] if value != []]
    wrong += [JUDGED | {"marks": [MARK] * 501}, JUDGED | {"marks": MARK}, {"marks": []}, [], None]
    wrong += [JUDGED | {"more": 1}, JUDGED | {"query": []}, {"file": MARK["file"]}, "text"]
    for judged in wrong:
        code, body = browser.post(JOIN, event | {"event_data": judged})
        assert code in (404, 422), judged
        assert b"/etc" not in body
    # names that are no names are answered with a line, and nothing is written
    names = ["../x", "a/b", "/etc/passwd", "..", ".x", "x" * 81, "a\0b", "\ud800", "x\n"]
    for key in ("name", "detector"):
        for number, name in enumerate(names):
            own = {"session_hash": f"{key}{number}", "event_data": JUDGED | {key: name}}
            assert browser.post(JOIN, event | own)[0] == 200
            assert "cannot be the name of a detector" in browser.answer(own["session_hash"])
    assert index.detectors.names() == []
    assert not list(index.path.parent.rglob("x*.json"))
    assert "Traceback" not in capfd.readouterr().err


def test_detectors_saved_from_the_page_are_bounded_and_never_replaced(browser, index, monkeypatch):
    event = event_of(browser, "judged", *FIELDS, session_hash="keeping")
    monkeypatch.setattr("retrieval.search.page.page.MAX_DETECTORS", 1)
    try:
        for name, line in (("one", "saved as"), ("two", "delete one first"), ("one", "delete")):
            assert browser.post(JOIN, event | {"event_data": JUDGED | {"name": name}})[0] == 200
            assert line in browser.answer("keeping")
        monkeypatch.setattr("retrieval.search.page.page.MAX_DETECTORS", 9)
        before = index.detectors.load("one")
        other = JUDGED | {"name": "one", "query": "a shrill tone"}
        assert browser.post(JOIN, event | {"event_data": other})[0] == 200
        assert "give another name" in browser.answer("keeping")
        assert index.detectors.load("one") == before
        assert index.detectors.names() == ["one"]
    finally:
        index.detectors.delete("one")


# --- origins ---


def test_a_foreign_origin_is_refused(browser, cache, index):
    port = urlsplit(browser.address).port
    own = browser.address
    foreign = [
        "http://evil.example",
        f"http://localhost:{port + 1}",
        f"http://localhost:{port}",
        f"https://127.0.0.1:{port}",
        "http://127.0.0.1",
        "null",
        "",
        "x:y:z",
    ]
    for method, path in NEEDS_ORIGIN:
        for origin in foreign:
            assert (
                browser.ask(method, path, b"" if method == "POST" else None, Origin=origin)[0]
                == 403
            ), (path, origin)
        for site in ("cross-site", "same-site"):  # same-site: another port of this machine
            assert (
                browser.ask(method, path, b"" if method == "POST" else None, Sec_Fetch_Site=site)[0]
                == 403
            ), (
                path,
                site,
            )
    for origin in foreign:
        assert browser.upload(b"x", Origin=origin)[0] == 403
    assert browser.upload(b"x", Origin=own, Sec_Fetch_Site="same-origin")[0] == 200
    code, headers, _ = browser.ask("GET", "/", Origin=own)
    assert (
        code == 200
        and "access-control-allow-origin" not in headers
        and headers["x-frame-options"] == "DENY"
    )
    assert re.search("HttpOnly; SameSite=Strict", Browser(own).ask("GET", "/")[1]["set-cookie"])


def test_a_link_on_another_site_opens_the_page(browser):
    """It carries no Strict cookie: the answer is a page that asks again and sets no cookie."""
    code, headers, body = Browser(browser.address).ask(
        "GET", "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate"
    )
    assert code == 200 and b'http-equiv="refresh"' in body and "set-cookie" not in headers
    assert (
        browser.ask("GET", "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors")[0] == 403
    )  # an image, a script


ATTACKS = {
    "q": """"><script>alert(1)</script>'&<""",
    "within": "../../etc/passwd",
    "k": "0;url=http://evil.example",
    "min_seconds": "javascript:alert(1)",
    "url": "http://evil.example",
    "token": "",
}


def test_a_link_to_a_query_stays_one_on_every_way_to_the_page(browser, index):
    """From another site, after the token, and after the password: no code, no other address."""
    link = f"/?{urlencode(ATTACKS | {'token': 'guess'})}"
    own = {name: value for name, value in ATTACKS.items() if name not in ("url", "token")}
    with served(index, password="correct horse") as closed:
        token = link.replace("token=guess", "token=correct+horse")
        stranger = Browser(closed)
        form = re.search(
            r'action="/login(\?[^"]*)"', stranger.ask("GET", f"/?{urlencode(own)}")[2].decode()
        )
        wrong = re.search(r'action="/login(\?[^"]*)"', stranger.ask("GET", link)[2].decode())
        assert unescape(form[1]) == unescape(wrong[1]) == f"?{urlencode(own)}"
        pages = [
            Browser(closed).ask("GET", token),
            Browser(closed).ask("POST", f"/login{unescape(form[1])}", "password=correct+horse"),
            Browser(closed).ask("POST", f"/login{link[1:]}", "password=correct+horse"),
            browser.ask(
                "GET",
                link.replace("token", "t"),
                Sec_Fetch_Site="cross-site",
                Sec_Fetch_Mode="navigate",
            ),
        ]
    for code, _, body in pages:
        (again,) = re.findall(r'content="0;url=([^"]*)"', body.decode())
        assert code == 200 and unescape(again) == f"./?{urlencode(own)}"
        assert b"<script" not in body and b"evil" not in body.replace(b"evil.example&", b"")
    code, headers, _ = browser.ask("GET", link)  # no password, so no token
    assert code == 303 and headers["location"] == f"./?{urlencode(own)}"


# --- clients and their uploads ---


def event_of(browser: Browser, name: str, *data: object, session_hash: str) -> dict:
    """An event by the name of its function, as the page posts it."""
    number = next(one["id"] for one, _ in dependencies(browser) if one["api_name"] == name)
    return {"data": list(data), "fn_index": number, "session_hash": session_hash}


def test_an_upload_belongs_to_its_client(address, browser, index, sounds):  # noqa: F811
    content = (sounds / "low steady.wav").read_bytes()
    code, body = browser.upload(content, "C:\\music\\my own.wav")
    reference = json.loads(body)[0]
    assert code == 200 and re.fullmatch(r"[0-9a-f]{32}/my own.wav", reference)
    event = event_of(browser, "scores", reference, QUERY, session_hash="mine")
    stranger, nobody = Browser(address), Browser(address)
    stranger.ask("GET", "/")
    for other in (stranger, nobody):
        code, body = other.post(JOIN, event | {"session_hash": "theirs"})
        assert code == 403 and b"not yours" in body
        assert other.ask("GET", FILES + quote(reference))[0] == 403
        assert other.ask("GET", "/gradio_api/queue/data?session_hash=mine")[0] == 404
    assert browser.post(JOIN, event)[0] == 200
    assert (
        stranger.post(JOIN, event_of(stranger, "words", QUERY, *FIELDS, session_hash="mine"))[0]
        == 403
    )
    assert stranger.ask("GET", "/gradio_api/queue/data?session_hash=mine")[0] == 403
    assert f"{index.score_audio(sounds / 'low steady.wav', [QUERY])[0]:.3f}" in browser.answer(
        "mine"
    )
    code, headers, body = browser.ask("GET", FILES + quote(reference))
    assert (code, body) == (200, content) and headers["content-disposition"].startswith(
        "attachment"
    )
    # A name in other letters, or with a path before it, is another name.
    for wrong in (
        reference.upper(),
        f"./{reference}",
        f"{reference}/",
        f"{reference}/../my own.wav",
        reference.partition("/")[0],
    ):
        assert browser.post(JOIN, event | {"data": [wrong, QUERY]})[0] == 403


def test_an_upload_that_kills_its_decoder_gets_one_line(browser, sounds, crashing, capfd):  # noqa: F811
    reference = json.loads(browser.upload(b"die SIGSEGV 1", "bad.wav")[1])[0]
    for name, *data in (("scores", reference, QUERY), ("sound", reference, "", *FIELDS)):
        assert browser.post(JOIN, event_of(browser, name, *data, session_hash=name))[0] == 200
        assert "bad.wav its decoder crashed (SIGSEGV)" in browser.answer(name)
    reference = json.loads(browser.upload((sounds / "low steady.wav").read_bytes())[1])[0]
    assert (
        browser.post(JOIN, event_of(browser, "scores", reference, QUERY, session_hash="good"))[0]
        == 200
    )
    assert "own.wav against 1 sentence" in browser.answer("good")
    assert "Traceback" not in capfd.readouterr().err


def test_uploads_are_bounded_and_the_oldest_goes(index, tmp_path, monkeypatch):
    monkeypatch.setattr(clients_module, "MAX_UPLOADS", 3)
    monkeypatch.setattr(clients_module, "MAX_CLIENT_BYTES", 10_000)
    monkeypatch.setattr(clients_module, "MAX_TOTAL_BYTES", 15_000)
    with served(index, uploads=tmp_path) as address:
        browser, other = Browser(address), Browser(address)
        references = [json.loads(browser.upload(b"x" * 100)[1])[0] for _ in range(5)]
        assert {path.parent.name for path in tmp_path.rglob("*.wav")} == {
            reference.partition("/")[0] for reference in references[-3:]
        }
        assert browser.upload(b"x" * 9_000)[0] == 200
        assert 9_000 <= sum(path.stat().st_size for path in tmp_path.rglob("*.wav")) <= 10_000
        assert other.upload(b"x" * 9_000)[0] == 503  # no room beside the other client's
        assert browser.upload(b"x" * 9_000)[0] == 200  # which gets its own oldest replaced
        assert browser.upload(b"", "empty.wav")[0] == 200


def test_a_form_that_is_no_upload_is_refused(browser, capfd):
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    part = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files";'
        ' filename="a.wav"\r\n\r\nx\r\n'
    )
    text = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"\r\n\r\n/etc/passwd\r\n'
    for body in (
        b"",
        b"x",
        f"{part}{part}--{BOUNDARY}--\r\n",
        f"{text}--{BOUNDARY}--\r\n",
        f"{text * 20}--{BOUNDARY}--\r\n",
    ):
        assert browser.ask("POST", UPLOAD, body, Content_Type=kind)[0] == 400
    assert browser.ask("POST", UPLOAD, b"{}", Content_Type="application/json")[0] == 400
    assert browser.ask("POST", UPLOAD, b"x", Content_Type="multipart/form-data")[0] == 400
    assert "Traceback" not in capfd.readouterr().err


def test_an_upload_of_two_lengths_is_refused(browser, capfd):
    """Its Content-Length would be counted and its chunks kept."""
    form = browser_form(b"x")
    head = (
        f"POST {UPLOAD} HTTP/1.1\r\nHost: {urlsplit(browser.address).netloc}\r\nCookie:"
        f" {browser.cookie}\r\nContent-Type: multipart/form-data;"
        f" boundary={BOUNDARY}\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    connections = []
    for _ in range(3):  # side by side
        connection = http.client.HTTPConnection(urlsplit(browser.address).netloc, timeout=60)
        connection.connect()
        connection.send(head.encode() + b"1\r\n-\r\n")
        connections.append(connection)
    for connection in connections:
        connection.sock.sendall(b"%x\r\n%s\r\n0\r\n\r\n" % (len(form) - 1, form[1:]))
        assert connection.sock.makefile("rb").readline().split()[1] == b"400"
        connection.close()
    assert "Traceback" not in capfd.readouterr().err


def test_a_page_that_outlives_its_server_is_a_client_again(address):
    """All its requests, with the old server's cookie, belong to one new client in any order."""
    stale = f"retrieval_{urlsplit(address).port}=of.before"
    page = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    page.request("GET", "/presence", headers={"Cookie": stale})
    answer = page.getresponse()
    asking, uploading = Browser(address), Browser(address)
    event = event_of(asking, "words", QUERY, *FIELDS, session_hash="outlived")
    asking.cookie = uploading.cookie = stale
    assert asking.post(JOIN, event)[0] == 200  # answered with a cookie
    code, body = uploading.upload(b"x")
    assert (
        code == 200
        and uploading.cookie
        == asking.cookie
        == answer.getheader("set-cookie").partition(";")[0]
        != stale
    )
    assert uploading.ask("GET", FILES + json.loads(body)[0])[0] == 200
    assert '"process_completed"' in uploading.answer("outlived")
    assert Browser(address).ask("GET", FILES + json.loads(body)[0])[0] == 403
    answer.close()
    page.close()


def test_a_page_that_lost_the_connection_finds_the_server_again(browser):
    """Gradio's script asks for it every two seconds, and reloads the page after an answer."""
    code, _, body = browser.ask("GET", "/gradio_api/app_id")
    assert (
        code == 200
        and json.loads(body)["app_id"] == json.loads(browser.ask("GET", "/config")[2])["app_id"]
    )


def test_uploads_go_when_the_client_leaves(index, tmp_path, monkeypatch):
    monkeypatch.setattr("retrieval.search.page.gate.SECONDS_BETWEEN_SWEEPS", 0.05)
    monkeypatch.setattr(clients_module, "SECONDS_AWAY", 0.3)
    monkeypatch.setattr("retrieval.search.page.server.SECONDS_BETWEEN_SIGNS", 0.05)
    with served(index, uploads=tmp_path) as address:
        browser = Browser(address)
        assert browser.ask("GET", "/")[0] == 200
        page = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
        page.request("GET", "/presence", headers={"Cookie": browser.cookie})
        answer = page.getresponse()
        assert answer.status == 200 and answer.read(1)
        assert browser.upload(b"x")[0] == 200
        time.sleep(1)  # longer than a client may be away
        assert len(list(tmp_path.rglob("*.wav"))) == 1
        answer.close()
        page.close()
        wait_for(lambda: not list(tmp_path.iterdir()))
        monkeypatch.setattr(clients_module, "SECONDS_AWAY", 1000.0)
        monkeypatch.setattr(clients_module, "SECONDS_UNUSED", 0.3)
        assert browser.upload(b"x")[0] == 200
        wait_for(lambda: not list(tmp_path.iterdir()))


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("a.wav", "a.wav"),
        ("../../etc/passwd", "passwd"),
        ("..", "recording"),
        ("", "recording"),
        ("a\0\nb.wav", "ab.wav"),
        ("x" * 999 + ".wav", "x" * 40 + ".wav"),
    ],
)
def test_names_of_uploads_are_plain(given, kept):
    assert safe_name(given) == kept


def test_clients_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(clients_module, "MAX_CLIENTS", 3)
    clients = Clients(tmp_path, lambda session_hash: None)
    for number in range(3):
        clients.client(f"client {number}")
    with pytest.raises(Refused):
        clients.client("one more")
    monkeypatch.setattr(clients_module, "SECONDS_AWAY", -1.0)
    clients.client("one more")
    name = clients.name_in(clients.new_cookie())
    assert (
        name
        and clients.name_in(f"{name}.0") is None
        and clients.name_in(name) is None
        and clients.name_in("é.é") is None
    )
    assert Clients(tmp_path, print).name_in(clients.new_cookie()) is None  # of another start


# --- memory, floods ---


def test_nothing_of_a_session_is_kept_when_its_page_has_its_answer(browser):
    from gradio.state_holder import SessionState

    def kept() -> int:
        gc.collect()
        return sum(isinstance(one, SessionState) for one in gc.get_objects())

    before, event = kept(), event_of(browser, "words", QUERY, *FIELDS, session_hash="")
    for number in range(20):
        assert browser.post(JOIN, event | {"session_hash": f"visit{number}"})[0] == 200
        assert "process_completed" in browser.answer(f"visit{number}")
    wait_for(lambda: kept() <= before + 1)


def test_one_client_cannot_fill_the_queue(browser, address, index):
    event = event_of(browser, "words", QUERY, *FIELDS, session_hash="flood")
    with index._lock:  # nothing is answered meanwhile
        codes = [
            browser.post(JOIN, event | {"session_hash": f"flood{number % 2}"})[0]
            for number in range(12)
        ]
        assert codes == [200] * 8 + [429] * 4
        other = Browser(address)
        assert other.post(JOIN, event | {"session_hash": "other"})[0] == 200
    assert "process_completed" in other.answer("other")
    for number in range(2):
        assert browser.answer(f"flood{number}").count('"process_completed"') == 4


# --- passwords ---


def test_every_route_needs_the_password(index, sounds, monkeypatch):  # noqa: F811
    with served(index, password="correct horse") as address:
        stranger, browser = Browser(address), Browser(address)
        code, _, body = stranger.ask("GET", "/")
        assert code == 401 and b'type="password"' in body and b"gradio" not in body
        for path, methods in ROUTES.items():
            for method in methods - {"HEAD"} if path not in ("/", "/login") else ():
                assert (
                    stranger.ask(
                        method,
                        f"{path}?file=low%20steady.wav&start=0&end=1&session_hash=x&upload_id=x",
                        b"" if method == "POST" else None,
                    )[0]
                    == 401
                )
        for path in ("/assets/index.js", "/static/img/logo.svg", FILES + "x/y"):
            assert stranger.ask("GET", path)[0] == 401
        stranger.cookie = "retrieval_1=abc.def"
        assert stranger.ask("GET", "/config")[0] == 401
        assert browser.ask("POST", "/login", "password=wrong")[0] == 401 and not browser.cookie
        assert (
            browser.ask("POST", "/login", "password=correct+horse", Origin="http://evil.example")[0]
            == 403
        )
        code, headers, _ = browser.ask("POST", "/login", "password=correct+horse", Origin=address)
        assert code == 200 and re.search("HttpOnly; SameSite=Strict", headers["set-cookie"])
        assert browser.ask("GET", "/")[0] == 200 and b"gradio" in browser.ask("GET", "/")[2]
        assert browser.ask("GET", "/recording?file=low%20steady.wav", Range="bytes=0-9")[0] == 206
        assert (
            browser.post(JOIN, event_of(browser, "words", QUERY, *FIELDS, session_hash="p"))[0]
            == 200
        )
        assert "process_completed" in browser.answer("p")
        linked = Browser(address)
        assert (
            linked.ask("GET", "/?token=correct%20horse")[0] == 200
            and linked.ask("GET", "/config")[0] == 200
        )
        other_start = Browser(address)
        other_start.cookie = Clients(Path("unused"), print).new_cookie()
        assert other_start.ask("GET", "/config")[0] == 401


def test_wrong_passwords_are_slowed_down(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(password_module, "monotonic", lambda: now[0])
    password, address = Password("correct horse"), "192.0.2.1"
    for _ in range(4):
        assert not password.is_right("wrong", address)
    for attempt in range(1, 9):
        with pytest.raises(Refused) as refusal:
            password.is_right("correct horse", address)  # is not even looked at
        wait = int(refusal.value.headers["Retry-After"])
        assert refusal.value.status == 429 and wait == pytest.approx(
            min(60, 2 ** (attempt - 1)), abs=1
        )
        assert password.is_right("correct horse", "192.0.2.2")  # another machine does not wait
        now[0] += wait
        assert not password.is_right("wrong", address)
    now[0] += 61
    assert password.is_right("correct horse", address) and not password.is_right("wrong", address)
    for number in range(4):
        assert not password.is_right("wrong", f"2001:db8::{number}")
    with pytest.raises(Refused):  # one machine has a /64 of addresses
        password.is_right("wrong", "2001:db8::ffff")
    for given in (None, "", "correct", "correct horse ", "correct horsé", "\ud800"):
        assert not Password("correct horse").is_right(given, "x")


def test_a_page_on_the_network_prints_a_token_and_a_warning(indexed):  # noqa: F811
    command = [
        sys.executable,
        "-m",
        "retrieval.app",
        "--index",
        str(indexed),
        "--host",
        "0.0.0.0",
        "--port",
        "0",
    ]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            line = process.stdout.readline()
            name, port, token = re.search(
                r"http://([\w.-]+):(\d+)/\?token=([\w-]{32})", line
            ).groups()
            assert name != "0.0.0.0"  # which no other machine can open
            browser = Browser(f"http://127.0.0.1:{port}")
            assert browser.ask("GET", "/config")[0] == 401
            assert (
                browser.ask("GET", f"/?token={token}")[0] == 200
                and browser.ask("GET", "/config")[0] == 200
            )
            page = http.client.HTTPConnection(f"127.0.0.1:{port}", timeout=60)
            page.request("GET", "/presence", headers={"Cookie": browser.cookie})
            assert page.getresponse().read(1)
        finally:
            process.terminate()  # a page is still open
            errors = process.communicate(timeout=60)[1]
    assert "Traceback" not in errors
    assert "open to the network" in errors and "6 recordings" in errors and token not in errors


def test_without_a_password_the_network_is_told_of_and_only_own_names_are_answered(index):
    from retrieval.search.page.command import own_names, warning

    assert "without a password" in warning(
        "0.0.0.0", 7860, 6, None
    ) and "with the password" in warning("0.0.0.0", 7860, 6, "x")
    assert own_names("127.0.0.1", True) == {"localhost"} and {"localhost", "0.0.0.0"} < own_names(
        "0.0.0.0", False
    )


@pytest.mark.parametrize(
    "arguments",
    [("--password", "short"), ("--password",), ("--password", "long enough", "--no-password")],
)
def test_a_password_that_cannot_be_used_is_one_line(tmp_path, arguments, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    line = mistake(main, "--index", str(tmp_path), "--port", "0", *arguments)
    assert line.startswith("error: ") and line.count("\n") == 1 and "password" in line.lower()


def test_a_short_password_of_the_environment_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("RETRIEVAL_PASSWORD", "short")
    assert "RETRIEVAL_PASSWORD" in mistake(main, "--index", str(tmp_path), "--port", "0")
