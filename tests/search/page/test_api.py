"""The JSON endpoints, as other programs use them: answers, tokens, wrong fields, floods."""

import contextlib
import http.client
import io
import json
import re
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import quote, urlsplit

import pytest

from retrieval.search import AudioIndex
from retrieval.search.feedback.detectors import Mark
from retrieval.search.page import turns
from retrieval.search.page.api import MAX_ANSWERS, MAX_PARTS
from retrieval.search.page.audio import read_excerpt
from retrieval.search.page.gate import API_BYTES, JOIN, JSON_ROUTES, PROGRAM_ROUTES, ROUTES
from retrieval.search.page.link import link_to, read_link
from retrieval.search.page.results import cards
from tests.conftest import ROOT
from tests.search.page.test_page import QUERY, indexed, models, served, sounds  # noqa: F401
from tests.search.page.test_page_security import Browser, event_of, wait_for

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
def with_metadata(sounds, models, tmp_path_factory) -> Iterator[tuple[AudioIndex, str]]:  # noqa: F811
    """An index with metadata, and the address of its page."""
    folder = tmp_path_factory.mktemp("metadata")
    rows = [("low steady.wav", "forest", 2021), (FILE, "town", 2022)]
    rows += [("far/apple.aiff", "forest", 2023)]
    lines = ["file_name,place,year", *(",".join(map(str, row)) for row in rows)]
    (folder / "metadata.csv").write_text("\n".join(lines))
    AudioIndex.build(sounds, models / "mean", folder / "i", metadata=folder / "metadata.csv")
    index = AudioIndex.open(folder / "i")
    with served(index) as address:
        yield index, address


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


def test_several_sentences_a_sound_and_marks_are_as_in_python(address, index, sounds):  # noqa: F811
    found = search(address, without=["a shrill tone"], also=[{"text": "a tone", "weight": 2.0}])
    own = index.search(QUERY, also=[("a tone", 2.0)], without=["a shrill tone"])
    assert [hit["file"] for hit in found] == [hit.file for hit in own]
    assert [hit["score"] for hit in found] == pytest.approx([hit.score for hit in own])
    sound = {"file": "far/apple.aiff", "start": 0.5, "end": 1.5}
    samples = read_excerpt(sounds / "far" / "apple.aiff", 0.5, 1.5)
    found = search(address, like=sound)
    own = index.search(QUERY, audio=samples)
    assert [hit["score"] for hit in found] == pytest.approx([hit.score for hit in own])
    code, answer = ask(address, "/api/search", {"like": sound})
    own = index.search(audio=samples)
    assert code == 200 and [hit["file"] for hit in answer["hits"]] == [hit.file for hit in own]
    hits = index.search(QUERY)
    marks = [Mark.of(hits[1], True), Mark.of(hits[0], False)]
    detector = index.refine(QUERY, marks)
    own = index.search(detector)
    found = search(address, marks=[mark.model_dump() for mark in marks])
    assert [hit["score"] for hit in found] == pytest.approx([hit.score for hit in own])
    index.detectors.save(detector, "my tone")
    try:
        names = json.loads(Browser(address).ask("GET", "/api/detectors")[2])["detectors"]
        code, answer = ask(address, "/api/search", {"detector": "my tone", "k": 3})
        assert names == ["my tone"] and (code, answer["query"]) == (200, QUERY)
        assert [hit["file"] for hit in answer["hits"]] == [hit.file for hit in own][:3]
        assert answer["threshold"] == detector.threshold and answer["unrelated_score"] is None
    finally:
        index.detectors.delete("my tone")
    assert len(search(address, min_score=hits[2].score - 1e-6)) == 3


def test_sentences_and_weights_have_the_forms_of_python(address, index):
    own = index.search(QUERY, also=[("a tone", 0.5)], without="a shrill tone")
    for also in ([["a tone", 0.5]], [{"text": "a tone", "weight": 0.5}]):
        for without in ("a shrill tone", ["a shrill tone"]):
            found = search(address, also=also, without=without)
            assert [hit["score"] for hit in found] == pytest.approx([hit.score for hit in own])
    expected = [hit.score for hit in index.search(QUERY, also="a tone")]
    for also in ("a tone", ["a tone"], [["a tone", 1]]):
        found = search(address, also=also)
        assert [hit["score"] for hit in found] == pytest.approx(expected)
    assert expected != pytest.approx([hit.score for hit in index.search(QUERY)])


def test_probabilities_are_compared_with_the_threshold_of_their_detector(address, index):
    hits = index.search(QUERY)
    detector = index.refine(QUERY, [Mark.of(hits[0], True), Mark.of(hits[1], False)])
    detector = detector.model_copy(update={"threshold": 0.625})
    judged = [replace(hit, is_match=hit.rank == 1) for hit in index.search(detector)]
    shown = cards(QUERY, judged, index, QUERY, detector=detector, can_mark=True)
    assert "threshold of 0.625" in shown and "1 right and 1 wrong answer." in shown
    assert 'title="probability"' in shown and 'title="similarity"' not in shown
    shown = cards(QUERY, judged, index, QUERY)
    assert "threshold" not in shown and 'title="similarity"' in shown
    marks = [mark.model_dump() for mark in detector.marks]
    answer = ask(address, "/api/search", {"query": QUERY, "marks": marks})[1]
    assert answer["unrelated_score"] is None and 0 <= answer["threshold"] <= 1
    answer = ask(address, "/api/search", {"query": QUERY})[1]
    assert answer["unrelated_score"] == index.unrelated_score and answer["threshold"] is None


def test_the_scores_of_unrelated_sentences_are_told(address, index, monkeypatch):
    hits = index.search(QUERY)
    copies = ("a<b>.wav", "far/b.wav")
    judged = [replace(hit, is_match=hit.rank <= 2, copies=copies) for hit in hits]
    shown = cards(QUERY, judged[1:2], index, QUERY)
    assert "and 2 copies" in shown and "a&lt;b&gt;.wav" in shown and "<b>" not in shown
    monkeypatch.setattr(index, "search", lambda *_, **__: judged)
    answer = ask(address, "/api/search", {"query": QUERY})[1]
    assert [hit["is_match"] for hit in answer["hits"]] == [True, True] + [False] * (len(hits) - 2)
    assert answer["hits"][0]["copies"] == list(copies)
    assert answer["unrelated_score"] == index.unrelated_score


def test_metadata_filters_as_on_the_terminal(with_metadata):
    index, address = with_metadata
    for where in (
        {"place": "forest"},
        {"place": ["forest", "town"]},
        {"year": "2020..2022"},
        {"year": 2021},
        {"year": [2021, "2023.."], "place": "town"},
    ):
        expected = index.search(QUERY, where=where)
        found = search(address, where=where)
        assert [hit["file"] for hit in found] == [hit.file for hit in expected]
        assert [hit["metadata"] for hit in found] == [hit.metadata for hit in expected]
    contents = json.loads(Browser(address).ask("GET", "/api/index")[2])
    assert contents["recordings"] == index.num_files
    assert contents["folders"] == [{"name": "far", "files": 2}, {"name": "far/away", "files": 1}]
    place, year = contents["columns"]
    assert place["values"] == {"forest": 2, "town": 1}
    assert (year["kind"], year["lowest"], year["highest"]) == ("number", 2021, 2023)
    assert year["values"] == {"2021": 1, "2022": 1, "2023": 1}  # as in the CSV, not 2021.0
    body = json.dumps(search(address) + contents["columns"])
    assert '"year": 2021' in body and "2021.0" not in body and "2023.0" not in body
    hits = index.search(QUERY, where={"year": 2021})
    assert "year: 2021</span>" in cards(QUERY, hits, index)


# --- links, and events of the page ---


def post(address: str, name: str, *data: object, **event: object) -> str:
    """Post an event as the page does; return what the page gets."""
    browser = Browser(address)
    browser.ask("GET", "/")
    code, body = browser.post(JOIN, event_of(browser, name, *data, session_hash="own") | event)
    assert code == 200, body
    return browser.answer("own")


def opened_link(address: str, link: str) -> tuple[str, str, list]:
    """Return status, results and values of the fields that the page gets for a link."""
    lines = [line for line in post(address, "linked", link).splitlines() if "completed" in line]
    output = json.loads(lines[-1].removeprefix("data: "))["output"]
    status, results, *fields = output["data"]
    return status, results, fields


def test_a_link_fills_the_fields_and_names_what_it_does_not_use(with_metadata):
    index, address = with_metadata
    status, results, fields = opened_link(address, "?q=low+tone&where.place=town&k=3&within=far/")
    assert "in 1 of" in status and "not used" not in status
    assert f'data-file="{FILE}"' in results
    assert fields[:-1] == ["far", 0, None, 3, "", None, "town", ""]
    status, results, fields = opened_link(
        address, "?q=low+tone&k=500&year=2021&min_seconds=soon&k=2&min_score=0.001.1"
    )
    assert f"in {index.num_files} of" in status and results
    for part in ("k=500", "from 1 to 50", "year=2021", "min_seconds=soon", "k=2 (", "min_score"):
        assert part in status
    assert fields[:-1] == ["", 0, None, 10, "", None, "", ""]
    status, results, _ = opened_link(address, f"?{'&'.join(f'a{own}=b' for own in range(2000))}")
    assert "not used from the link" in status and results == ""
    assert opened_link(address, "?<b>=<script>&q=tone")[0].count("&lt;") == 2


@pytest.mark.parametrize(
    ("field", "lines"),
    [
        ("where.place=Town", ("no file has place=Town", "did you mean town?")),
        ("where.plase=town", ("no column", "did you mean place?")),
        ("where.year=soon", ("year holds numbers",)),
        ("within=fax", ("no folder", "did you mean far?")),
        ("within=../..", ("no folder",)),
    ],
)
def test_a_link_with_a_filter_that_the_index_lacks_says_so(with_metadata, field, lines):
    status, results, fields = opened_link(with_metadata[1], f"?q=low+tone&min_seconds=0.5&{field}")
    assert results == "" and all(line in status for line in lines) and "argument" not in status
    # other fields are filled, and all of them can be sent again
    kept = "soon" if "soon" in field else ""
    assert fields[:-1] == ["", 0.5, None, 10, "", None, "", kept]
    answer = post(with_metadata[1], "words", "low tone", *fields[:-2], "")
    assert "answers in" in answer


def test_a_link_reads_back_what_it_was_made_of():
    fields = {"q": "a & b=c", "without": "rain", "within": "far", "k": 20, "min_score": -0.25}
    fields |= {"min_seconds": 1.5, "max_seconds": 9.0}
    found = read_link(link_to({"place": "a+b", "year": "2020..2022"}, **fields), 50)
    assert (found.fields, found.unused) == (fields, ())
    assert found.where == {"place": "a+b", "year": "2020..2022"} and found.has_more
    assert not read_link("?q=rain&k=51", 50).has_more


def test_answers_by_marks_and_detectors_keep_the_link_of_the_sentence(with_metadata):
    index, address = with_metadata
    # a detector uses neither the sentence that should not be heard nor its score: not in the link
    fields = ["far", 0, None, 10, "a shrill tone", 0.01, "", ""]
    judged = {"query": QUERY, "marks": [MARK], "name": "", "detector": ""}
    link = "?q=A+steady+low+tone.&amp;within=far\\"
    assert link in post(address, "judged", *fields, event_data=judged)
    index.detectors.save(index.refine(QUERY, [Mark(**MARK)]), "kept")
    try:
        answer = post(address, "judged", *fields, event_data=judged | {"detector": "kept"})
        assert link in answer and "scores are probabilities" in answer
    finally:
        index.detectors.delete("kept")


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
    assert {f"/api{path}" for path in description["paths"]} == {
        *JSON_ROUTES,
        "/api/index",
        "/api/detectors",
    }
    schemas = description["components"]["schemas"]
    assert schemas["SearchRequest"]["properties"]["k"]["maximum"] == MAX_ANSWERS
    text, several = schemas["SearchRequest"]["properties"]["also"]["anyOf"]
    assert text["type"] == "string" and several["maxItems"] == MAX_PARTS
    assert schemas["MomentsRequest"]["required"] == ["file", "query"]
    assert schemas["SearchRequest"]["additionalProperties"] is False
    (scheme,) = description["components"]["securitySchemes"].values()
    assert scheme["scheme"] == "bearer"
    for path in ("/docs", "/redoc", "/openapi.json", "/api/docs", "/api/redoc", "/api", "/api/"):
        assert Browser(address).ask("GET", path)[0] == 404  # no page with others' scripts


def test_the_client_of_the_docs_works(closed, index, monkeypatch):
    text = (ROOT / "docs" / "search_page.md").read_text(encoding="utf-8")
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

PLACES = [
    "../secret.wav",
    "/etc/passwd",
    "http://127.0.0.1/x",
    "/dev/zero",
    "",
    None,
    {"path": "x"},
]
MARK = {"file": "low steady.wav", "start": 0.0, "end": 1.5, "right": True}
SOUND = {"file": "far/apple.aiff", "start": 0.0, "end": 1.0}
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
    *({"without": value} for value in (QUERY, "", [""], [1], [QUERY], ["a tone"] * 21, {"a": 1})),
    *({"also": value} for value in ([QUERY], [{"text": "a tone", "weight": 0.0}])),
    *({"also": [value]} for value in ([], ["a tone"], ["a tone", "2"], ["a tone", 1, 2], [1, 1])),
    *({"also": [value]} for value in (["a tone", 0], 1, None, "", [["a tone", 1], 1])),
    *({"also": [{"text": "a tone", "weight": value}]} for value in (-1, 1e300, "1", None)),
    *({"min_score": value} for value in ("0", True, 1e300, [0])),
    *({"where": value} for value in ([], "place=forest", {"place": "forest"}, {"a": {}}, {"": ""})),
    {"where": {f"column {number}": "x" for number in range(1000)}},
    *({"detector": value} for value in ("no such", "../x", "/etc/passwd", "", 1, "a\0b")),
    *({"marks": value} for value in ("x", {}, [1], [{"file": "low steady.wav"}])),
    *({"marks": [MARK | {"file": value}]} for value in PLACES),
    *({"marks": [MARK | {"right": value}]} for value in (1, "true", None)),
    *({"marks": [MARK | {"start": value}]} for value in (-1, "0", 1e15, True)),
    *({"marks": [MARK] * 1000}, {"marks": [MARK], "without": ["a tone"]}),
    *({"like": SOUND | {"file": value}} for value in PLACES),
    *({"like": SOUND | {"end": value}} for value in (0, -1, 1e8, 1e15, "1", None)),
    *({"like": value} for value in ("far/apple.aiff", [SOUND], {"file": "far/apple.aiff"})),
    {"like": SOUND | {"start": 8.5, "end": 9.5}},
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
def test_a_wrong_field_is_refused_in_one_line(address, fields, capfd):
    fields = {"query": QUERY} | fields if "detector" not in fields else fields
    check_refused(address, "/api/search", fields, capfd)


def test_a_wrong_field_is_named(address, capfd):
    for path, value in {"k": 0, "within": 1, "min_seconds": -1, "audio": "x"}.items():
        asked = {"query": QUERY, path: value}
        assert path in check_refused(address, "/api/search", asked, capfd)
    asked = {"query": QUERY, "marks": [MARK | {"right": 1}]}
    assert "marks.0.right" in check_refused(address, "/api/search", asked, capfd)


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
