"""data_prep/generate_captions.py against a server of this test: a good model, a login page, ..."""

import csv
import gzip
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
import soundfile

from data_prep import build_clotho, generate_captions
from data_prep.captions import chat_endpoint, paraphrases
from data_prep.captions.paraphrases import fault, listed_texts, new_captions, normalised
from data_prep.captions.styles import STYLES
from data_prep.corpora.clotho_files import METADATA_COLUMNS
from retrieval.base.locks import try_lock
from tests.conftest import PATIENCE, ROOT, wait_for
from tests.corpora import error_line, write_csv

WORDS = "alpha bravo charlie delta echo foxtrot golf hotel india juliett".split()
COMMAND = [sys.executable, str(ROOT / "data_prep" / "generate_captions.py")]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No pauses but those that the server asks for, and no key of the person who runs the tests."""
    monkeypatch.setattr(chat_endpoint, "BACKOFF", 0.0)
    monkeypatch.delenv(chat_endpoint.KEY_VARIABLE, raising=False)


def good_answer(question, number):
    """As many captions as asked for; those of another call differ."""
    asked = int(re.search(r"Write (\d+) more", question["messages"][0]["content"])[1])
    clip, tag = clip_of(question), " ".join(WORDS[int(digit)] for digit in str(number))
    texts = [f"Somebody hears the sound {word} of {clip} in call {tag}." for word in WORDS[:asked]]
    return json.dumps(texts)


def clip_of(question):
    """The clip that a question is about: captions of the tests end in its name."""
    return re.search(r"^1\. .* (\w+)\.$", question["messages"][0]["content"], re.MULTILINE)[1]


def completion(text, finish_reason="stop"):
    message = {"role": "assistant", "content": text}
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]}


class Server:
    """Answers with `play(question, number of the call)`.

    That is a text, or (status, headers, body), or None to break the connection.
    """

    def __init__(self):
        self.play = good_answer
        self.questions, self.headers, self.times, self.paths = [], [], [], []
        server, lock = self, threading.Lock()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.questions.append(question)
                    server.headers.append(dict(self.headers))
                    server.paths.append(self.path)
                    server.times.append(time.monotonic())
                    number = len(server.questions)
                answer = server.play(question, number)
                if answer is None:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                if isinstance(answer, str):
                    answer = 200, {}, completion(answer)
                status, headers, body = answer
                body = body if isinstance(body, bytes) else json.dumps(body).encode()
                usual = {"Content-Type": "application/json", "Content-Length": len(body)}
                self.send_response(status)
                for name, value in (usual | headers).items():
                    self.send_header(name, str(value))
                self.end_headers()
                try:
                    self.wfile.write(body)
                except OSError:  # the other side is gone, as it should be in some tests
                    pass
                self.close_connection = "Content-Length" in headers

            def log_message(self, *arguments):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *arguments: None
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def clips_asked(self):
        return [clip_of(question) for question in self.questions]


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def clip_names(number):
    return ["clip" + "".join(WORDS[int(digit)] for digit in str(index)) for index in range(number)]


def write_captions(path, number=3, num_captions=5):
    header = ["file_name", *(f"caption_{i + 1}" for i in range(num_captions))]
    words = WORDS[:num_captions]
    rows = [
        [f"{name}.wav", *(f"Original caption {word} about {name}." for word in words)]
        for name in clip_names(number)
    ]
    return write_csv(path, header, rows)


def read_rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def paths(tmp_path):
    return write_captions(tmp_path / "in.csv"), tmp_path / "out.csv"


def arguments_for(server, paths, *more):
    url = server if isinstance(server, str) else server.url
    model = [] if "--model" in more else ["--model", "phi4"]
    return ["--input", str(paths[0]), "--output", str(paths[1]), "--endpoint", url, *model, *more]


def generate(server, paths, *more):
    return generate_captions.main(arguments_for(server, paths, *more))


def journal_of(paths):
    return paths[1].with_name(f"{paths[1].name}.jsonl")


def journal_clips(paths):
    """Clips of which the journal holds a whole line."""
    lines = journal_of(paths).read_bytes().split(b"\n")[1:-1] if journal_of(paths).exists() else []
    return [json.loads(line)["file_name"].removesuffix(".wav") for line in lines]


# ---- what comes out


def test_five_captions_are_added_and_nothing_else_changes(server, paths, capsys):
    before = paths[0].read_bytes()
    assert generate(server, paths) == 0
    assert paths[0].read_bytes() == before
    rows = read_rows(paths[1])
    assert list(rows[0]) == ["file_name", *(f"caption_{i}" for i in range(1, 11))]
    assert [{name: row[name] for name in list(row)[:6]} for row in rows] == read_rows(paths[0])
    for row in rows:
        new = [row[f"caption_{i}"] for i in range(6, 11)]
        assert len(set(new)) == 5 and all(
            row["file_name"].removesuffix(".wav") in caption for caption in new
        )
    assert sorted(server.clips_asked()) == sorted(clip_names(3)) and set(server.paths) == {
        "/v1/chat/completions"
    }
    question = server.questions[0]
    del question["messages"]
    assert question == {"model": "phi4", "seed": 1, "temperature": 0.8, "stream": False}
    assert "15 new captions for 3 clips; 0 of them are short of captions" in capsys.readouterr().out
    assert not list(paths[1].parent.glob("*.tmp"))


def test_build_clotho_reads_ten_captions_a_clip(server, tmp_path):
    import datasets

    names = clip_names(2)
    (tmp_path / "development").mkdir()
    for name in names:
        soundfile.write(tmp_path / "development" / f"{name}.wav", np.zeros(3200), 32_000)
    rows = [[f"{name}.wav", *[""] * len(METADATA_COLUMNS)] for name in names]
    write_csv(tmp_path / "clotho_metadata_development.csv", ["file_name", *METADATA_COLUMNS], rows)
    original = write_captions(tmp_path / "original.csv", 2)
    assert generate(server, (original, tmp_path / "clotho_captions_development.csv")) == 0
    options = ["--splits", "development", "--num-proc", "1"]
    assert build_clotho.main(["--root", str(tmp_path), *options]) == 0
    split = datasets.load_from_disk(str(tmp_path / "cache"))["development"]
    rows = read_rows(tmp_path / "clotho_captions_development.csv")
    assert split["captions"][:] == [[row[f"caption_{i}"] for i in range(1, 11)] for row in rows]
    assert [len(captions) for captions in split["captions"]] == [10, 10]


def test_columns_are_numbered_on_and_names_are_kept(server, tmp_path):
    paths = (tmp_path / "in.csv", tmp_path / "new" / "out.csv")
    paths[0].write_text(
        '\ufefffile_name,caption_1,note\n"caf\u00e9, no. 1 .wav","A bell, ""loud"", for'
        ' clipalpha.",kept\n',
        encoding="utf-8",
    )
    assert generate(server, paths) == 0
    row = read_rows(paths[1])[0]
    assert list(row) == ["file_name", "caption_1", "note", *(f"caption_{i}" for i in range(2, 7))]
    assert (row["file_name"], row["caption_1"], row["note"]) == (
        "caf\u00e9, no. 1 .wav",
        'A bell, "loud", for clipalpha.',
        "kept",
    )


# ---- what is accepted of an answer

GOOD = ["A dog barks at a passing car.", "Rain falls on a tin roof."]


@pytest.mark.parametrize(
    "answer",
    [
        json.dumps(GOOD),
        f"Here are [2] captions:\n```json\n{json.dumps(GOOD, indent=1)}\n```\nI hope this helps.",
        json.dumps({"captions": GOOD}),
        json.dumps([{"caption": text} for text in GOOD]),
        json.dumps({"caption_6": GOOD[0], "caption_7": GOOD[1]}),
        '["A dog barks at a passing car.", "Rain falls on a tin roof.",]',
        '<think>A list ["of thoughts"]?</think>' + json.dumps([f"1. {GOOD[0]}", f"2. {GOOD[1]}"]),
        f'Sure! Here are two:\n\n1. {GOOD[0]}\n2) "{GOOD[1]}"\n\nLet me know.',
        f"- {GOOD[0]}\n- **{GOOD[1]}**",
        json.dumps([f"“{GOOD[0]}”", f"_`{GOOD[1]}`_"]),
        f'– {GOOD[0]}\n— **"{GOOD[1]}"**',
        f'A list ["of thoughts"]?</think>{json.dumps(GOOD)}',
        "<think>" + "thoughts [" * 100_000 + "</think>" + json.dumps(GOOD),
        json.dumps(GOOD) + "[" * 100_000,
    ],
)
def test_lists_are_found_in_every_wrapping(answer):
    assert listed_texts(answer) == GOOD


def test_quotes_within_a_caption_are_left():
    texts = ['A man shouts "stop" and then "go"', '"Stop" shouts a man in the street']
    assert listed_texts(json.dumps(texts)) == texts and [fault(text, GOOD) for text in texts] == [
        None,
        None,
    ]


NO_LISTS = ["I cannot do that.", "", "[", "[1, 2]", "null", '["A dog barks at', "<html></html>"]
DEEP = ["[" * 5000, "[" * 500 + "]" * 500, '{"a":' * 500 + "1" + "}" * 500]


@pytest.mark.parametrize("answer", [*NO_LISTS, *DEEP])
def test_no_list_is_no_caption(answer):
    assert listed_texts(answer) == []
    assert (
        new_captions(listed_texts(answer), GOOD, 5)[1]
        == "the answer holds neither JSON with captions nor numbered lines"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("A dog barks\nat a passing car outside.", "line break"),
        ("A dog barks 3 times at a car.", "digits"),
        ("一只狗 对着 一辆 路过的 汽车 叫.", "Latin"),
        ("Here are the five descriptions you wanted", "task"),
        ("Sure, a dog barks at a car", "task"),
        ("This caption tells of a barking dog", "task"),
        ("A list of five more sentences follows:", "task"),
        ("I’m sorry, but there is no sound", "task"),
        ("A dog barks.", "has 3 words, expected 5 to 25"),
        (" ".join(["dog"] * 26), "has 26 words"),
        ("", "0 words"),
        ("a dog, barks at -- a passing CAR!", "is a copy"),
    ],
)
def test_faults_are_seen(text, reason):
    assert reason in fault(text, GOOD)


@pytest.mark.parametrize(
    "answer", ["[" * 1_000_000, '{"a":[' * 170_000, "[1," * 330_000, "<think>" * 150_000]
)
def test_hostile_answers_of_a_megabyte_are_read_in_a_moment(answer, monkeypatch):
    # The work grows with the square of what is read: all of it took a minute.
    lengths, decode = [0], json.JSONDecoder.raw_decode
    monkeypatch.setattr(
        json.JSONDecoder,
        "raw_decode",
        lambda self, text, place=0: (lengths.append(len(text)), decode(self, text, place))[1],
    )
    assert listed_texts(answer) == []
    assert max(lengths) <= paraphrases.MAX_CHARACTERS


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("A dog barks for ½ a minute.", "digits"),
        ("A dog barks at Henry Ⅳ outside.", "digits"),
        ("A dog barks at a car².", "digits"),
        ("A dog <b>barks</b> at a car.", "'<'"),
        ("A dog &amp; a cat are fighting.", "'&'"),
        ("A dog barks &quot;woof&quot; at cars.", "'&'"),
        ("A **dog** barks at a car.", "'*'"),
        ("A `dog` barks at a car.", "'`'"),
        ("# A dog barks at a car.", "'#'"),
        ("A [dog](x) barks at a car.", "'['"),
        ("A dog barks [inaudible] at a car.", "'['"),
        ("A dog barks at a car (inaudible).", "'('"),
        ("A dog barks {loudly} at a car.", "'{'"),
        ("A dog barks at a car \U0001f415.", "'\U0001f415'"),
        ("A dog ❤\ufe0f barks at a car.", "'❤'"),
        ("A dog barks at a car, see https://example.org", "'/'"),
        ("A dog barks at a car, see www.example.org", "address"),
        ("The file dog.wav holds a barking dog", "address"),
        ("A dog barks\u200b at a car.", "control"),
        ("A dog barks\x07 at a car.", "control"),
        ("Ａ dog barks at a car.", "Latin"),
        ('A dog barks at "a car.', "quote"),
        ("A dog barks at “a car.", "quote"),
    ],
)
def test_what_no_sentence_holds_is_refused(text, reason):
    assert reason in fault(text, GOOD)


NEW = [
    "A dog barks at a passing truck.",
    "Here a café owner's radio plays.",
    " ".join(["dog"] * 25),
    "It is certainly raining on a roof",
]
NEW += [
    "“Stop!” – a man’s voice, hoarse and rough; then… nothing?",
    "At two a.m. a dog barks: 'woof', \"woof\".",
]
NEW += ["A naïve Ångström-era radio — it hums."]


@pytest.mark.parametrize("text", NEW)
def test_negative_control_good_captions_have_no_fault(text):
    assert fault(text, GOOD) is None


def test_copies_within_an_answer_are_left_out_and_no_more_is_taken_than_asked():
    texts = [
        "A cat meows at the door.",
        "a cat meows, at the door",
        "Cars pass on a wet road.",
        "Birds sing in the tall trees.",
    ]
    assert new_captions(texts, GOOD, 2)[0] == [texts[0], texts[2]]
    new, reason = new_captions(texts[:2], GOOD, 2)
    assert new == texts[:1] and "is a copy" in reason
    assert new_captions(texts[2:], GOOD, 3) == (texts[2:], "2 captions, 3 were asked for")
    assert normalised(texts[0]) == normalised(texts[1])


def test_what_is_good_is_kept_and_only_the_rest_asked_again(server, paths):
    def play(question, number):
        if question["seed"] > 1:
            return good_answer(question, number)
        good = f"A bell rings for {clip_of(question)} in the tower."
        return json.dumps([good, "Too short.", "It rings 2 times in the old tower."])

    server.play = play
    assert generate(server, paths) == 0
    assert len(server.questions) == 6
    second = [question for question in server.questions if question["seed"] == 2]
    prompts = [question["messages"][0]["content"] for question in second]
    assert len(second) == 3
    assert all("Write 4 more" in prompt and "A bell rings" in prompt for prompt in prompts)
    for row in read_rows(paths[1]):
        assert row["caption_6"].startswith("A bell rings for clip") and row["caption_10"]


# ---- queries in other styles


def styled_answer(question, number):
    """One good text in the style of the question."""
    prompt, clip = question["messages"][0]["content"], clip_of(question)
    if "search engine" in prompt:
        return json.dumps([f"{clip}"])
    if "asks a question" in prompt:
        return json.dumps([f"Where can I hear {clip} again?"])
    if "rules out" in prompt:
        return json.dumps([f"The sound of {clip}, but no trumpet"])
    return json.dumps([f"Somebody listens to the sound of {clip} here."])


def test_styles_are_written_as_evaluate_reads_them(server, paths, capsys):
    from retrieval.evaluation.styles import read_styles

    server.play = styled_answer
    assert generate(server, paths, "--styles", "tags", "negated") == 0
    assert "6 new captions for 6 styles of 3 clips" in capsys.readouterr().out
    assert len(server.questions) == 6
    assert "paraphrases" not in read_styles(paths[1])
    # a style more: the others are kept
    assert generate(server, paths, "--styles", *STYLES, "--overwrite") == 0
    assert len(server.questions) == 12
    styles = read_styles(paths[1])
    assert list(styles) == list(STYLES)
    for style, queries in styles.items():
        assert [names for [names] in queries.values()] == [f"{name}.wav" for name in clip_names(3)]
        originals = [row[column] for row in read_rows(paths[0]) for column in list(row)[1:]]
        assert [STYLES[style].fault(text, originals) for text in queries] == [None] * 3


def test_an_answer_in_another_style_is_asked_for_again(server, paths, capsys):
    def play(question, number):
        return styled_answer(question, number) if question["seed"] > 1 else json.dumps(GOOD)

    server.play = play
    assert generate(server, paths, "--styles", "tags", "questions", "negated") == 0
    assert len(server.questions) == 18
    server.play = lambda question, number: json.dumps(GOOD)
    assert generate(server, (paths[0], paths[1].with_name("b.csv")), "--styles", "tags") == 2
    assert "clipbravo.wav, tags: 0 of 1 new captions: " in capsys.readouterr().out
    assert not paths[1].with_name("b.csv").exists()


def test_a_journal_of_more_captions_is_none_of_styles(server, paths, capsys):
    assert generate(server, paths) == 0
    assert generate(server, paths, "--overwrite", "--styles", "tags") == 2
    assert "another prompt" in error_line(capsys)
    with pytest.raises(SystemExit):
        generate(server, paths, "--styles", "haiku")
    capsys.readouterr()
    assert generate(server, paths, "--overwrite", "--styles", "tags", "tags") == 2
    assert "--styles" in error_line(capsys)


HEARD = ["Thunder rolls while rain falls on a roof.", "A storm."]


@pytest.mark.parametrize(
    ("style", "text", "reason"),
    [
        ("tags", "rain", None),
        ("tags", "tin-roof rain", None),
        ("tags", "rain on roof", "has 3 words, expected 1 to 2"),
        ("tags", "rain, roof", "','"),
        ("tags", "", "0 words"),
        ("tags", "48kHz", "digits"),
        ("questions", "Where does it rain?", None),
        ("questions", "Where does it rain", "question mark"),
        ("questions", "Rain?", "has 1 words"),
        ("negated", "rain but no wind", None),
        ("negated", "a storm that isn\u2019t near any cars", None),
        ("negated", "rain without thunder", "excludes what the captions name"),
        ("negated", "rain without thundering", "excludes what the captions name"),
        ("negated", "rain falls on a roof", "excludes no sound"),
        ("negated", "no wind at all", "names no sound before"),
        ("negated", "rain, but no", "or nothing"),
        ("paraphrases", "Rain pours and thunder rolls on.", None),
        ("paraphrases", "Rain.", "has 1 words"),
        *((style, "a storm", "is a copy") for style in ("tags",)),
    ],
)
def test_each_style_has_its_own_faults(style, text, reason):
    found = STYLES[style].fault(text, HEARD)
    assert found is None if reason is None else reason in found


# ---- clips that are given up


def test_a_clip_in_a_hundred_may_stay_short(server, tmp_path, capsys):
    paths = (write_captions(tmp_path / "in.csv", 100), tmp_path / "out.csv")
    stubborn = clip_names(100)[7]
    server.play = lambda question, number: (
        "I cannot." if clip_of(question) == stubborn else good_answer(question, number)
    )
    assert generate(server, paths) == 0
    output = capsys.readouterr().out
    assert f"{stubborn}.wav: 0 of 5 new captions: the answer holds neither JSON" in output
    assert "1 of them are short" in output
    short = [row["file_name"] for row in read_rows(paths[1]) if not row["caption_6"]]
    assert short == [f"{stubborn}.wav"]
    asked = [question["seed"] for question in server.questions if clip_of(question) == stubborn]
    assert asked == [1, 2, 3, 4, 5]
    server.questions.clear()
    server.play = good_answer
    assert generate(server, paths) == 2  # the output is there
    assert generate(server, paths, "--overwrite") == 0
    assert server.clips_asked() == [stubborn] and server.questions[0]["seed"] == 6
    assert all(row["caption_10"] for row in read_rows(paths[1]))


def test_more_than_that_is_an_error_unless_allowed(server, paths, capsys):
    server.play = lambda question, number: (
        "No." if clip_of(question) == clip_names(1)[0] else good_answer(question, number)
    )
    assert generate(server, paths) == 2
    assert "1 of 3 clips" in (line := error_line(capsys)) and "--allow-missing" in line
    assert not paths[1].exists()
    server.questions.clear()
    assert generate(server, paths, "--allow-missing") == 0
    assert set(server.clips_asked()) == {clip_names(1)[0]}
    assert [bool(row["caption_10"]) for row in read_rows(paths[1])] == [False, True, True]


def test_a_clip_without_captions_is_not_asked(server, paths, capsys):
    paths[0].write_text("file_name,caption_1\na.wav,A bell rings for clipalpha.\nb.wav, \n")
    assert generate(server, paths, "--allow-missing") == 0
    assert server.clips_asked() == ["clipalpha"]
    assert "b.wav: 0 of 5 new captions: no captions to begin with" in capsys.readouterr().out


def test_many_failures_in_a_row_end_the_run(server, tmp_path, capsys):
    paths = (write_captions(tmp_path / "in.csv", 60), tmp_path / "out.csv")
    server.play = lambda question, number: (
        (200, {}, completion("")) if number > 20 else good_answer(question, number)
    )
    assert generate(server, paths, "--num-parallel", "2") == 2
    assert re.search("10 clips in a row .*the answer is empty", error_line(capsys))
    assert not paths[1].exists() and len(server.questions) < 20 + 13 * 5
    entries = map(json.loads, journal_of(paths).open())
    ready = {entry["file_name"][:-4] for entry in entries if len(entry.get("new", [])) == 5}
    assert len(ready) == 20
    server.questions.clear()
    server.play = good_answer
    assert generate(server, paths) == 0
    assert set(server.clips_asked()) == set(clip_names(60)) - ready


# ---- servers that fail and come back


@pytest.mark.parametrize(
    "status", [429, 500, 503, "reset", "truncated", "truncated without length"]
)
def test_what_passes_is_asked_again(server, paths, status):
    def play(question, number):
        if number > 2:
            return good_answer(question, number)
        body = json.dumps(completion(good_answer(question, number))).encode()
        if status == "reset":
            return None
        if status == "truncated":
            return 200, {"Content-Length": len(body)}, body[: len(body) // 2]
        if status == "truncated without length":
            return 200, {"Content-Length": len(body) // 2}, body[: len(body) // 2]
        return status, {}, {"error": {"message": "busy"}}

    server.play = play
    assert generate(server, paths, "--num-parallel", "1") == 0
    assert len(server.questions) == 5 and all(row["caption_10"] for row in read_rows(paths[1]))


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(server, paths, monkeypatch, form):
    from email.utils import formatdate

    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)

    def play(question, number):
        after = "200" if form == "seconds" else formatdate(time.time() + 200, usegmt=True)
        return (429, {"Retry-After": after}, {}) if number == 1 else good_answer(question, number)

    server.play = play
    assert generate(server, paths, "--num-parallel", "1") == 0
    (pause,) = filter(None, pauses)
    assert pause == 200 if form == "seconds" else 100 < pause <= 200


def test_a_slow_answer_is_asked_again(server, paths):
    def play(question, number):
        if number == 1:
            wait_for(lambda: len(server.questions) > 1)
        return good_answer(question, number)

    server.play = play
    assert generate(server, paths, "--timeout", "3", "--num-parallel", "1") == 0
    assert server.clips_asked()[:2] == clip_names(1) * 2


def test_a_pause_grows_between_tries(server, paths, monkeypatch):
    monkeypatch.setattr(chat_endpoint, "BACKOFF", 0.1)
    server.play = lambda question, number: (
        (503, {}, b"busy") if number <= 4 else good_answer(question, number)
    )
    assert generate(server, paths, "--num-parallel", "1") == 0
    pauses = np.diff(server.times)[:4]
    assert pauses[1] > 0.19 and pauses[2] > 0.39 and pauses[3] > 0.79


# ---- servers that never end


def test_a_server_that_drips_is_late(capsys, tmp_path, drip):
    paths = (write_captions(tmp_path / "in.csv", 1), tmp_path / "out.csv")
    assert generate(drip, paths, "--timeout", "0.4") == 2
    captured = capsys.readouterr()
    assert "clipalpha.wav" in captured.out and "timed out" in captured.out
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1


OK = b"HTTP/1.1 200 OK\r\n"
DRIPS = {
    "body": OK + b"Content-Length: 1000\r\n\r\n",
    "body without length": OK + b"\r\n",
    "refusal": b"HTTP/1.1 404 Not Found\r\nContent-Length: 1000\r\n\r\n",
    "refusal that passes": b"HTTP/1.1 503 Busy\r\nContent-Length: 1000\r\n\r\n",
}


@pytest.fixture(params=DRIPS)
def drip(request):
    """URL of a server that sends a beginning at once, then a byte every 0.1 s."""

    def send(connection):
        with connection:
            try:
                connection.recv(10_000)
                connection.sendall(DRIPS[request.param])
                for _ in range(80):
                    time.sleep(0.1)
                    connection.sendall(b"1")
            except OSError:  # the other side is gone, as it should be
                pass

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=send, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("packed", [False, True])
def test_an_answer_without_end_is_not_kept(server, tmp_path, capsys, packed):
    paths = (write_captions(tmp_path / "in.csv", 1), tmp_path / "out.csv")
    answer = 200, {}, b" " * (64 << 20)
    if packed:
        answer = 200, {"Content-Encoding": "gzip"}, gzip.compress(answer[2], 1)
    server.play = lambda question, number: answer if number < 5 else good_answer(question, number)
    tracemalloc.start()
    try:
        assert generate(server, paths) == 0
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert len(server.questions) == 5  # the connection is of use after that
    server.play = lambda question, number: answer
    journal_of(paths).unlink()
    assert generate(server, paths, "--overwrite") == 2
    assert "answers with more than 1048576 bytes" in capsys.readouterr().out


def test_a_packed_answer_is_read(server, paths):
    def play(question, number):
        body = json.dumps(completion(good_answer(question, number))).encode()
        return 200, {"Content-Encoding": "gzip"}, gzip.compress(body)

    server.play = play
    assert generate(server, paths) == 0


def test_connections_are_kept(server, paths, monkeypatch):
    opened = []
    accept = server.http.get_request
    monkeypatch.setattr(server.http, "get_request", lambda: opened.append(1) or accept())
    assert generate(server, paths, "--num-parallel", "1") == 0
    assert len(server.questions) == 3 and len(opened) == 1


def test_content_in_parts_is_read(server, paths):
    def parts(question, number):
        text = good_answer(question, number)
        texts = [{"type": "text", "text": half} for half in (text[:30], text[30:])]
        thought = {"type": "thinking", "thinking": [{"type": "text", "text": "1. So far."}]}
        return 200, {}, completion([thought, *texts])

    server.play = parts
    assert generate(server, paths) == 0
    assert len(server.questions) == 3 and all(row["caption_10"] for row in read_rows(paths[1]))


# ---- servers that are wrong

DEEP_LIST = b"[" * 200_000
NO_JSON, NO_COMPLETION = "something else than JSON", "something else than a chat completion"
OTHER_PARTS = [3, {"type": "text", "text": 3}, {"type": "refusal", "refusal": "no"}]
WRONG_ANSWERS = {
    "web page": (b"<html>log in</html>", f"{NO_JSON} (application/json): <html>log in</html>"),
    "no choices": ({"object": "list"}, f'{NO_COMPLETION}: {{"object": "list"}}'),
    "empty choices": ({"choices": []}, NO_COMPLETION),
    "a list": ([1], NO_COMPLETION),
    "a string": ({"choices": ["text"]}, NO_COMPLETION),
    "no content": (completion(None), "the answer is empty"),
    "no parts": (completion([]), "the answer is empty"),
    "parts of other kinds": (completion(OTHER_PARTS), "the answer is empty"),
    "deep body": (DEEP_LIST, NO_JSON),
    "deep choices": (b'{"choices":' + b"[" * 900 + b"]" * 900 + b"}", NO_COMPLETION),
    "deep content": (completion("[" * 500 + "]" * 500), "neither JSON"),
    "cut off": (completion('["A dog barks', "length"), "cut off at the server's limit"),
}
NO_MODEL = {"error": {"message": 'model "phi4" not found'}}
NO_TEMPERATURE = {"error": {"message": "temperature: only 1 is supported"}}
REFUSALS = {
    "model not found": (404, {}, NO_MODEL, "404 Not Found: model .* --model phi4"),
    "no such path": (404, {}, b"404 page not found", "404 page not found.* --endpoint"),
    "no key": (401, {}, {"error": "give a key"}, "401 .*give a key.* CAPTIONS_API_KEY"),
    "moved": (301, {"Location": "/elsewhere"}, b"", "301"),
    "question refused": (400, {}, NO_TEMPERATURE, "400 Bad Request: temperature: only 1"),
    "always busy": (503, {}, b"overloaded", "503 Service Unavailable: overloaded"),
    "deep refusal": (400, {}, DEEP_LIST, r"400 Bad Request: \[\[\["),
    "deep reason": (400, {}, b'{"error":' + b"[" * 900 + b"]" * 900 + b"}", "400 Bad Request"),
    "bad pause": (429, {"Retry-After": "soon"}, b"", "Retry-After header: soon"),
}


@pytest.mark.parametrize("name", WRONG_ANSWERS)
def test_wrong_answers_are_asked_again_and_named(server, tmp_path, capsys, name):
    body, expected = WRONG_ANSWERS[name]
    paths = (write_captions(tmp_path / "in.csv", 1), tmp_path / "out.csv")
    server.play = lambda question, number: (200, {}, body)
    assert generate(server, paths) == 2
    assert expected in capsys.readouterr().out
    assert len(server.questions) == generate_captions.MAX_TRIES and not paths[1].exists()


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_are_named(server, tmp_path, capsys, name):
    status, headers, body, expected = REFUSALS[name]
    paths = (write_captions(tmp_path / "in.csv", 1), tmp_path / "out.csv")
    server.play = lambda question, number: (status, headers, body)
    assert generate(server, paths) == 2
    captured = capsys.readouterr()
    assert re.search(expected, captured.out + captured.err)
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert len(server.questions) == (6 if name == "always busy" else 1) and not paths[1].exists()


def test_an_unreachable_server_is_one_line(paths, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    assert generate(url, paths) == 2
    assert re.search(f"{url}.* cannot be reached .*refused.*start the server", error_line(capsys))
    assert not paths[1].exists()


def test_something_that_is_no_web_server_is_one_line(tmp_path, capsys):
    paths = (write_captions(tmp_path / "in.csv", 1), tmp_path / "out.csv")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(10_000)
                    connection.sendall(b"SSH-2.0-OpenSSH\r\n")

        threading.Thread(target=answer, daemon=True).start()
        assert generate(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", paths) == 2
        listener.shutdown(socket.SHUT_RDWR)
    assert "SSH-2.0" in capsys.readouterr().out


# ---- the key


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(
    server, paths, capsys, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    assert generate(server, paths) == 0 and "Authorization" not in server.headers[0]
    monkeypatch.setenv(chat_endpoint.KEY_VARIABLE, " sesame-123\n")
    paths[1].unlink()
    journal_of(paths).unlink()
    server.headers.clear()
    assert generate(server, paths) == 0
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer sesame-123"}
    server.play = lambda question, number: (401, {}, {"error": {"message": "wrong key sesame-123"}})
    journal_of(paths).unlink()
    assert generate(server, paths, "--overwrite") == 2
    captured = capsys.readouterr()
    assert "wrong key ***" in captured.err and "sesame" not in captured.out + captured.err
    assert not any(b"sesame" in path.read_bytes() for path in paths[1].parent.iterdir())


def test_a_key_that_no_header_takes_is_not_shown(server, paths, capsys, monkeypatch):
    monkeypatch.setenv(chat_endpoint.KEY_VARIABLE, "ses\name")
    assert generate(server, paths) == 2
    assert error_line(capsys).startswith("error: CAPTIONS_API_KEY holds characters")


# ---- bad input


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("name,caption_1\na,b\n", "column file_name"),
        ("file_name,text\na,b\n", "column caption_1"),
        ("", "found: nothing"),
        ("file_name,caption_1\n", "no rows"),
        ("file_name,caption_1\na.wav,b\na.WAV,c\n", "'a.WAV'"),
        ("file_name,caption_1\na.wav,b,c\n", "line 2: 3 fields"),
        (None, "No such file"),
    ],
)
def test_a_bad_csv_is_one_line(server, paths, capsys, content, expected):
    paths[0].unlink()
    if content is not None:
        paths[0].write_text(content)
    assert generate(server, paths) == 2
    assert expected in error_line(capsys)
    assert not server.questions and not journal_of(paths).exists()


BAD_OPTIONS = ["--num-parallel 0", "--timeout 0", "--timeout nan", "--timeout inf", "--nonsense"]
BAD_OPTIONS += ["--temperature 3", "--temperature x", "--output IN", "--output FOLDER"]
BAD_URLS = ["localhost:11434/v1", "http://", "http://[::/v1", "file:///v1", ""]


@pytest.mark.parametrize(
    "more", [*BAD_OPTIONS, "--output .", *map("--endpoint {}".format, BAD_URLS)]
)
def test_bad_arguments_are_one_line(server, paths, capsys, more):
    before = paths[0].read_bytes()
    option, *values = more.split(" ")
    places = {"IN": str(paths[0]), "FOLDER": str(paths[0].parent)}
    try:
        values = [places.get(value, value) for value in values]
        code = generate(server, paths, "--overwrite", option, *values)
    except SystemExit as end:
        code = end.code
    assert code == 2 and not server.questions and paths[0].read_bytes() == before
    error_line(capsys)


def test_a_password_in_the_url_is_refused_and_not_shown(paths, capsys):
    assert generate("http://me:sesame@localhost/v1", paths) == 2
    assert "sesame" not in error_line(capsys)


# ---- the journal


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--model", "other"], "another model (phi4, not other): remove it"),
        (["--temperature", "1"], "another temperature (0.8, not 1.0)"),
    ],
)
def test_a_journal_of_other_settings_is_refused(server, paths, capsys, more, expected):
    assert generate(server, paths) == 0
    before = journal_of(paths).read_bytes()
    assert generate(server, paths, "--overwrite", *more) == 2
    assert expected in error_line(capsys)
    assert journal_of(paths).read_bytes() == before and len(server.questions) == 3


def test_a_wrong_model_name_leaves_no_journal_in_the_way(server, paths):
    server.play = lambda question, number: (404, {}, b"no such model")
    assert generate(server, paths, "--model", "ph4") == 2
    server.play = good_answer
    assert generate(server, paths) == 0
    assert json.loads(journal_of(paths).read_bytes().splitlines()[0])["model"] == "phi4"


def test_a_journal_of_another_prompt_is_refused(server, paths, capsys, monkeypatch):
    assert generate(server, paths) == 0
    monkeypatch.setattr(generate_captions, "PROMPT", f"{paraphrases.PROMPT} Please.")
    assert generate(server, paths, "--overwrite") == 2
    assert "was made with another prompt: remove it" in error_line(capsys)


@pytest.mark.parametrize(
    "content", [b"notes of mine", b"notes\nof mine\n", b"[]\n", b'{"model": "phi4"}\n', b"\xff\n"]
)
def test_a_file_that_is_no_journal_is_left_alone(server, paths, capsys, content):
    journal_of(paths).write_bytes(content)
    assert generate(server, paths) == 2
    assert "is not a journal of this command" in error_line(capsys)
    assert journal_of(paths).read_bytes() == content


def test_changed_captions_are_asked_anew(server, paths):
    assert generate(server, paths) == 0
    changed = clip_names(3)[1]
    paths[0].write_text(
        paths[0].read_text().replace(f"delta about {changed}", f"changed about {changed}")
    )
    server.questions.clear()
    assert generate(server, paths, "--overwrite") == 0
    assert server.clips_asked() == [changed] and server.questions[0]["seed"] == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: b"{}",
        lambda line: b"3",
        lambda line: b"[" * 5000,
        lambda line: b"\xff",
        lambda line: line.replace(b'"new": [', b'"new": [3, '),
        lambda line: line.replace(b'"num_asked": 1', b'"num_asked": "x"'),
        lambda line: line.replace(b'"new": ["', b'"new": ["Here are 5: '),
        lambda line: line[: len(line) // 2],
    ],
)
def test_damaged_lines_are_asked_again(server, paths, damage):
    assert generate(server, paths, "--num-parallel", "1") == 0
    lines = journal_of(paths).read_bytes().split(b"\n")
    lines[2] = damage(lines[2])
    journal_of(paths).write_bytes(b"\n".join(lines))
    server.questions.clear()
    assert generate(server, paths, "--overwrite") == 0
    assert server.clips_asked() == [clip_names(3)[1]]
    assert all(row["caption_10"] for row in read_rows(paths[1]))


@pytest.mark.parametrize("num_bytes", range(0, 400, 40))
def test_a_journal_cut_anywhere_in_its_first_line_begins_anew(server, paths, num_bytes):
    assert generate(server, paths) == 0
    journal_of(paths).write_bytes(journal_of(paths).read_bytes()[:num_bytes])
    assert generate(server, paths, "--overwrite") == 0
    assert len(server.questions) == 6 and sorted(journal_clips(paths)) == sorted(clip_names(3))


def test_two_runs_at_once_are_refused(server, paths, capsys):
    with journal_of(paths).open("w") as file:
        assert try_lock(file)
        assert generate(server, paths) == 2
    assert "another run is writing" in error_line(capsys)


def test_a_full_disk_is_one_line(server, paths, capsys, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert generate(server, paths) == 2
    assert "make room" in error_line(capsys)
    assert not paths[1].exists() and not list(paths[1].parent.glob("*.tmp"))
    monkeypatch.undo()
    assert generate(server, paths) == 0 and len(server.questions) == 3


# ---- the real command, killed and interrupted


def test_a_killed_run_goes_on_with_what_is_missing(server, tmp_path):
    paths = (write_captions(tmp_path / "in.csv", 40), tmp_path / "out.csv")

    is_killed = threading.Event()

    def stuck_after_twelve(question, number):
        if number > 12:
            is_killed.wait(PATIENCE)
        return good_answer(question, number)

    server.play = stuck_after_twelve
    process = subprocess.Popen([*COMMAND, *arguments_for(server, paths, "--num-parallel", "4")])
    wait_for(lambda: len(journal_clips(paths)) == 12 and len(server.questions) == 16, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    is_killed.set()
    ready = journal_clips(paths)
    assert len(ready) == 12 and not paths[1].exists()
    with journal_of(paths).open("ab") as file:
        file.write(b'{"file_name": "clip')  # killed in the middle of a line
    server.questions.clear()
    assert generate(server, paths) == 0
    assert sorted(server.clips_asked()) == sorted(set(clip_names(40)) - set(ready))
    assert all(row[f"caption_{i}"] for row in read_rows(paths[1]) for i in range(1, 11))
    assert sorted(journal_clips(paths)) == sorted(clip_names(40))


def test_ctrl_c_does_not_wait_for_answers_and_keeps_what_came(server, tmp_path):
    paths = (write_captions(tmp_path / "in.csv", 12), tmp_path / "out.csv")
    end = threading.Event()

    def stuck_after_six(question, number):
        if number > 6:
            end.wait(PATIENCE)
        return good_answer(question, number)

    server.play = stuck_after_six
    process = subprocess.Popen(
        [*COMMAND, *arguments_for(server, paths, "--num-parallel", "3")],
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: len(journal_clips(paths)) == 6 and len(server.questions) == 9)
    process.send_signal(signal.SIGINT)
    assert (
        process.communicate(timeout=PATIENCE / 2)[1]
        == "interrupted: run the same command again to go on from here\n"
    )
    assert process.returncode == 130 and not paths[1].exists()
    ready = journal_clips(paths)
    end.set()
    server.play = good_answer
    server.questions.clear()
    assert generate(server, paths) == 0
    assert sorted(server.clips_asked()) == sorted(set(clip_names(12)) - set(ready))
