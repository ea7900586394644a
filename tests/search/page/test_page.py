"""The page in a real Chromium, started by its command: typing, clicks, uploads, refusals.

After `make demo`, the pictures of the README are made by:

    SCREENSHOTS=docs python -m pytest tests/search/page/test_page.py -k screenshots
"""

import csv
import http.client
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, urlencode, urlsplit

import numpy as np
import pytest
import soundfile
import torch
from matplotlib import image

from retrieval.base.errors import UserError
from retrieval.config import load_config
from retrieval.models.build import build_model
from retrieval.moments.export import label_files
from retrieval.search import AudioIndex
from retrieval.search.feedback.detectors import Mark
from retrieval.search.hits import stretches_of
from retrieval.search.page import audio
from retrieval.search.page.command import listen, main
from retrieval.search.page.page import folder_field
from tests.conftest import NOTES, PATIENCE, RHYTHMS, ROOT, SAMPLE_RATE, run_module, tone

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
OPTIONS = (
    *(
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
    ),
    *("--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required"),
)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium"
)
QUERY = "A steady low tone."
NASTY = '<img src=x onerror=document.title=1> ${1+1} {{value}} & "it\'s".wav'
GONE = "later gone.wav"


def write_sounds(folder: Path) -> Path:
    """Write sounds in sub-folders, with names that look like code; beside them a secret file."""
    rng = np.random.default_rng(3)
    (folder / "far" / "away").mkdir(parents=True)
    for number in range(2):
        soundfile.write(
            folder / f"{NOTES[number % 4]} {RHYTHMS[number % 3]}.wav",
            tone(number % 4, number % 3, 1.5, rng),
            SAMPLE_RATE,
        )
    soundfile.write(folder / NASTY, tone(0, 0, 1.2, rng), SAMPLE_RATE)
    soundfile.write(folder / GONE, tone(1, 0, 1.0, rng), SAMPLE_RATE)
    soundfile.write(
        folder / "far" / "apple.aiff", np.stack([tone(2, 0, 1.7, rng)] * 2, axis=1), 44_100
    )
    soundfile.write(
        folder / "far" / "away" / "long.flac",
        np.concatenate([tone(number % 4, 0, 2.0, rng) for number in range(4)]),
        SAMPLE_RATE,
    )
    soundfile.write(folder.parent / "secret.wav", tone(0, 0, 1.0, rng), SAMPLE_RATE)
    return folder


@pytest.fixture(scope="module")
def models(tiny, tmp_path_factory) -> Path:
    """Folders `tap` and `mean`, random weights."""
    root = tmp_path_factory.mktemp("models")
    for pooling in ("tap", "mean"):
        torch.manual_seed(0)
        build_model(load_config(tiny / "tiny.yaml", [f"pooling.name={pooling}"])).save_pretrained(
            root / pooling
        )
    return root


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    return write_sounds(tmp_path_factory.mktemp("sounds") / "sounds")


@pytest.fixture(scope="module")
def indexed(models, sounds, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("indexed") / "index"
    AudioIndex.build(sounds, models / "tap", path)
    return path


@contextmanager
def started(index: Path) -> Iterator[str]:
    """The address of the page that the command serves."""
    command = [sys.executable, "-m", "retrieval.app", "--index", str(index), "--port", "0"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            line = process.stdout.readline()
            assert "search page: http://127.0.0.1:" in line, process.stderr.read()
            yield line.split()[2]
        finally:
            process.terminate()
            errors = process.communicate(timeout=PATIENCE)[1]
        assert "Traceback" not in errors, errors


@pytest.fixture(scope="module")
def server(indexed, sounds) -> Iterator[str]:
    with started(indexed) as address:
        (sounds / GONE).unlink()
        yield address


@contextmanager
def served(
    index: AudioIndex, uploads: Path | None = None, password: str | None = None
) -> Iterator[str]:
    """The same from this process: a second page without the seconds of a second start."""
    import uvicorn

    from retrieval.search.page.server import make_server

    with listen("127.0.0.1", 0) as listener, tempfile.TemporaryDirectory() as folder:
        server = make_server(index, uploads or Path(folder), frozenset({"localhost"}), password)
        running = uvicorn.Server(
            uvicorn.Config(server, log_level="warning", timeout_graceful_shutdown=1)
        )
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            running.should_exit = True
            thread.join(PATIENCE)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(OPTIONS))
        yield chromium
        chromium.close()


@contextmanager
def opened(browser, address: str, complains: bool = False, **context) -> Iterator:
    """Open a page; it must not use other hosts, nor complain on the console unless expected."""
    with browser.new_context(viewport={"width": 1280, "height": 800}, **context) as own:
        page, hosts, complaints = own.new_page(), set(), []
        page.set_default_timeout(1000 * PATIENCE)
        page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        page.on(
            "console", lambda line: complaints.append(line.text) if line.type == "error" else None
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        page.get_by_label("What do you want to hear?").wait_for()
        yield page
        assert hosts == {urlsplit(address).netloc} and (complains or complaints == [])


@pytest.fixture
def page(browser, server):
    with opened(browser, server) as page:
        yield page


def ask(page, query: str) -> None:
    page.get_by_label("What do you want to hear?").fill(query)
    page.keyboard.press("Enter")


def status(page, text: str) -> str:
    """What the page says once it says something with `text`."""
    from playwright.sync_api import expect

    line = page.locator("#status .message", has_text=text)
    expect(line, f"the page says: {page.locator('#status').inner_text()}").to_be_visible(
        timeout=1000 * PATIENCE
    )
    return line.inner_text()


def found(page) -> list[str]:
    return page.locator(".hit").evaluate_all("cards => cards.map(card => card.dataset.file)")


def card_of(page, file: str):
    return page.locator(".hit").nth(found(page).index(file))


def time_of(card) -> float:
    return card.locator("audio").evaluate("audio => audio.currentTime")


def upload(page, path: Path) -> None:
    page.get_by_role("tab", name="With a sound").click()
    page.locator("#clip input[type=file]").set_input_files(path)
    page.locator("#clip").get_by_text(path.stem[:8]).first.wait_for()


# --- in the browser ---


@needs_chromium
def test_a_sentence_brings_players_pictures_and_attention(page, indexed):
    ask(page, QUERY)
    status(page, "answers in")
    expected = AudioIndex.open(indexed).search(QUERY, 10)
    assert found(page) == [hit.file for hit in expected]
    for card, hit in zip(page.locator(".hit").all(), expected, strict=True):
        assert card.locator(".score").inner_text() == f"{hit.score:.3f}"
        if hit.file == GONE:
            assert (
                "no longer there" in card.locator(".message.error").inner_text()
                and card.locator("audio").count() == 0
            )
            continue
        card.scroll_into_view_if_needed()
        picture = card.locator("img")
        page.wait_for_function("img => img.complete", arg=picture.element_handle())
        assert picture.evaluate(
            "img => img.naturalWidth"
        ) > 20 and "Spectrogram of" in picture.get_attribute("alt")
        spans = [f"{own.start:.1f}–{own.end:.1f} s" for own in hit.moments]
        buttons = card.locator(".heard")
        assert buttons.all_inner_texts() == [f"heard at {spans[0]}", *spans[1:]]
        for number, button in enumerate(buttons.all(), 1):
            label = button.get_attribute("aria-label")
            assert f"stretch {number} of {len(spans)}" in label
        bands = [
            (float(left), float(left) + float(width))
            for left, width in card.locator(".band").evaluate_all(
                "bands => bands.map(band => [band.style.left, band.style.width].map(parseFloat))"
            )
        ]
        length = hit.end - hit.start
        places = [(own.start - hit.start, own.end - hit.start) for own in hit.moments]
        np.testing.assert_allclose(bands, 100 * np.array(places) / length, atol=0.02)
        points = card.locator(".attention polyline").get_attribute("points").split()
        highest = min(points, key=lambda point: float(point.split(",")[1]))
        peak = (hit.attention.argmax() + 0.5) * hit.frame_seconds / (hit.end - hit.start)
        assert float(highest.split(",")[0]) / 1000 == pytest.approx(peak, abs=0.02)
    assert page.title() == "Search recordings"  # no file name has become code
    assert card_of(page, NASTY).locator("h2").inner_text() == NASTY


@needs_chromium
def test_a_player_plays_and_a_click_on_the_picture_jumps(page):
    ask(page, QUERY)
    status(page, "answers in")
    card = card_of(page, "far/away/long.flac")  # its excerpt, 2 of 8 s
    start, end = (float(card.get_attribute(f"data-{name}")) for name in ("start", "end"))
    timeline = card.locator(".timeline").first
    timeline.scroll_into_view_if_needed()
    box = timeline.bounding_box()
    share = next(share for share in (0.6, 0.5, 0.4, 0.3, 0.2) if is_free(card, share))
    timeline.click(position={"x": share * box["width"], "y": 20})
    place = start + share * (end - start)
    page.wait_for_function(
        "([audio, place]) => audio.currentTime > place + 0.2",
        arg=[card.locator("audio").element_handle(), place],
    )
    assert place < time_of(card) < place + 1 and end > start + 1.5
    timeline.focus()
    page.keyboard.press("Enter")
    assert card.locator("audio").evaluate("audio => audio.paused")
    page.keyboard.press("Home")
    assert time_of(card) == pytest.approx(start, abs=0.01)
    page.keyboard.press("ArrowRight")
    assert time_of(card) == pytest.approx(start + 1, abs=0.01)
    assert timeline.get_attribute("aria-valuetext") == f"{start + 1:.1f} s"
    # which Chromium itself does not play; 1 s of it after resampling its header
    other = card_of(page, "far/apple.aiff")
    other.locator("audio").evaluate("audio => audio.play()")
    page.wait_for_function(
        "audio => audio.currentTime > 0.2", arg=other.locator("audio").element_handle()
    )
    card.locator("audio").evaluate("audio => audio.play()")
    assert other.locator("audio").evaluate("audio => audio.paused")  # one at a time


@needs_chromium
def test_a_long_file_is_shown_whole_with_its_curve(page, indexed):
    ask(page, QUERY)
    status(page, "answers in")
    assert card_of(page, "low steady.wav").locator(".show-whole").count() == 0  # it is shown whole
    card = card_of(page, "far/away/long.flac")  # an excerpt of 2 s of its 8 s
    button = card.locator(".show-whole")
    button.click()
    whole = card.locator(".whole")
    whole.wait_for()
    assert button.get_attribute("aria-expanded") == "true"
    page.wait_for_function(
        "image => image.naturalWidth > 0", arg=whole.locator("img").element_handle()
    )
    expected = AudioIndex.open(indexed).locate(QUERY, "far/away/long.flac")
    bands = whole.locator(".band")
    spans = bands.evaluate_all(
        "all => all.map(own => [own.dataset.from, own.dataset.to].map(Number))"
    )
    np.testing.assert_allclose(spans, [own[:2] for own in expected.moments[0]], atol=1e-3)
    line = whole.locator("polyline").get_attribute("points").split()
    heights = np.array([float(point.split(",")[1]) for point in line[1:-1]])
    curve = expected.curves[0]
    assert len(heights) == len(curve) and heights.argmin() == curve.argmax()
    # a click on a stretch plays it, one elsewhere goes there
    audio = card.locator("audio")
    audio.evaluate(PAUSES)
    bands.first.evaluate("band => band.click()")
    page.wait_for_function("window.pauses.length > 0")
    assert time_of(card) == pytest.approx(spans[0][1], abs=0.05)
    timeline = whole.locator(".timeline")
    timeline.focus()
    page.keyboard.press("End")
    assert time_of(card) == pytest.approx(8.0, abs=0.05)
    page.keyboard.press("Home")
    assert time_of(card) == pytest.approx(0.0, abs=0.05)
    assert whole.locator(".playhead").evaluate("own => own.hidden") is False
    button.click()
    assert not whole.is_visible() and button.get_attribute("aria-expanded") == "false"


def is_free(card, share: float) -> bool:
    """Whether no stretch is drawn at this share of the picture's width."""
    start, end = (float(card.get_attribute(f"data-{name}")) for name in ("start", "end"))
    place = start + share * (end - start)
    spans = card.locator(".band").evaluate_all(
        "bands => bands.map(band => [Number(band.dataset.from), Number(band.dataset.to)])"
    )
    return all(not first - 0.05 <= place <= last + 0.05 for first, last in spans)


# Each pause of a player, with its place.
PAUSES = """audio => {
    window.pauses = [];
    audio.addEventListener("pause", () => window.pauses.push(audio.currentTime));
}"""


@needs_chromium
def test_a_stretch_is_played_to_its_end_by_click_and_by_key(page):
    ask(page, QUERY)
    status(page, "answers in")
    card = card_of(page, "far/away/long.flac")
    audio, button = card.locator("audio"), card.locator(".heard").first
    first, last = (float(button.get_attribute(f"data-{name}")) for name in ("from", "to"))
    assert last - first < 1.9  # of an excerpt of 2 s
    audio.evaluate(PAUSES)

    def check_played() -> None:
        page.wait_for_function("window.pauses.length > 0")
        (place,) = page.evaluate("window.pauses")
        assert last <= place < last + 0.15
        assert time_of(card) == pytest.approx(last, abs=0.05)
        assert card.locator(".playing").count() == 0
        page.evaluate("window.pauses = []")

    card.locator(".band").first.click()
    check_played()
    button.focus()
    page.keyboard.press("Enter")
    check_played()
    # who goes elsewhere meanwhile is not stopped
    elsewhere = last + 1.0
    card.evaluate(
        """(card, place) => {
            card.querySelector(".heard").click();
            card.querySelector("audio").currentTime = place;
        }""",
        elsewhere,
    )
    page.wait_for_function(
        "([audio, place]) => audio.currentTime > place",
        arg=[audio.element_handle(), elsewhere + 0.3],
    )
    assert page.evaluate("window.pauses") == [] and card.locator(".playing").count() == 0
    audio.evaluate("audio => audio.pause()")


@needs_chromium
def test_stretches_are_saved_from_the_page(page, indexed, sounds, tmp_path):
    ask(page, QUERY)
    status(page, "answers in")
    hits = AudioIndex.open(indexed).search(QUERY, 10)

    def save(link) -> Path:
        with page.expect_download() as download:
            link.click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        return path

    every = page.locator(".save-all")
    every.locator("summary").click()
    stretches = [(hit, own) for hit in hits for own in hit.moments]
    with open(save(every.get_by_text("CSV")), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    objects = json.loads(save(every.get_by_text("JSON")).read_text(encoding="utf-8"))
    for row, own, (hit, moment) in zip(rows, objects, stretches, strict=True):
        assert (row["query"], row["file"]) == (own["query"], own["file"]) == (QUERY, hit.file)
        assert own["from"] == round(moment.start, 3) and float(row["to"]) == round(moment.end, 3)
    with zipfile.ZipFile(save(every.get_by_text("Audacity"))) as file:
        assert set(file.namelist()) == {f"{hit.file}.labels.txt" for hit in hits}
    with zipfile.ZipFile(save(every.get_by_text("Raven"))) as file:
        assert set(file.namelist()) == {  # one is gone, and a table tells its highest frequency
            f"{hit.file}.Table.1.selections.txt" for hit in hits if hit.file != GONE
        }
    hit = next(hit for hit in hits if hit.file == "far/away/long.flac")
    card = card_of(page, hit.file)
    card.locator("summary").click()
    labels = save(card.get_by_text("Audacity")).read_text(encoding="utf-8")
    times = [tuple(map(float, line.split("\t")[:2])) for line in labels.splitlines()]
    np.testing.assert_allclose(times, sorted(own[:2] for own in hit.moments), atol=1e-5)
    (table,) = label_files("raven", stretches_of(QUERY, [hit]), sounds.joinpath).values()
    assert save(card.get_by_text("Raven")).read_text(encoding="utf-8") == table
    path = save(card.get_by_text("Whole recording"))
    assert path.name == "long.flac" and path.read_bytes() == (sounds / hit.file).read_bytes()
    samples, rate = soundfile.read(save(card.locator("a.save").first))
    whole, own_rate = soundfile.read(sounds / hit.file)
    moment = hit.moments[0]
    part = whole[round(moment.start * own_rate) : round(moment.end * own_rate)]
    assert rate == own_rate
    np.testing.assert_allclose(samples, part, atol=1e-4)
    # names that look like code stay names
    card = card_of(page, NASTY)
    card.locator("summary").click()
    assert save(card.locator("a.save").first).suffix == ".wav"
    assert page.title() == "Search recordings"


@needs_chromium
def test_filters_and_more_like_this(page, indexed, sounds):
    page.get_by_role("button", name="Filters").click()
    page.get_by_label("Folder").click()
    page.get_by_role("option", name="far", exact=True).click()
    ask(page, QUERY)
    status(page, " in 2 of 6")
    assert set(found(page)) == {"far/apple.aiff", "far/away/long.flac"}
    page.get_by_label("Longest file, s").fill("5")
    page.get_by_role("button", name="Search").click()
    status(page, " in 1 of 6")
    assert found(page) == ["far/apple.aiff"]
    page.get_by_label("Shortest file, s").fill("4.5")
    page.get_by_role("button", name="Search").click()
    assert (
        status(page, "filters") == "no recording matches the filters: widen them"
        and found(page) == []
    )
    page.get_by_label("Shortest file, s").fill("6")
    page.get_by_role("button", name="Search").click()
    assert "no file is longer than 6 s and shorter than 5 s" in status(page, "longer than")
    page.get_by_label("Shortest file, s").fill("")
    page.get_by_role("button", name="Search").click()
    status(page, " in 1 of 6")
    page.get_by_label("Longest file, s").fill("")
    page.get_by_label("Folder").click()
    page.get_by_role("option", name="all folders").click()
    card_of(page, "far/apple.aiff").get_by_role("button", name="More like").click()
    assert "like far/apple.aiff, 0.0 to" in status(page, "like")
    others = [
        hit.file for hit in AudioIndex.open(indexed).search_audio(sounds / "far" / "apple.aiff", 10)
    ]
    assert found(page) == others and "far/apple.aiff" not in others
    assert page.locator(".attention").count() == 0  # a sound asks no frames


@needs_chromium
def test_marks_rank_at_once_and_are_saved_as_a_detector(page, indexed):
    ask(page, QUERY)
    status(page, "answers in")
    index = AudioIndex.open(indexed)
    hits = [hit for hit in index.search(QUERY, 10) if hit.file not in (GONE, "far/away/long.flac")]

    def button(number: int, name: str):
        return card_of(page, hits[number].file).get_by_role("button", name=f"{name}: ")

    def check(*marks: Mark) -> None:
        own = index.search(index.refine(QUERY, marks), 10)
        assert found(page) == [hit.file for hit in own]
        scores = page.locator(".score").all_inner_texts()
        assert scores == [f"{hit.score:.3f}" for hit in own]

    wrong, right = Mark.of(hits[0], False), Mark.of(hits[2], True)
    button(0, "Wrong").click()
    page.locator(".learned", has_text="0 right and 1 wrong").wait_for()
    check(wrong)
    button(2, "Right").focus()
    page.keyboard.press("Enter")
    page.locator(".learned", has_text="1 right and 1 wrong").wait_for()
    check(wrong, right)
    assert button(2, "Right").get_attribute("aria-pressed") == "true"
    assert button(0, "Wrong").get_attribute("aria-pressed") == "true"
    button(0, "Wrong").click()  # the same mark again takes it back
    page.locator(".learned", has_text="1 right and 0 wrong").wait_for()
    check(right)
    try:
        page.get_by_role("button", name="Save as detector").click()  # without a name
        assert page.get_by_label("Name of the detector").evaluate(
            "own => own === document.activeElement"
        )
        page.keyboard.type("my <b>tone")
        page.keyboard.press("Enter")
        assert "cannot be the name" in status(page, "name of a detector")
        ask(page, QUERY)
        status(page, "answers in")
        button(2, "Right").click()
        page.get_by_label("Name of the detector").fill("my tone")
        page.keyboard.press("Enter")
        status(page, "saved as the detector 'my tone'")
        detector = index.detectors.load("my tone")
        assert (detector.query, detector.marks) == (QUERY, (right,))
        ask(page, "a shrill note")
        page.locator(".learned").wait_for(state="detached")
        page.get_by_role("button", name="my tone").click()
        status(page, "by the detector 'my tone'")
        check(right)
        page.get_by_role("button", name="Forget the marks").click()
        page.locator(".learned").wait_for(state="detached")
        assert found(page) == [hit.file for hit in index.search(QUERY, 10)]
    finally:
        index.detectors.delete("my tone")


@needs_chromium
def test_filters_by_metadata_and_sentences_not_to_be_heard(browser, models, sounds, tmp_path):
    table = "file_name,place,year\nlow steady.wav,<b>forest,2021\nfar/away/long.flac,town,2022\n"
    (tmp_path / "metadata.csv").write_text(table)
    index = AudioIndex.build(
        sounds, models / "tap", tmp_path / "index", metadata=tmp_path / "metadata.csv"
    )
    with served(index) as address, opened(browser, address) as page:
        page.get_by_role("button", name="Filters").click()
        page.get_by_label("place", exact=True).click()
        page.get_by_role("option", name="<b>forest (1)").click()
        ask(page, QUERY)
        status(page, "in 1 of ")
        assert found(page) == ["low steady.wav"]
        assert "place: <b>forest" in page.locator(".facts").inner_text()
        page.wait_for_url("**where.place=**")
        link = page.url
        page.get_by_label("place", exact=True).click()
        page.get_by_role("option", name="any").click()
        page.get_by_label("year", exact=True).fill("2022..")
        ask(page, QUERY)
        page.wait_for_url("**where.year=2022..**")
        assert set(found(page)) == {"far/away/long.flac"}
        page.get_by_label("year", exact=True).fill("soon")
        ask(page, QUERY)
        assert "year holds numbers" in status(page, "year")
        page.get_by_label("year", exact=True).fill("")
        page.get_by_label("Not to be heard").fill("a shrill tone")
        ask(page, QUERY)
        page.wait_for_url("**without=**")
        hits = index.search(QUERY, 10, without="a shrill tone")
        assert found(page) == [hit.file for hit in hits]
        assert page.locator(".mark").count() == 0  # marks belong to one sentence
        page.get_by_label("Lowest score").fill(f"{hits[0].score - 1e-6:.6f}")
        ask(page, QUERY)
        page.wait_for_url("**min_score=**")
        status(page, "1 answer in")
    with (
        served(index) as address,
        opened(browser, address + urlsplit(link)._replace(scheme="", netloc="").geturl()) as page,
    ):
        status(page, "in 1 of ")
        assert found(page) == ["low steady.wav"]
        assert page.get_by_label("place", exact=True).input_value() == "<b>forest (1)"


@needs_chromium
def test_a_sentence_and_a_sound_are_searched_together(page, indexed, tmp_path):
    clip = tmp_path / "my own.wav"
    soundfile.write(clip, tone(3, 1, 1.0, np.random.default_rng(9)), SAMPLE_RATE)
    upload(page, clip)
    page.get_by_label("What else do you want to hear?").fill(QUERY)
    page.get_by_role("button", name="Find similar").click()
    status(page, "like my own.wav and ")
    hits = AudioIndex.open(indexed).search(QUERY, 10, audio=clip)
    assert found(page) == [hit.file for hit in hits]


@needs_chromium
def test_answers_that_do_not_match_are_below_a_line(browser, indexed, monkeypatch):
    index = AudioIndex.open(indexed)
    hits = index.search(QUERY)
    with served(index) as address, opened(browser, address, complains=True) as page:
        for num_matches in (2, 0):
            judged = [replace(hit, is_match=hit.rank <= num_matches) for hit in hits]
            monkeypatch.setattr(index, "search", lambda *_, found=judged, **__: found)
            ask(page, QUERY)
            status(page, "Nothing matches" if not num_matches else "answers in")
            assert found(page) == [hit.file for hit in hits]
            assert page.locator(".line").count() == 1
            below = page.locator(".line ~ .hits .hit").count()
            assert below == len(hits) - num_matches


@needs_chromium
def test_a_link_to_a_query_asks_it_again(browser, server, indexed):
    expected = [hit.file for hit in AudioIndex.open(indexed).search(QUERY, 1, within="far")]
    with opened(browser, server) as page:
        assert "?" not in page.url and found(page) == []  # no link, no question
        page.get_by_role("button", name="Filters").click()
        page.get_by_label("Folder").click()
        page.get_by_role("option", name="far", exact=True).click()
        page.get_by_role("spinbutton", name="Results").fill("1")
        ask(page, QUERY)
        status(page, "1 answer in 1 of 6")
        page.wait_for_url("**/?*")
        link = page.url
        assert "token" not in link
        assert page.get_by_role("link", name="Link to this query").evaluate("a => a.href") == link
        assert found(page) == expected
        card_of(page, expected[0]).get_by_role("button", name="More like").click()
        status(page, "like")
        page.wait_for_url(f"{server}/")  # no link to a sound
    with opened(browser, link) as page:
        status(page, "1 answer in 1 of 6")
        assert found(page) == expected and page.url == link
        assert page.get_by_label("What do you want to hear?").input_value() == QUERY
        assert page.get_by_label("Folder").input_value() == "far"  # shown, because it is used
        ask(page, f"{QUERY} again")  # fields of a link are fields like others
        status(page, "1 answer in 1 of 6")
        page.wait_for_url("**again**")


LINKS = {
    "<script>document.title=1</script><img src=x onerror=document.title=1> tone": {},
    '"><b>a low tone</b>': {},
    "javascript:document.title=1 tone": {},
    "a tone ${1+1} {{value}}": {},
    "a low tone": {"k": "1e9", "min_seconds": "NaN", "max_seconds": "-1", "x": "<b>"},
    "a steady tone": {"k": "0", "min_seconds": "abc", "token": "x", "file": "/etc/passwd"},
}


@needs_chromium
@pytest.mark.parametrize("query", LINKS)
def test_a_link_that_looks_like_code_is_a_query(browser, server, query):
    fields = {"q": query, **LINKS[query]}
    with opened(browser, f"{server}/?{urlencode(fields)}") as page:
        status(page, "answers in")
        page.wait_for_url(f"{server}/?{urlencode({'q': query})}")  # what no field holds is gone
        assert page.title() == "Search recordings" and page.locator("b, script + img").count() == 0
        assert page.get_by_label("What do you want to hear?").input_value() == query
        saved = page.locator(".save-all a").first.get_attribute("href")
        assert saved.startswith("data:text/csv;base64,")


@needs_chromium
def test_after_a_link_that_the_index_cannot_answer_the_page_can_be_used(browser, server):
    with opened(browser, f"{server}/?q=tone&within=../..&year=2021") as page:
        status(page, "the index has no folder '../..'")
        status(page, "not used from the link: year=2021")
        assert found(page) == []
        page.get_by_role("button", name="Search").click()
        status(page, "answers in")
        page.get_by_role("button", name="Wrong").first.click()
        page.locator(".learned").wait_for()
        assert page.url == f"{server}/?q=tone"


@needs_chromium
def test_a_recording_of_ones_own(page, indexed, sounds, tmp_path):
    clip = tmp_path / "my own.wav"
    soundfile.write(clip, tone(3, 1, 1.0, np.random.default_rng(9)), SAMPLE_RATE)
    page.get_by_role("tab", name="With a sound").click()
    page.get_by_role("button", name="Find similar").click()
    assert status(page, "upload") == "there is no recording yet: upload one first"
    upload(page, clip)
    page.get_by_role("button", name="Find similar").click()
    status(page, "like my own.wav")
    index = AudioIndex.open(indexed)
    assert found(page) == [hit.file for hit in index.search_audio(clip, 10)]
    page.get_by_role("button", name="Score the sentences").click()
    assert "there is no sentence" in status(page, "sentence")
    sentences = [
        "A steady low tone.",
        "A shrill note.",
        "Someone plays a <b>rising</b> middle tone.",
    ]
    page.get_by_label("Sentences to compare it with").fill("\n".join([*sentences, "  "]))
    page.get_by_role("button", name="Score the sentences").click()
    status(page, "my own.wav against 3 sentences")
    rows = [row.locator("td").all_inner_texts() for row in page.locator(".scores tbody tr").all()]
    expected = sorted(zip(index.score_audio(clip, sentences), sentences, strict=True), reverse=True)
    assert [(row[0], row[-1]) for row in rows] == [
        (sentence, f"{score:.3f}") for score, sentence in expected
    ]


CLICK_AT_ONCE = """() => {
    const clip = document.querySelector("#clip");
    const seen = new MutationObserver(() => {
        if (!clip.querySelector("a[href*='file=']")) return;
        seen.disconnect();
        document.querySelector("#by-sound").click();
    });
    seen.observe(clip, { childList: true, subtree: true });
}"""


@needs_chromium
def test_a_click_in_the_moment_that_an_upload_is_shown_finds_it(page, tmp_path):
    clip = tmp_path / "quick.wav"
    soundfile.write(clip, tone(3, 1, 1.0, np.random.default_rng(9)), SAMPLE_RATE)
    page.get_by_role("tab", name="With a sound").click()
    page.get_by_label("Sentences to compare it with").wait_for()
    page.evaluate(CLICK_AT_ONCE)
    page.locator("#clip input[type=file]").set_input_files(clip)
    page.locator("#status .message", has_text=re.compile("quick|no recording yet")).wait_for()
    assert "like quick.wav" in page.locator("#status").inner_text()
    page.locator("#clip").get_by_label("Clear").click()
    page.get_by_role("button", name="Score the sentences").click()
    assert status(page, "upload") == "there is no recording yet: upload one first"


@needs_chromium
@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "is empty"), (b"RIFF no sound at all" * 50, "is not a sound file")],
)
def test_a_broken_upload_gets_one_line(page, tmp_path, content, reason):
    clip = tmp_path / "broken.wav"
    clip.write_bytes(content)
    upload(page, clip)
    page.get_by_label("Sentences to compare it with").fill(QUERY)
    for button in ("Find similar", "Score the sentences"):
        page.get_by_role("button", name=button).click()
        line = status(page, reason)
        assert line.startswith("broken.wav") and "\n" not in line


@needs_chromium
def test_queries_that_are_none_and_one_that_is_too_long(page):
    for query, reason in (
        ("", "the query is empty"),
        ("🐕🐸", "no words"),
        ("xyzzy", "knows no word"),
    ):
        ask(page, query)
        line = status(page, reason)
        assert "\n" not in line and found(page) == []
    ask(page, " ".join(["steady low tone"] * 3334))
    assert "10004 tokens, of which the first" in status(page, "tokens")
    assert len(found(page)) > 4


@needs_chromium
def test_several_people_ask_at_once(browser, server, indexed):
    index = AudioIndex.open(indexed)
    queries = [f"A {rhythm} {note} tone." for rhythm, note in zip(RHYTHMS, NOTES, strict=False)]
    with (
        opened(browser, server) as first,
        opened(browser, server) as second,
        opened(browser, server) as third,
    ):
        pages = (first, second, third)
        for own, query in zip(pages, queries, strict=True):
            ask(own, query)
        for own, query in zip(pages, queries, strict=True):
            status(own, "answers in")
            assert found(own) == [hit.file for hit in index.search(query, 10)]
            scores = own.locator(".score").all_inner_texts()
            assert scores == [f"{hit.score:.3f}" for hit in index.search(query, 10)]


@needs_chromium
def test_nothing_is_wider_than_a_phone_and_targets_are_large(browser, server):
    with opened(browser, server, is_mobile=True, has_touch=True) as page:
        page.set_viewport_size({"width": 390, "height": 844})
        ask(page, QUERY)
        status(page, "answers in")
        for tab in ("With a sound", "With words"):
            page.get_by_role("tab", name=tab).tap()
            assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.locator(".save-all summary").tap()
        heights = page.locator(
            "#search, #examples button, .like, .mark, .heard, .save-all a, summary, audio"
        ).evaluate_all("all => all.map(one => one.offsetHeight)")
        assert min(heights) >= 44
        assert page.locator(".hit").evaluate_all(
            "all => all.every(one => one.scrollWidth <= one.clientWidth)"
        )


@needs_chromium
def test_an_empty_index_and_mean_pooling(browser, models, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "nothing.wav").write_bytes(b"")
    empty = AudioIndex.build(tmp_path / "empty", models / "mean", tmp_path / "empty.index")
    with served(empty) as address, opened(browser, address) as page:
        assert "holds no recordings" in status(page, "recordings")
        assert "1 file could not be read" in page.locator("#heading").inner_text()
        ask(page, QUERY)
        assert "holds no recordings" in status(page, "the index holds")
    soundfile.write(
        tmp_path / "empty" / "low.wav", tone(0, 0, 1.0, np.random.default_rng(0)), SAMPLE_RATE
    )
    empty.add()
    with served(empty) as address, opened(browser, address) as page:
        page.get_by_role("button", name="a clock ticks").click()
        assert "does not know: clock, ticks, quietly" in status(page, " in 1 of 1")
        assert page.locator("img").count() == 1 and page.locator(".attention").count() == 0
        (hit,) = empty.search("a clock ticks quietly")
        stretches = len(hit.moments) * hit.is_located
        assert page.locator(".band").count() == page.locator(".heard").count() == stretches


@needs_chromium
def test_a_recording_that_broke_since_is_said_on_its_card(browser, models, tmp_path):
    (tmp_path / "sounds").mkdir()
    soundfile.write(
        tmp_path / "sounds" / "low.wav", tone(0, 0, 1.0, np.random.default_rng(0)), SAMPLE_RATE
    )
    index = AudioIndex.build(tmp_path / "sounds", models / "tap", tmp_path / "index")
    (tmp_path / "sounds" / "low.wav").write_bytes(b"no sound")
    with served(index) as address, opened(browser, address, complains=True) as page:
        ask(page, QUERY)
        status(page, "1 answer in 1 of 1 recording")
        page.locator(".hit .timeline").click()
        page.locator(".hit [role=alert]").get_by_text("cannot be played").wait_for()
        page.locator(".hit .like").click()
        assert status(page, "is not a sound file").startswith("low.wav")


# --- without one ---


def get(
    address: str, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=PATIENCE)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    return (
        answer.status,
        {name.lower(): value for name, value in answer.getheaders()},
        answer.read(),
    )


def test_ranges_are_parts_of_one_wave_file(server, sounds, tmp_path):
    path = "/recording?file=" + quote("far/away/long.flac")
    code, headers, whole = get(server, path)
    (tmp_path / "whole.wav").write_bytes(whole)
    expected, rate = soundfile.read(sounds / "far" / "away" / "long.flac", dtype="float32")
    samples, wave_rate = soundfile.read(tmp_path / "whole.wav", dtype="float32")
    assert (code, wave_rate, int(headers["content-length"])) == (200, rate, len(whole))
    np.testing.assert_allclose(samples, expected, atol=1e-4)
    for first, last in (
        (0, 1),
        (0, 43),
        (10, 60),
        (44, 44),
        (1001, 2000),
        (len(whole) - 3, len(whole) - 1),
    ):
        code, headers, part = get(server, path, Range=f"bytes={first}-{last}")
        assert (code, part, headers["content-range"]) == (
            206,
            whole[first : last + 1],
            f"bytes {first}-{last}/{len(whole)}",
        )
    assert get(server, path, Range="bytes=-5")[2] == whole[-5:]
    assert get(server, path, Range=f"bytes={len(whole)}-")[0] == 416
    code, headers, part = get(server, path, method="HEAD")
    assert (code, int(headers["content-length"]), part) == (200, len(whole), b"")


def test_a_foreign_name_for_this_machine_is_refused(server):
    path = f"/recording?file={quote('far/apple.aiff')}"
    for host, expected in (
        ("evil.example", 400),
        ("evil.example:7860", 400),
        ("localhost:7860", 200),
        ("[::1]:7860", 200),
    ):
        assert get(server, path, Host=host)[0] == expected, host
    assert get(server, "/", Host="evil.example")[0] == 400


def test_a_recording_of_an_hour_is_never_decoded_whole(tmp_path):
    file = tmp_path / "hour.flac"
    with soundfile.SoundFile(file, "w", 8_000, 2) as writer:
        for minute in range(60):
            writer.write(np.full((60 * 8_000, 2), minute / 100, dtype=np.float32))
    wave = audio.WaveFile(file, 3600.0)
    assert wave.size == 44 + 3600 * 8_000 * 4
    at = 44 + 1800 * 8_000 * 4
    part = np.frombuffer(wave.read(at, at + 4096), dtype="<i2")
    assert len(part) == 2048 and np.abs(part / 32767 - 0.30).max() < 1e-3


def test_sizes_beyond_32_bits_have_their_own_header(tmp_path, monkeypatch):
    data = np.arange(300, dtype="<i2").reshape(-1, 2)
    monkeypatch.setattr(audio, "RIFF_LIMIT", 500)
    (tmp_path / "large.wav").write_bytes(audio.wave_header(150, 2, SAMPLE_RATE) + data.tobytes())
    samples, rate = soundfile.read(tmp_path / "large.wav", dtype="int16")
    assert soundfile.info(tmp_path / "large.wav").format == "RF64" and rate == SAMPLE_RATE
    np.testing.assert_array_equal(samples, data)


def test_what_a_truncated_recording_lacks_is_silence(tmp_path):
    file = tmp_path / "cut.wav"
    soundfile.write(file, np.full(8_000, 0.5, dtype=np.float32), 8_000)
    wave, whole = audio.WaveFile(file, 1.0), file.read_bytes()
    file.write_bytes(whole[:8_044])
    data = np.frombuffer(wave.read(44, wave.size), dtype="<i2")
    assert len(data) == 8_000 and data[3_000] > 16_000 and not data[5_000:].any()


def test_more_than_two_channels_are_averaged(tmp_path):
    soundfile.write(
        tmp_path / "four.wav", np.tile(np.float32([0.1, 0.2, 0.3, 0.4]), (100, 1)), 8_000
    )
    wave = audio.WaveFile(tmp_path / "four.wav", 100 / 8_000)
    assert wave.size == 44 + 200 and np.frombuffer(wave.read(44, 244), dtype="<i2")[
        5
    ] / 32767 == pytest.approx(0.25, abs=1e-4)


@pytest.mark.parametrize(
    ("folders", "shown"),
    [
        ([], []),
        (["a", "a/b"], ["a", "a/b"]),
        # 100 above 100,000: the upper ones
        (
            [name for a in range(100) for name in (f"{a}", *(f"{a}/{b}" for b in range(1000)))],
            [f"{a}" for a in range(100)],
        ),
        ([f"{number:06}" for number in range(100_000)], [f"{number:06}" for number in range(200)]),
        ([f"x/{number:06}" for number in range(1000)], []),
    ],
    ids=["none", "few", "deep", "flat", "one"],
)
def test_the_list_of_folders_is_short(folders, shown):
    field = folder_field(SimpleNamespace(folders=folders))
    assert [value for _, value in field.choices] == ["", *shown]
    assert field.visible == bool(folders) and field.allow_custom_value


@pytest.mark.parametrize(
    "route",
    [
        "download?file={}",
        "recording?file={}",
        "picture?start=0&end=1&file={}",
        "clip?start=0&end=1&file={}",
        "overview?file={}",
        "whole?query=tone&file={}",
        "gradio_api/file={}",
    ],
)
def test_nothing_outside_the_index_is_served(server, sounds, route):
    secret = sounds.parent / "secret.wav"
    (sounds / GONE).unlink(missing_ok=True)
    (sounds / GONE).symlink_to(secret)  # an indexed name that leads elsewhere since
    try:
        for path in (
            "../secret.wav",
            "far/../../secret.wav",
            str(secret),
            GONE,
            "no such.wav",
            "",
            "a\0b",
        ):
            for name in (quote(path), quote(path, safe=""), quote(quote(path, safe=""), safe="")):
                code, _, body = get(server, "/" + route.format(name))
                assert code in (400, 403, 404) and str(sounds.parent).encode() not in body.replace(
                    str(secret).encode(), b""
                ), path
    finally:
        (sounds / GONE).unlink()
    own = "low steady.wav"
    if route.startswith("gradio"):  # the page's own route is the only way to a recording
        assert get(server, "/" + route.format(quote(str(sounds / own))))[0] == 403
        assert get(server, "/" + route.format(quote(str(ROOT / "README.md"))))[0] == 403
    else:
        assert get(server, "/" + route.format(quote(own)))[0] == 200


@pytest.mark.parametrize(
    "span",
    [
        "start=0&end=4000",
        "start=-1&end=1",
        "start=2&end=1",
        "start=0&end=nan",
        "start=0&end=inf",
        "start=x&end=1",
    ],
)
@pytest.mark.parametrize("route", ["picture", "clip"])
def test_pictures_and_clips_of_senseless_excerpts_are_refused(server, route, span):
    assert get(server, f"/{route}?file={quote('low steady.wav')}&{span}")[0] in (400, 422)


def test_the_view_of_a_whole_file(server, sounds):
    file = quote("far/away/long.flac")
    code, headers, content = get(server, f"/overview?file={file}")
    assert code == 200 and headers["content-type"] == "image/png" and content[1:4] == b"PNG"
    assert get(server, f"/overview?file={file}")[2] == content
    code, headers, content = get(server, f"/whole?file={file}&query={quote('<b>tone</b> low')}")
    text = content.decode()
    assert code == 200 and 'class="band"' in text and "<polyline" in text and "<b>" not in text
    text = get(server, f"/whole?file={file}")[2].decode()  # like a sound: no curve
    assert "<img" in text and "<polyline" not in text
    text = get(server, "/whole?query=tone&file=" + quote(NASTY))[2].decode()
    assert "<img src=x" not in text
    for query in ("%00", "..", quote("qqqq"), "a" * 5000):
        assert get(server, f"/whole?file={file}&query={query}")[0] in (200, 400, 404)
    assert get(server, f"/whole?file={file}&query=tone", method="POST")[0] == 405


def pixels(content: bytes) -> np.ndarray:
    """Brightness (rows, columns) of a PNG."""
    return image.imread(io.BytesIO(content))[..., :3].sum(axis=2)


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_an_overview_shows_the_whole_file(tmp_path, rate, monkeypatch):
    seconds = 90
    time = np.arange(seconds * rate) / rate
    low, high = np.sin(2 * np.pi * 300 * time), np.sin(2 * np.pi * 2_000 * time)
    sound = 0.3 * np.where(time < 30, low, np.where(time < 60, 0, high))
    path = tmp_path / "steps.wav"
    soundfile.write(path, sound, rate, subtype="FLOAT")
    picture = pixels(audio.draw_overview(path, seconds))
    columns = picture.shape[1]
    assert columns == audio.OVERVIEW_COLUMNS and picture.shape[0] == audio.NUM_MELS
    third = columns // 3
    rows = [
        int(part.mean(axis=1).argmax())
        for part in (picture[:, : third - 5], picture[:, 2 * third + 5 :])
    ]
    assert rows[0] > rows[1] + 10  # the low tone is lower
    assert picture[:, third + 5 : 2 * third - 5].max() < picture.max() / 3
    # kept until the file changes
    drawn = []
    draw = audio.draw_overview
    monkeypatch.setattr(audio, "draw_overview", lambda *given: drawn.append(1) or draw(*given))
    overviews = audio.Overviews()
    assert overviews(path, seconds) == overviews(path, seconds) and len(drawn) == 1
    soundfile.write(path, sound[: 40 * rate], rate, subtype="FLOAT")
    overviews(path, seconds)
    assert len(drawn) == 2


def test_an_overview_of_a_short_a_cut_and_a_broken_file(tmp_path):
    path = tmp_path / "short.wav"
    soundfile.write(path, np.zeros(10, np.float32), 8_000)
    assert pixels(audio.draw_overview(path, 10 / 8_000)).shape == (audio.NUM_MELS, 1)
    soundfile.write(path, 0.1 * np.ones(80_000), 8_000)
    path.write_bytes(path.read_bytes()[:80_000])
    assert pixels(audio.draw_overview(path, 10.0)).shape[0] == audio.NUM_MELS
    path.write_text("no sound")
    with pytest.raises(UserError, match="short.wav"):
        audio.draw_overview(path, 10.0)
    with pytest.raises(UserError, match="gone.wav"):
        audio.Overviews()(tmp_path / "gone.wav", 10.0)


def test_a_clip_is_a_part_of_its_recording(server, sounds, tmp_path):
    path = "/clip?start=0.25&end=0.5&file=" + quote("far/apple.aiff")
    code, headers, content = get(server, path)
    assert code == 200 and "attachment" in headers["content-disposition"]
    assert headers["content-disposition"].endswith(quote("apple 0.25-0.50.wav"))
    (tmp_path / "clip.wav").write_bytes(content)
    samples, rate = soundfile.read(tmp_path / "clip.wav", dtype="float32")
    whole, own_rate = soundfile.read(sounds / "far" / "apple.aiff", dtype="float32")
    assert (rate, samples.shape) == (own_rate, (round(0.25 * rate), 2))
    part = whole[round(0.25 * rate) : round(0.5 * rate)]
    np.testing.assert_allclose(samples, part, atol=1e-4)
    assert get(server, path, method="POST")[0] in (404, 405)
    assert get(server, path.replace("start=0.25", "start=9").replace("0.5", "9.5"))[0] == 416
    # none beyond its end
    content = get(server, path.replace("end=0.5", "end=2.25"))[2]
    (tmp_path / "clip.wav").write_bytes(content)
    samples, _ = soundfile.read(tmp_path / "clip.wav", dtype="float32")
    rest = whole[round(0.25 * rate) :]
    assert len(rest) - 1 <= len(samples) <= len(rest)  # its length in the index is rounded
    np.testing.assert_allclose(samples, rest[: len(samples)], atol=1e-4)


def test_a_clip_that_its_recording_no_longer_holds_is_an_error(sounds, tmp_path):
    (tmp_path / "short.aiff").write_bytes((sounds / "far" / "apple.aiff").read_bytes())
    with pytest.raises(UserError, match="short.aiff has no sound"):
        audio.read_clip(tmp_path / "short.aiff", 60.0, 50.0, 51.0)


def test_an_upload_of_2_gb_is_refused_before_it_is_sent(server):
    connection = http.client.HTTPConnection(urlsplit(server).netloc, timeout=PATIENCE)
    connection.putrequest("POST", "/gradio_api/upload")
    connection.putheader("Content-Type", "multipart/form-data; boundary=x")
    connection.putheader("Content-Length", str(2 * 10**9))
    connection.endheaders(b"--x\r\n")
    answer = connection.getresponse()
    assert answer.status == 413 and "at most 200 MiB" in json.loads(answer.read())["detail"]


@pytest.mark.parametrize("name", ["absent", "corrupt"])
def test_an_index_that_is_none_is_said_in_one_line(tmp_path, monkeypatch, name):
    for variable in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(variable, "")  # what main sets is taken back
    if name == "corrupt":
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.sqlite").write_text("{")
    with pytest.raises(UserError, match=r"^index .*/(absent|corrupt)[^\n]+$"):
        main(["--index", str(tmp_path / name), "--port", "0"])


def test_a_port_in_use_is_said_in_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = run_module("retrieval.app", "--index", str(tmp_path), "--port", str(port))
    assert result.returncode == 2 and re.fullmatch(
        rf"error: port {port} of 127.0.0.1 cannot be used .+\n", result.stderr
    ), result.stderr


# --- pictures for the README ---


@pytest.mark.skipif(
    "SCREENSHOTS" not in os.environ,
    reason="draws the README's pictures when SCREENSHOTS=FOLDER is set",
)
def test_screenshots(browser):
    folder = Path(os.environ["SCREENSHOTS"])
    with started(ROOT / "data" / "sample" / "index") as address:
        phone = {"is_mobile": True, "has_touch": True, "color_scheme": "dark"}
        for name, size, context in (("page", (1280, 800), {}), ("phone", (390, 844), phone)):
            with opened(browser, address, **context) as page:
                page.set_viewport_size(dict(zip(("width", "height"), size, strict=True)))
                ask(page, "crickets chirp")
                status(page, "answers in")
                card = page.locator(".hit").first
                card.locator(".heard").click()
                page.wait_for_function(
                    "audio => audio.readyState > 2 && audio.currentTime > 0",
                    arg=card.locator("audio").element_handle(),
                )
                page.wait_for_timeout(500)
                card.locator("audio").evaluate("audio => audio.pause()")
                page.evaluate("document.activeElement.blur()")
                page.screenshot(path=folder / f"search_{name}.png")
