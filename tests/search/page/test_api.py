"""The JSON endpoints, as other programs use them: answers, tokens, wrong fields, floods."""

import contextlib
import http.client
import io
import json
import re
import threading
import urllib.request
from collections.abc import Iterator
from urllib.parse import quote, urlsplit

import pytest

from retrieval.search import AudioIndex
from retrieval.search.page import turns
from retrieval.search.page.api import MAX_ANSWERS
from retrieval.search.page.gate import API_BYTES, JSON_ROUTES, PROGRAM_ROUTES, ROUTES
from tests.conftest import ROOT
from tests.search.page.test_page import QUERY, indexed, models, served, sounds  # noqa: F401
from tests.search.page.test_page_security import Browser, wait_for

FILE = "far/away/long.flac"
TOKEN = "correct horse"


@pytest.fixture(scope="module")
def index(indexed) -> AudioIndex:  # noqa: F811
    return AudioIndex.open(indexed)


@pytest.fixture(scope="module")
def address(index) -> Iterator[str]:
    with served(index) as address:
        yield address


@pytest.fixture(scope="module")
def closed(index) -> Iterator[str]:
    """The address of a page with a password."""
    with served(index, password=TOKEN) as address:
        yield address


def ask(address: str, path: str, body: object, **headers: str) -> tuple[int, dict]:
    content = body if isinstance(body, (bytes, str)) else json.dumps(body)
    headers = {"Content_Type": "application/json"} | headers
    code, _, answer = Browser(address).ask("POST", path, content, **headers)
    return code, json.loads(answer)


def search(address: str, **fields: object) -> list[dict]:
    code, answer = ask(address, "/api/search", {"query": QUERY} | fields)
    assert code == 200, answer
    return answer["hits"]


# --- answers ---


def test_a_search_answers_as_python_does(address, index):
    code, answer = ask(address, "/api/search", {"query": QUERY, "k": 5})
    expected = index.search(QUERY, 5)
    assert code == 200 and answer["query"] == QUERY and answer["note"] is None
    assert len(answer["hits"]) == 5
    for hit, own in zip(answer["hits"], expected, strict=True):
        assert (hit["rank"], hit["file"], hit["start"], hit["end"], hit["seconds"]) == (
            own.rank,
            own.file,
            own.start,
            own.end,
            own.seconds,
        )
        assert hit["score"] == pytest.approx(own.score, abs=1e-6)
        assert [tuple(moment.values()) for moment in hit["moments"]] == [
            pytest.approx(tuple(moment)) for moment in own.moments
        ]
    assert {hit["file"] for hit in search(address, within="far")} == {"far/apple.aiff", FILE}
    assert [hit["file"] for hit in search(address, within="far", max_seconds=5)] == [
        "far/apple.aiff"
    ]
    assert {hit["file"] for hit in search(address, min_seconds=5, max_seconds=None)} == {FILE}
    assert search(address, within="no such folder") == []
    assert "xyzzy" in ask(address, "/api/search", {"query": "low xyzzy"})[1]["note"]


def test_moments_of_a_recording_are_those_of_locate(address, index):
    asked = {"file": FILE, "query": QUERY}
    code, answer = ask(address, "/api/moments", asked)
    found = index.locate(QUERY, FILE)
    assert code == 200 and answer["file"] == FILE and answer["curve"] is None
    assert answer["seconds"] == pytest.approx(8.0, abs=0.01)
    assert [tuple(one.values()) for one in answer["moments"]] == [
        pytest.approx(tuple(one)) for one in found.moments[0]
    ]
    curve = ask(address, "/api/moments", asked | {"curve": True})[1]["curve"]
    assert curve == pytest.approx(found.curves[0].tolist())
    assert answer["frame_seconds"] == pytest.approx(found.frame_seconds)


def test_an_empty_index_has_no_answers(models, tmp_path):  # noqa: F811
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "nothing.wav").write_bytes(b"")
    index = AudioIndex.build(tmp_path / "empty", models / "mean", tmp_path / "index")
    with served(index) as address:
        assert search(address) == []
        assert ask(address, "/api/moments", {"file": "a.wav", "query": QUERY})[0] == 404


def test_the_description_names_the_routes_and_their_fields(address):
    code, _, body = Browser(address).ask("GET", "/api/openapi.json")
    description = json.loads(body)
    assert code == 200 and description["openapi"].startswith("3.")
    places = [own["url"] for own in description["servers"]]
    assert places == ["/api"]
    assert {f"/api{path}" for path in description["paths"]} == set(JSON_ROUTES)
    schemas = description["components"]["schemas"]
    assert schemas["SearchRequest"]["properties"]["k"]["maximum"] == MAX_ANSWERS
    assert schemas["SearchRequest"]["required"] == ["query"]
    assert schemas["SearchRequest"]["additionalProperties"] is False
    (scheme,) = description["components"]["securitySchemes"].values()
    assert scheme["scheme"] == "bearer"
    for path in ("/docs", "/redoc", "/openapi.json", "/api/docs", "/api/redoc", "/api", "/api/"):
        assert Browser(address).ask("GET", path)[0] == 404  # no page with others' scripts


def test_the_client_of_the_docs_works(closed, index, monkeypatch):
    text = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    (client,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        if "/api/search" in block
    )
    assert "http://127.0.0.1:7860" in client
    monkeypatch.setenv("SEARCH_TOKEN", TOKEN)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(client.replace("http://127.0.0.1:7860", closed), {})
    assert index.search("a low tone", 3)[0].file in printed.getvalue()
    monkeypatch.setenv("SEARCH_TOKEN", "wrong")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        exec(client.replace("http://127.0.0.1:7860", closed), {})


# --- the recordings themselves ---


def test_a_recording_is_saved_as_it_is(address, sounds):  # noqa: F811
    path = f"/download?file={quote(FILE)}"
    code, headers, body = Browser(address).ask("GET", path)
    assert code == 200 and body == (sounds / FILE).read_bytes()
    assert headers["content-disposition"] == 'attachment; filename="long.flac"'
    assert headers["content-type"] == "application/octet-stream"
    code, headers, part = Browser(address).ask("GET", path, Range="bytes=10-19")
    assert (code, part) == (206, body[10:20])
    for span in ("bytes=0-1,4-5", "bytes=" + "0-1," * 1000, "bytes=x", "lines=0-1", "bytes=--1"):
        assert Browser(address).ask("GET", path, Range=span)[0] == 416, span
    for span in ("bytes=-", "bytes=9-1", f"bytes={10**17}-", f"bytes={'9' * 30}-"):
        assert Browser(address).ask("GET", path, Range=span)[0] in (400, 416), span


# --- tokens ---


def test_a_token_opens_the_routes_of_programs_and_no_others(closed):
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert ask(closed, "/api/search", {"query": QUERY}, **bearer)[0] == 200
    assert ask(closed, "/api/moments", {"file": FILE, "query": QUERY}, **bearer)[0] == 200
    span = f"file={quote(FILE)}&start=0&end=1"
    for path in PROGRAM_ROUTES - set(JSON_ROUTES):
        browser = Browser(closed)
        assert browser.ask("GET", f"{path}?{span}", **bearer)[0] == 200, path
        assert not browser.cookie
    for path, methods in ROUTES.items():
        if path in PROGRAM_ROUTES or path == "/login":
            continue
        for method in methods - {"HEAD"}:
            body = "{}" if method == "POST" else None
            assert Browser(closed).ask(method, f"{path}?{span}", body, **bearer)[0] == 401, path


def test_without_the_right_token_nothing_is_answered(closed, monkeypatch):
    monkeypatch.setattr("retrieval.search.page.password.FREE_ATTEMPTS", 10**6)
    wrong = ["Bearer wrong", "Bearer ", "Bearer", f"Basic {TOKEN}", f"bearer{TOKEN}", TOKEN, ""]
    wrong += [f"Bearer {TOKEN} {TOKEN}", "Bearer " + "a" * 10_000, "Bearer \xe9\xff"]
    for given in wrong:
        code, answer = ask(closed, "/api/search", {"query": QUERY}, Authorization=given)
        assert code == 401 and set(answer) == {"detail"} and TOKEN not in answer["detail"]
        assert Browser(closed).ask("GET", "/api/openapi.json", Authorization=given)[0] == 401
    path = "/api/search?" + f"token={quote(TOKEN)}&access_token={quote(TOKEN)}"
    assert ask(closed, path, {"query": QUERY})[0] == 401  # addresses are written to logs
    code, headers, _ = Browser(closed).ask("POST", "/api/search", "{}")
    assert code == 401 and headers["www-authenticate"] == "Bearer"


def test_wrong_tokens_are_slowed_down_like_wrong_passwords(index):
    with served(index, password=TOKEN) as address:
        codes = [
            ask(address, "/api/search", {"query": QUERY}, Authorization=f"Bearer {number}")[0]
            for number in range(8)
        ]
        assert codes[:4] == [401] * 4 and codes[-1] == 429
        code, headers, _ = Browser(address).ask(
            "POST", "/api/search", "{}", Authorization=f"Bearer {TOKEN}"
        )
        assert code == 429 and int(headers["retry-after"]) >= 1


def test_the_cookie_of_the_page_is_enough(closed):
    browser = Browser(closed)
    assert browser.ask("GET", f"/?token={quote(TOKEN)}")[0] == 200 and browser.cookie
    assert browser.post("/api/search", {"query": QUERY})[0] == 200


# --- what is refused ---

WRONG_BODIES = [
    *(b"", b"no JSON", b"null", b"[]", b'"a tone"', b"\xff\xfe", b"[" * 100_000, b"{}"),
    b'{"query": NaN}',
    b'{"query": "a tone", "k": NaN}',
    b'{"query": "a tone", "k": 1e999}',
    b'{"query": "a tone", "k": ' + b"1" * 5000 + b"}",
    b'{"query": "a tone", "min_seconds": ' + b"1" * 400 + b"}",
]
WRONG_FIELDS = [
    *({"query": value} for value in ("", " ", "?!", None, 1, ["a"], {"path": "/etc/passwd"})),
    {"query": "a" * 100_001},
    {"query": "xyzzy"},
    {"query": "a \ud800 tone"},
    *({"k": value} for value in (0, -1, MAX_ANSWERS + 1, 10**30, 2.5, True, "10", None, [1])),
    *({"within": value} for value in (None, 1, ["far"], {"path": "far"}, "a" * 5000)),
    *({"min_seconds": value} for value in (-1, 1e10, "0", None, True, [0])),
    *({"max_seconds": value} for value in (-1, 1e10, "9", False, {})),
    {"min_seconds": 5, "max_seconds": 4},
    *({key: "x"} for key in ("file", "path", "url", "audio", "index", "checkpoint", "__class__")),
]


def check_refused(address: str, path: str, body: object, capfd) -> str:
    code, answer = ask(address, path, body)
    assert 400 <= code < 500 and set(answer) == {"detail"}, body
    detail = answer["detail"]
    assert "\n" not in detail and len(detail) <= 400 and "/tmp" not in detail
    assert "Traceback" not in capfd.readouterr().err
    return detail


@pytest.mark.parametrize("path", JSON_ROUTES)
@pytest.mark.parametrize("body", WRONG_BODIES, ids=lambda body: body[:40].decode("latin-1"))
def test_a_body_that_is_no_request_is_one_line(address, path, body, capfd):
    check_refused(address, path, body, capfd)


@pytest.mark.parametrize("fields", WRONG_FIELDS, ids=lambda fields: str(fields)[:40])
def test_a_wrong_field_is_named_in_one_line(address, fields, capfd):
    detail = check_refused(address, "/api/search", {"query": QUERY} | fields, capfd)
    name = "quer" if "query" in fields else next(iter(fields)).partition("_s")[0]
    assert name in detail or "no file is longer" in detail


def test_moments_of_files_that_the_index_does_not_name_are_refused(
    address,
    sounds,  # noqa: F811
    capfd,
):
    secret = sounds.parent / "secret.wav"
    names = ["../secret.wav", "far/../../secret.wav", str(secret), "no such.wav", "", "a\0b"]
    names += [secret.as_uri(), f"{address}/config", "/dev/zero", "far", "FAR/APPLE.AIFF"]
    names += [f"./{FILE}", f"{FILE}/", f"{FILE}/../long.flac", "a" * 4000, "far\\away\\long.flac"]
    for name in names:
        detail = check_refused(address, "/api/moments", {"file": name, "query": QUERY}, capfd)
        assert str(sounds.parent) not in detail
    for value in (None, 1, [FILE], {"path": FILE}, {"path": FILE, "meta": {"_type": "x"}}):
        check_refused(address, "/api/moments", {"file": value, "query": QUERY}, capfd)


def test_types_methods_sizes_and_origins_are_checked(address, capfd):
    own = urlsplit(address).netloc
    body = json.dumps({"query": QUERY})
    for path in JSON_ROUTES:
        # forms of other sites can send these
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
            assert ask(address, path, body, Content_Type=kind)[0] == 415
        for method in ("GET", "PUT", "DELETE", "OPTIONS", "HEAD"):
            assert Browser(address).ask(method, path)[0] == 405
        for spelling in (f"{path}/", path.upper(), f"/{path}", f"{path}/x", f"/gradio_api{path}"):
            assert Browser(address).ask("POST", spelling, body)[0] == 404
        for origin in ("http://evil.example", f"http://localhost:{urlsplit(address).port}", "null"):
            assert ask(address, path, body, Origin=origin)[0] == 403
        assert ask(address, path, body, Sec_Fetch_Site="cross-site")[0] == 403
        assert ask(address, path, body, Host="evil.example")[0] == 400
        connection = http.client.HTTPConnection(own, timeout=60)
        connection.putrequest("POST", path)
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(API_BYTES + 1))
        connection.endheaders(b"{")
        assert connection.getresponse().status == 413
        connection.close()
    assert ask(address, "/api/search", body, Origin=address)[0] == 200
    assert Browser(address).ask("POST", "/api/openapi.json", body)[0] == 405
    code, headers, _ = Browser(address).ask("GET", "/api/openapi.json", Origin=f"http://{own}")
    assert code == 200 and "access-control-allow-origin" not in headers
    assert "Traceback" not in capfd.readouterr().err


def test_an_error_within_is_a_line_and_the_log_has_the_reason(address, index, monkeypatch, caplog):
    def fails(*_, **__):
        raise RuntimeError("/secret/place broke")

    monkeypatch.setattr(index, "search", fails)
    code, answer = ask(address, "/api/search", {"query": QUERY})
    assert code == 500 and "log" in answer["detail"] and "/secret" not in answer["detail"]
    assert "/secret/place broke" in caplog.text


def test_messages_name_no_folder_of_the_machine(address, index, sounds, monkeypatch):  # noqa: F811
    from retrieval.base.errors import UserError

    def fails(*_, **__):
        raise UserError(f"index {index.path} and {sounds / 'a.wav'} and /etc/passwd are wrong")

    monkeypatch.setattr(index, "search", fails)
    code, answer = ask(address, "/api/search", {"query": QUERY})
    assert code == 422 and "a.wav" in answer["detail"]
    assert str(sounds) not in answer["detail"] and "/etc" not in answer["detail"]


def test_a_flood_is_told_to_wait(address, index, monkeypatch):
    monkeypatch.setattr(turns, "MAX_WAITING_OF_CLIENT", 2)
    codes: list[int] = []

    def one() -> None:
        codes.append(ask(address, "/api/search", {"query": QUERY})[0])

    threads = [threading.Thread(target=one) for _ in range(8)]
    with index._lock:  # nothing is answered meanwhile
        for thread in threads:
            thread.start()
        wait_for(lambda: codes.count(503) == 5)  # one is asked, two wait
    for thread in threads:
        thread.join(60)
    assert sorted(codes) == [200] * 3 + [503] * 5
