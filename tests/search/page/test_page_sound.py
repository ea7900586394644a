"""Sound on the page: formats that cannot seek, open lengths, tiny and long files, decoder turns."""

import asyncio
import io
import threading
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from retrieval.base import sound
from retrieval.search import AudioIndex
from retrieval.search.page import audio, server, turns
from retrieval.search.page.clients import Refused
from tests.conftest import SAMPLE_RATE, tone
from tests.search.page.test_page import QUERY, models, served  # noqa: F401
from tests.search.page.test_page_security import FIELDS, JOIN, Browser, event_of, wait_for

SECONDS = 3.0


def write_mp3(path: Path, samples: np.ndarray, xing: bool) -> None:
    """A variable bit rate, by LAME; without a Xing frame the header tells no length."""
    with av.open(str(path), "w", format="mp3", options={"write_xing": str(int(xing))}) as container:
        stream = container.add_stream("libmp3lame", rate=SAMPLE_RATE, options={"q": "6"})
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)


def write_open_flac(path: Path, samples: np.ndarray) -> None:
    """As a pipe gets it: the header's number of samples is 0."""
    with av.open(str(path), "w", format="flac") as container:
        stream = container.add_stream("flac", rate=SAMPLE_RATE)
        stream.layout, stream.format = "mono", "s16"
        frame = av.AudioFrame.from_ndarray(
            (samples * 32767).astype(np.int16)[None], format="s16", layout="mono"
        )
        frame.sample_rate = SAMPLE_RATE
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # 36 bits of STREAMINFO
    content[22:26] = bytes(4)
    path.write_bytes(content)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[Path, np.ndarray]:
    folder = tmp_path_factory.mktemp("found") / "sounds"
    folder.mkdir()
    samples = tone(2, 1, SECONDS, np.random.default_rng(5))
    soundfile.write(folder / "gsm.wav", samples, SAMPLE_RATE, subtype="GSM610")
    soundfile.write(folder / "g721.au", samples, SAMPLE_RATE, subtype="G721_32")
    write_open_flac(folder / "open.flac", samples)
    write_mp3(folder / "plain.mp3", samples, xing=False)
    write_mp3(folder / "xing.mp3", samples, xing=True)
    for length in (1, 7, 200):
        soundfile.write(folder / f"tiny {length}.wav", samples[:length], SAMPLE_RATE)
    soundfile.write(folder / "slow.wav", samples[:500], 1_000)
    soundfile.write(folder / "opposite.wav", np.stack([samples, -samples], axis=1), SAMPLE_RATE)
    return folder, samples


@pytest.fixture(scope="module")
def index(found, models, tmp_path_factory) -> AudioIndex:  # noqa: F811
    index = AudioIndex.build(
        found[0], models / "tap", tmp_path_factory.mktemp("found index") / "index"
    )
    assert len(index.files) == 10, index.unreadable
    return index


@pytest.fixture(scope="module")
def browser(index):
    with served(index) as address:
        yield Browser(address)


def played(content: bytes) -> tuple[np.ndarray, int]:
    return soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)


@pytest.mark.parametrize("name", ["gsm.wav", "g721.au", "open.flac", "plain.mp3", "xing.mp3"])
def test_every_format_plays_from_any_place(browser, found, name):
    code, _, whole = browser.ask("GET", f"/recording?file={name}")
    samples, rate = played(whole)
    assert (code, rate) == (200, SAMPLE_RATE) and len(samples) == pytest.approx(
        len(found[1]), abs=2500
    )
    near = samples[:, 0][2000:-2000] if "mp3" not in name else samples[:, 0]
    assert np.sqrt(np.square(near).mean()) > 0.1  # no silence
    if name.endswith(("flac", "wav", "au")):
        assert np.corrcoef(samples[:40_000, 0], found[1][:40_000])[0, 1] > 0.8
    for first in (70_001, 30_000, 80_000, 1_000):  # onwards and back
        code, headers, part = browser.ask(
            "GET", f"/recording?file={name}", Range=f"bytes={first}-{first + 4_000}"
        )
        assert code == 206 and headers["content-range"].endswith(f"/{len(whole)}")
        wanted, given = (
            np.frombuffer(one[first % 2 :][:4_000], "<i2").astype(int)
            for one in (whole[first:], part)
        )
        assert np.abs(wanted - given).max() <= 2, (name, first)
    code, headers, nothing = browser.ask("HEAD", f"/recording?file={name}")
    assert (code, int(headers["content-length"]), nothing) == (200, len(whole), b"")


@pytest.mark.parametrize("name", ["tiny 1.wav", "tiny 7.wav", "tiny 200.wav", "slow.wav"])
def test_a_sound_shorter_than_a_column_gets_a_picture_and_plays(browser, index, name):
    hits = {hit.file: hit for hit in index.search(QUERY, 10)}
    start, end = f"{hits[name].start:.3f}", f"{hits[name].end:.3f}"
    code, headers, body = browser.ask(
        "GET",
        f"/picture?file={name.replace(' ', '%20')}&start={start}&end={max(float(end), 0.001)}",
    )
    assert (code, headers["content-type"]) == (200, "image/png") and body.startswith(b"\x89PNG")
    samples, _ = played(browser.ask("GET", f"/recording?file={name.replace(' ', '%20')}")[2])
    assert len(samples) in (1, 7, 200, 500) and np.isfinite(samples).all()


def test_channels_that_cancel_are_drawn_and_compared(browser, found):
    samples, rate = audio.read_excerpt(found[0] / "opposite.wav", 0.0, 1.0)
    assert rate == SAMPLE_RATE and np.abs(samples).max() > 0.2
    np.testing.assert_allclose(audio.one_channel(np.float32([[1, 3], [2, 4]])), [2, 3])


def test_a_far_place_is_decoded_from_a_seek_point(tmp_path, monkeypatch):
    """Counts decoded packets: the first visit passes the file, later ones a second or two."""
    rng = np.random.default_rng(0)
    samples = np.concatenate([tone(number % 4, number % 3, 20.0, rng) for number in range(6)])
    write_mp3(tmp_path / "long.mp3", samples, xing=False)
    decoded = []
    samples_of = sound._samples_of
    monkeypatch.setattr(
        sound, "_samples_of", lambda frame: decoded.append(frame.samples) or samples_of(frame)
    )
    monkeypatch.setattr(sound, "PREROLL", 0)
    with sound.SoundReader(tmp_path / "long.mp3") as reader:
        assert reader.announced_frames is None
        whole = np.concatenate(list(reader.blocks(100_000)))
        for place in (100, 5, 60, 110, 30):
            decoded.clear()
            reader.seek(place * SAMPLE_RATE)
            np.testing.assert_allclose(
                reader.read(1000), whole[place * SAMPLE_RATE :][:1000], atol=1e-5
            )
            assert sum(decoded) < 4 * SAMPLE_RATE


# --- turns ---


async def never() -> bool:
    return False


def test_clients_take_turns():
    async def scenario() -> list[str]:
        order, gate, decoders = [], asyncio.Event(), turns.Turns(1)

        async def ask(client: str, number: int) -> None:
            async with decoders.turn(client, never):
                await gate.wait()
                order.append(f"{client}{number}")

        tasks = [
            asyncio.create_task(ask(client, number))
            for client, number in [("a", n) for n in range(5)] + [("b", 0), ("c", 0), ("b", 1)]
        ]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*tasks)
        assert decoders.free == 1 and not decoders._waiting
        return order

    assert asyncio.run(scenario()) == ["a0", "a1", "b0", "c0", "a2", "b1", "a3", "a4"]


def test_one_that_has_gone_frees_its_place_and_too_many_are_sent_away(monkeypatch):
    monkeypatch.setattr(turns, "MAX_WAITING_OF_CLIENT", 3)
    monkeypatch.setattr(turns, "SECONDS_BETWEEN_LOOKS", 0.01)

    async def gone() -> bool:
        return True

    async def take(decoders: turns.Turns, client: str, has_gone=never) -> None:
        async with decoders.turn(client, has_gone):
            pass

    async def scenario() -> None:
        decoders = turns.Turns(1)
        async with decoders.turn("a", never):
            with pytest.raises(Refused) as refusal:
                await take(decoders, "b", gone)
            assert refusal.value.status == 408 and not decoders._waiting
            waiting = [asyncio.create_task(take(decoders, "b")) for _ in range(3)]
            await asyncio.sleep(0)
            with pytest.raises(Refused) as refusal:
                await take(decoders, "b")
            assert refusal.value.status == 503 and refusal.value.headers["Retry-After"]
            waiting[1].cancel()
            other = asyncio.create_task(take(decoders, "c"))
            await asyncio.sleep(0)
        await asyncio.gather(*waiting, other, return_exceptions=True)
        assert decoders.free == 1 and not decoders._waiting

    asyncio.run(scenario())


def test_a_whole_recording_waits_for_its_turns(index, found, monkeypatch):
    """Its header has promised all bytes: where too many wait at the decoders it waits too."""
    monkeypatch.setattr(server, "BYTES_AT_ONCE", 20_000)
    monkeypatch.setattr(server, "SECONDS_BETWEEN_TRIES", 0.0)
    tries = []

    async def decode(function, *arguments):
        tries.append(arguments)
        if len(tries) % 2:
            raise Refused(503, "too many")
        return function(*arguments)

    async def scenario(is_gone: bool) -> bytes:
        async def has_gone() -> bool:
            return is_gone

        answer = await server.answer_range(wave, "", decode, has_gone)
        return b"".join([part async for part in answer.body_iterator])

    wave = audio.WaveFile(found[0] / "gsm.wav", SECONDS)
    assert asyncio.run(scenario(False)) == wave.read(0, wave.size)
    num_tries = len(tries)
    assert num_tries == 2 * -(-wave.size // 20_000)
    # nothing is decoded for no one
    assert len(asyncio.run(scenario(True))) == wave.size and len(tries) == num_tries


def test_a_query_is_answered_while_fifty_ranges_wait(index, monkeypatch):
    """The decoder stands still: nothing but the query can go on."""
    begin, go_on, at_once = threading.Event(), threading.Event(), []

    def standing(path: Path, first: int, num_frames: int):
        at_once.append(1)
        begin.set()
        assert go_on.wait(60)
        at_once.pop()
        return np.zeros((num_frames, 1), np.float32), audio.SoundInfo(SAMPLE_RATE, 1, 48_000)

    monkeypatch.setattr(audio, "read_frames", standing)
    monkeypatch.setattr(server.os, "cpu_count", lambda: 2)
    codes, most = [], []
    with served(index) as address:
        flooding = [
            threading.Thread(
                target=lambda: codes.append(
                    Browser(address).ask("GET", "/recording?file=gsm.wav", Range="bytes=90000-")[0]
                )
            )
            for _ in range(50)
        ]
        for thread in flooding:
            thread.start()
        try:
            assert begin.wait(60)
            asking = Browser(address)
            assert asking.ask("GET", "/")[0] == 200
            assert (
                asking.post(JOIN, event_of(asking, "words", QUERY, *FIELDS, session_hash="q"))[0]
                == 200
            )
            assert '"process_completed"' in asking.answer("q")
            most.append(len(at_once))
        finally:
            go_on.set()
            for thread in flooding:
                thread.join(60)
    assert most == [1] and codes == [206] * 50
    wait_for(lambda: not at_once)
