"""Kinds of sound files, by their first bytes; check for files shorter than they announce.

Names are not reliable: a WAV may be called `.dat`, and an error page of a web server `.mp3`.
"""

import codecs
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

# In order of preference, if a clip exists in several kinds: lossless ones come first.
AUDIO_ENDINGS = tuple(
    """
    .wav .flac .ogg .opus .aiff .aif .mp3 .wave .bwf .rf64 .w64 .aifc .aff .caf .au .snd .voc .sph
    .nist .ircam .8svx .paf .wv .ape .tta .tak .shn .dsf .dff .oga .spx .m4a .m4b .m4r .aac .adts
    .mp4 .m4v .mov .3gp .3g2 .webm .weba .mka .mkv .ogv .wma .asf .wmv .mp2 .mp1 .mpga .mpc .amr
    .awb .ac3 .eac3 .ec3 .dts .gsm .qcp .dss .avi .flv .mpg .mpeg .vob .ra .oma .qoa
    """.split()
)
SNIFFED = 4096  # bytes
MP3_SEARCHED = 1 << 16  # bytes after the tags in which the first MPEG frame is looked for
TAG_END = 128  # bytes of an ID3v1 tag


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: Name for messages.
        demuxer: FFmpeg's name of the kind, None if FFmpeg cannot read it.
        by_libsndfile: Try libsndfile first.
        has_exact_times: In FFmpeg a packet has the same time after a seek as without one.
    """

    name: str
    demuxer: str | None
    by_libsndfile: bool = False
    has_exact_times: bool = False


WAV, AIFF, CAF = Kind("WAV", "wav", True), Kind("AIFF", "aiff", True), Kind("CAF", "caf", True)
AU, W64 = Kind("AU", "au", True), Kind("W64", "w64", True)
FLAC, OGG = Kind("FLAC", "flac", True, True), Kind("Ogg", "ogg", True, True)
MP3, MP4 = Kind("MP3", "mp3", True, True), Kind("MP4", "mov", has_exact_times=True)
MATROSKA = Kind("Matroska or WebM", "matroska", has_exact_times=True)
ASF = Kind("Windows Media", "asf", has_exact_times=True)
AVI = Kind("AVI", "avi", has_exact_times=True)
AAC, AC3 = Kind("AAC", "aac", has_exact_times=True), Kind("AC-3", "ac3", has_exact_times=True)
EAC3, DTS = Kind("E-AC-3", "eac3", has_exact_times=True), Kind("DTS", "dts", has_exact_times=True)
GSM, APE = Kind("GSM", "gsm"), Kind("Monkey's Audio", "ape")
MPEG_TS = Kind("MPEG transport stream", "mpegts")
MAY_END_IN_TAGS = (AAC, AC3, FLAC)
# Kinds with an exact length in the header, which FFmpeg reports.
WITH_EXACT_LENGTH = ("WavPack", "Monkey's Audio", "TTA", "TAK", "Musepack", "DSF")

# Offset, bytes, kind; the first match counts.
SIGNATURES = (
    (0, b"fLaC", FLAC),
    (0, b"OggS", OGG),
    (0, b"caff", CAF),
    (0, b".snd", AU),
    (0, b"dns.", AU),
    (0, b"riff\x2e\x91\xcf\x11", W64),
    # libsndfile reads the headers of later blocks as samples
    (0, b"Creative Voice File\x1a", Kind("VOC", "voc")),
    (0, b"NIST_1A", Kind("SPHERE", "nistsphere", True)),
    (0, b"\x64\xa3\x01\x00", Kind("IRCAM", "ircam", True)),
    (0, b"\x64\xa3\x02\x00", Kind("IRCAM", "ircam", True)),
    (0, b"\x64\xa3\x03\x00", Kind("IRCAM", "ircam", True)),
    (0, b"\x00\x01\xa3\x64", Kind("IRCAM", "ircam", True)),
    (0, b"\x00\x02\xa3\x64", Kind("IRCAM", "ircam", True)),
    (0, b"\x00\x03\xa3\x64", Kind("IRCAM", "ircam", True)),
    (0, b" paf", Kind("PAF", None, True)),
    (0, b"fap ", Kind("PAF", None, True)),
    (0, b"2BIT", Kind("AVR", "avr", True)),
    (0, b"PVF1\n", Kind("PVF", "pvf", True)),
    (0, b"ALawSoundFile**", Kind("Psion", "wve", True)),
    (0, b"#!AMR", Kind("AMR", "amr")),
    (0, b"wvpk", Kind("WavPack", "wv")),
    (0, b"TTA1", Kind("TTA", "tta")),
    (0, b"tBaK", Kind("TAK", "tak")),
    (0, b"MP+", Kind("Musepack", "mpc")),
    (0, b"MPCK", Kind("Musepack", "mpc8")),
    (0, b"ajkg", Kind("Shorten", "shn")),
    (0, b"DSD ", Kind("DSF", "dsf")),
    (0, b"qoaf", Kind("QOA", "qoa")),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", ASF),
    (0, b"\x1a\x45\xdf\xa3", MATROSKA),
    (0, b"FLV\x01", Kind("Flash video", "flv")),
    (0, b".RMF", Kind("RealMedia", "rm")),
    (0, b".ra\xfd", Kind("RealAudio", "rm")),
    (0, b"\x02dss", Kind("DSS", "dss")),
    (0, b"\x03dss", Kind("DSS", "dss")),
    (0, b"ea3\x03", Kind("OpenMG", "oma")),
    (0, b"EA3\x01", Kind("OpenMG", "oma")),
    (0, b".SoX", Kind("SoX", "sox")),
    (0, b"XoS.", Kind("SoX", "sox")),
    (0, b"\x00\x00\x01\xba", Kind("MPEG program stream", "mpeg")),
    (0, b"\x06\x0e\x2b\x34\x02\x05\x01\x01", Kind("MXF", "mxf")),
    (0, b"nut/multimedia container\0", Kind("NUT", "nut")),
    (4, b"\xf8\x72\x6f\xba", Kind("TrueHD", "truehd")),
    (4, b"\xf8\x72\x6f\xbb", Kind("MLP", "mlp")),
    (0, b"\x7f\xfe\x80\x01", DTS),
    (0, b"\xfe\x7f\x01\x80", DTS),
    (0, b"\x1f\xff\xe8\x00", DTS),
    (0, b"\xff\x1f\x00\xe8", DTS),
)
FORMS = {  # first four bytes, bytes 8 to 12
    **{(first, b"WAVE"): WAV for first in (b"RIFF", b"RIFX", b"RF64", b"BW64")},
    (b"RIFF", b"AVI "): AVI,
    (b"RIFF", b"QLCM"): Kind("QCP", "qcp"),
    (b"FORM", b"AIFF"): AIFF,
    (b"FORM", b"AIFC"): AIFF,
    (b"FORM", b"8SVX"): Kind("8SVX", "iff"),  # libsndfile mixes up the two channels
    (b"FORM", b"16SV"): Kind("16SV", "iff"),
    (b"FRM8", b"DSD "): Kind("DSDIFF", "iff"),
}
MP4_BOXES = b"ftyp moov mdat moof styp sidx wide free skip pnot udta uuid meta mfra".split()
PICTURE_BRANDS = (
    *b"heic heix heim heis hevc mif1 msf1 avif avis".split(),
    *(b"crx ", b"jp2 ", b"jxl "),
)
NO_SOUND = (  # first bytes of other files that often have an audio ending
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"<?xml", "XML"),
    (b"{", "JSON"),
    (b"%pdf", "a PDF"),
    (b"pk\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "compressed by gzip"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89png", "a PNG picture"),
    (b"version https://git-lfs", "a pointer of Git LFS: git lfs pull"),
    (b"#extm3u", "a playlist"),
)


def kind_of(path: Path | str | bytes) -> Kind | None:
    """Return the kind of a file by its first bytes; None if it is not a known sound file.

    Raises OSError.
    """
    with open(path, "rb") as file:
        return kind_of_open(file)


def kind_of_open(file: BinaryIO) -> Kind | None:
    """Return the kind of an open file, as `kind_of` does, from any position."""
    file.seek(0)
    head = file.read(SNIFFED)
    if kind := _kind_at(head):
        return kind
    if _is_text(head):  # short texts look like GSM (Cyrillic, Arabic in UTF-8) or MPEG (UTF-16)
        return None
    # 10 frames, 0.2 s
    if len(head) >= 330 and all(head[offset] >> 4 == 0xD for offset in range(0, len(head), 33)):
        return GSM
    start = start_after_tags(file)
    file.seek(start)
    head = file.read(MP3_SEARCHED)
    kind = _kind_at(head) if start else None
    # other kinds in WALKS count bytes from the start of the file, which are tags here
    if kind and (kind is FLAC or kind.name not in WALKS):
        return kind
    aac, mpeg = adts_start(head), mpeg_start(head)
    if aac is not None and (mpeg is None or aac < mpeg):
        return AAC
    return None if mpeg is None else MP3


def _kind_at(head: bytes) -> Kind | None:
    """Return the kind whose signature `head` begins with."""
    if kind := FORMS.get((head[:4], head[8:12])):
        return kind
    for offset, signature, kind in SIGNATURES:
        if head[offset : offset + len(signature)] == signature:
            return kind
    # A text may begin with "The free ...". The length before the first box's name is below 16 MB,
    # except for mdat and moov.
    boxes = MP4_BOXES if head[:1] == b"\0" else (b"mdat", b"moov")
    if head[4:8] in boxes and head[8:12] not in PICTURE_BRANDS:
        return MP4
    if head[:4] == b"MAC " and head[5:6] in (b"\x0e", b"\x0f"):  # version 3.8 to 4
        return APE
    if head[:2] == b"\x0b\x77" and len(head) > 5 and head[4] >> 6 != 3:
        return EAC3 if head[5] >> 3 > 10 else AC3
    # packets of 188 bytes, or of 192 with a time before each
    is_plain = len(head) > 376 and head[0] == head[188] == head[376] == 0x47
    is_timed = len(head) > 388 and head[4] == head[196] == head[388] == 0x47
    return MPEG_TS if is_plain or is_timed else None


def _is_text(head: bytes) -> bool:
    """Return True for printable UTF-8, and for UTF-16 with a byte order mark."""
    encoding = "utf-16" if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8"
    try:
        # the last character may be cut
        text = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return False
    return all(letter.isprintable() or letter.isspace() for letter in text)


def why_no_sound(head: bytes) -> str:
    """Say why a file with these first bytes is not a sound file, for an error message."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    found = next((name for signature, name in NO_SOUND if start.startswith(signature)), None)
    return (
        f"is not a sound file, it is {found}"
        if found
        else "is not a sound file: its first bytes match no known kind of sound file"
    )


# --- MPEG audio ---

BIT_RATES = {  # kbit/s by (version is 1, layer)
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
# bits of the header that are the same in all frames: sync, version, layer, rate
SAME_IN_ALL = 0xFFFE0C00


@dataclass(frozen=True)
class MpegFrame:
    header: int
    layer: int
    is_version_1: bool
    is_mono: bool
    size: int  # bytes, 0 in a free format
    num_samples: int


def mpeg_frame(data: bytes, offset: int) -> MpegFrame | None:
    """Parse the header of an MPEG audio frame at `offset`; None if there is none."""
    if len(data) < offset + 4:
        return None
    header = int.from_bytes(data[offset : offset + 4], "big")
    version, layer = header >> 19 & 3, 4 - (header >> 17 & 3)
    bit_rate, rate, emphasis = header >> 12 & 15, header >> 10 & 3, header & 3
    is_reserved = version == 1 or layer == 4 or bit_rate == 15 or rate == 3 or emphasis == 2
    if header >> 21 != 0x7FF or is_reserved:
        return None
    hertz = (44_100, 48_000, 32_000)[rate] // {3: 1, 2: 2, 0: 4}[version]
    bits, padding = 1000 * BIT_RATES[version == 3, layer][bit_rate], header >> 9 & 1
    num_samples = 384 if layer == 1 else 1152 if layer == 2 or version == 3 else 576
    size = num_samples // 8 * bits // hertz + padding
    if layer == 1:
        size = (12 * bits // hertz + padding) * 4
    is_mono = header >> 6 & 3 == 3
    return MpegFrame(header, layer, version == 3, is_mono, size if bits else 0, num_samples)


def mpeg_start(data: bytes) -> int | None:
    """Find three MPEG audio frames in a row.

    At the start of the data fewer are enough if the data end there.

    Returns:
        Offset of the first frame, None if there are none.
    """
    offset = -1
    while (offset := data.find(b"\xff", offset + 1)) >= 0:
        first = frame = mpeg_frame(data, offset)
        place, num_frames = offset, 0
        # In a free format any distance between two headers is valid, so three frames are weak
        # evidence: accept them at the start only.
        size_of_free_format = (
            _free_format_size(data, offset) if first and not first.size and not offset else 0
        )
        while (
            frame is not None
            and (frame.header ^ first.header) & SAME_IN_ALL == 0
            and num_frames < 3
        ):
            size = frame.size or size_of_free_format + (frame.header >> 9 & 1)
            if size < 4:
                break
            place, num_frames = place + size, num_frames + 1
            frame = mpeg_frame(data, place)
        if num_frames == 3 or offset == 0 and num_frames and place >= len(data):
            return offset
    return None


def _free_format_size(data: bytes, offset: int) -> int:
    """Return the size (bytes) of a frame of free bit rate, without padding; 0 if unknown.

    It is the distance to the next header.
    """
    header = mpeg_frame(data, offset).header
    for place in range(offset + 96, min(offset + 8192, len(data) - 4)):
        other = mpeg_frame(data, place) if data[place] == 0xFF else None
        if other and not other.size and (other.header ^ header) & SAME_IN_ALL == 0:
            return place - offset - (header >> 9 & 1)
    return 0


def start_after_tags(file: BinaryIO, place: int = 0) -> int:
    """Return the offset after ID3v2 and APEv2 tags that begin at `place`."""
    while True:
        file.seek(place)
        head = file.read(32)
        if head[:3] == b"ID3" and len(head) >= 10:
            size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
            place += 10 + size + (10 if head[5] & 0x10 else 0)
        elif head[:8] == b"APETAGEX" and len(head) == 32:
            place += 32 + int.from_bytes(head[12:16], "little")
        else:
            return place


def end_before_tags(file: BinaryIO, start: int = 0) -> int:
    """Return the offset of the ID3v1, Lyrics3, APEv2 and ID3v2 tags at the end of a file."""
    end = file.seek(0, os.SEEK_END)
    while True:
        file.seek(max(start, end - TAG_END))
        tail = file.read(end - file.tell())
        if len(tail) == TAG_END and tail[:3] == b"TAG":
            size = TAG_END
        elif tail[-32:-24] == b"APETAGEX":
            size = int.from_bytes(tail[-20:-16], "little") + (32 if tail[-9] & 0x80 else 0)
        elif tail[-9:] == b"LYRICS200" and tail[-15:-9].isdigit():
            size = int(tail[-15:-9]) + 15
        elif tail[-10:-7] == b"3DI":
            size = (tail[-4] << 21 | tail[-3] << 14 | tail[-2] << 7 | tail[-1]) + 20
        else:
            return end
        if not 0 < size <= end - start:
            return end
        end -= size


@dataclass(frozen=True)
class MpegLayout:
    """Position of a file's MPEG audio, and the counts of its Xing, Info or VBRI frame, if any."""

    start: int
    end: int
    num_frames: int | None  # MPEG frames, without the Xing frame itself
    num_bytes: int | None  # from the Xing frame on
    samples_of_frame: int


def mpeg_layout(file: BinaryIO) -> MpegLayout | None:
    """Find the first MPEG frame of a file, and read its Xing, Info or VBRI frame."""
    tags = start_after_tags(file)
    file.seek(tags)
    data = file.read(MP3_SEARCHED)
    offset = mpeg_start(data)
    if offset is None:
        return None
    end = end_before_tags(file, tags + offset)
    frame = mpeg_frame(data, offset)
    num_frames = num_bytes = None
    side_info = {(True, True): 17, (True, False): 32, (False, True): 9, (False, False): 17}
    place = offset + 4 + side_info[frame.is_version_1, frame.is_mono]
    if data[place : place + 4] in (b"Xing", b"Info"):
        (flags,) = struct.unpack_from(">I", data.ljust(place + 16), place + 4)
        place += 8
        if flags & 1:
            (num_frames,) = struct.unpack_from(">I", data.ljust(place + 4), place)
            place += 4
        if flags & 2:
            (num_bytes,) = struct.unpack_from(">I", data.ljust(place + 4), place)
    elif data[offset + 36 : offset + 40] == b"VBRI" and len(data) >= offset + 54:
        num_bytes, num_frames = struct.unpack_from(">II", data, offset + 46)
    start = tags + offset
    if num_bytes and start + num_bytes < end:
        # the rest is zeros or noise, not another file that is joined to this one
        if not _has_mpeg(file, start + num_bytes):
            end = start + num_bytes
    return MpegLayout(start, end, num_frames or None, num_bytes or None, frame.num_samples)


def _has_mpeg(file: BinaryIO, place: int) -> bool:
    """Return True if MPEG frames follow soon after `place`, or after a tag there.

    A tag's picture may be large.
    """
    while True:
        file.seek(place)
        data = file.read(MP3_SEARCHED)
        if mpeg_start(data) is not None:
            return True
        tag = data.find(b"ID3")
        if tag < 0:
            return False
        place = max(place + tag + 1, start_after_tags(file, place + tag))


def adts_start(data: bytes) -> int | None:
    """Find three AAC frames (ADTS) in a row.

    At the start of the data fewer are enough if the data end there.

    Returns:
        Offset of the first frame, None if there are none. A recorded broadcast begins in the middle
        of a frame.
    """
    offset = -1
    while (offset := data.find(b"\xff", offset + 1)) >= 0:
        place, num_frames = offset, 0
        while (
            num_frames < 3
            and len(data) >= place + 7
            and data[place] == 0xFF
            and data[place + 1] & 0xF6 == 0xF0
        ):
            size = (data[place + 3] & 3) << 11 | data[place + 4] << 3 | data[place + 5] >> 5
            # version, profile, rate
            is_same = data[place + 1 : place + 3] == data[offset + 1 : offset + 3]
            if size < 7 or not is_same or data[place + 2] >> 2 & 15 > 12:
                break
            place, num_frames = place + size, num_frames + 1
        if num_frames == 3 or offset == 0 and num_frames and place >= len(data):
            return offset
    return None


# --- containers: the bytes that they announce ---

# programs that write to a pipe leave 0xFFFFFFFF or, as sox, 0x7FFFF000 or more
UNKNOWN_LENGTH = 0x7FFFF000
UNKNOWN_LENGTH_64 = 1 << 62
WRAPPED = 1 << 32  # bytes by which a 32-bit length is too small after an overflow
# Bytes that may be missing, since headers are often wrong by a few: 1/16 of the announced ones, at
# most 1024, at least 64 (some programs also count the 44 bytes of the header).
ALLOWED_OF_SMALL, ALLOWED_SHARE, ALLOWED_BYTES = 64, 1 / 16, 1024


def why_truncated(file: BinaryIO, kind: Kind) -> str | None:
    """Compare the bytes that the container announces with the size of the file.

    Returns:
        Why the file is truncated; None if no more bytes are missing than allowed for inaccurate
        headers.
    """
    size = file.seek(0, os.SEEK_END)
    walk = WALKS.get(kind.name)
    for start, end in walk(file, size) if walk else ():
        promised, missing = end - start, end - size
        allowed = max(ALLOWED_OF_SMALL, min(ALLOWED_BYTES, ALLOWED_SHARE * promised))
        if missing > (0 if kind is OGG else allowed):
            return (
                f"truncated: the header announces {promised} bytes of audio, the file holds"
                f" {promised - missing}"
            )
    return None


def _at(file: BinaryIO, place: int, size: int) -> bytes:
    if place >= UNKNOWN_LENGTH_64:  # a damaged header
        return b""
    file.seek(place)
    return file.read(size)


def _riff_data_chunk(file: BinaryIO) -> tuple[int, int] | None:
    """Return start and length (bytes) of the samples of WAV, RF64 and BW64; -1 if unknown."""
    order = ">" if _at(file, 0, 4) == b"RIFX" else "<"
    place, length_64 = 12, None
    while len(chunk := _at(file, place, 8)) == 8:
        name, length = struct.unpack(f"{order}4sI", chunk)
        if name == b"ds64" and len(sizes := _at(file, place + 8, 24)) == 24:
            length_64 = struct.unpack("<8xQ8x", sizes)[0]
        if name == b"data":
            place += 8
            if length_64 is not None and length == 0xFFFFFFFF:
                length = length_64 if length_64 < UNKNOWN_LENGTH_64 else -1
            elif length >= UNKNOWN_LENGTH:
                length = -1
            return place, length
        place += 8 + length + length % 2  # chunks start at even offsets
    return None


def _riff_data(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    found = _riff_data_chunk(file)
    if found and found[1] >= 0:
        yield found[0], sum(found)


def wav_was_not_closed(file: BinaryIO) -> bool:
    """Return True if a WAV has samples but its header says 0.

    The recorder lost power before it wrote the length.
    """
    found = _riff_data_chunk(file)
    if not found or found[1] != 0:
        return False
    size, start = file.seek(0, os.SEEK_END), found[0]
    head = _at(file, start, 8)
    has_name = len(head) == 8 and head[:4].isascii() and head[:4].decode().isprintable()
    is_chunk = has_name and int.from_bytes(head[4:], "little") <= size - start - 8
    return size - start > 8 and not is_chunk


def wrapped_wav_length(file: BinaryIO) -> int | None:
    """Return the place of the length in the header of a WAV of more than 4 GB, else None.

    The length is wrong, because it has only 32 bits.
    """
    found = _riff_data_chunk(file)
    if not found or _at(file, 0, 4) not in (b"RIFF", b"RIFX"):
        return None
    start, length = found
    if length < 0:
        order = "big" if _at(file, 0, 4) == b"RIFX" else "little"
        length = int.from_bytes(_at(file, start - 4, 4), order)
    return start - 4 if file.seek(0, os.SEEK_END) - start - length >= WRAPPED else None


def _avi_riffs(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    place = 0
    while len(chunk := _at(file, place, 8)) == 8 and chunk[:4] == b"RIFF":
        length = int.from_bytes(chunk[4:], "little")
        if not 0 < length < UNKNOWN_LENGTH:
            return
        yield place + 8, place + 8 + length
        place += 8 + length + length % 2


def _iff_data(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """Yield the SSND or BODY chunk."""
    place = 12
    while len(chunk := _at(file, place, 8)) == 8:
        name, length = struct.unpack(">4sI", chunk)
        if name in (b"SSND", b"BODY"):
            if length < UNKNOWN_LENGTH:
                yield place + 8, place + 8 + length
            return
        place += 8 + length + length % 2


def _au_data(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    head = _at(file, 0, 12)
    if len(head) == 12:
        offset, length = struct.unpack(">4xII" if head[:4] == b".snd" else "<4xII", head)
        if length < UNKNOWN_LENGTH:
            yield offset, offset + length


def _voc_blocks(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    head = _at(file, 0, 26)
    place = int.from_bytes(head[20:22], "little")
    # A block of type 0 ends the file. Some programs write a wrong length of the last block.
    while place < size - ALLOWED_OF_SMALL and len(block := _at(file, place, 4)) == 4 and block[0]:
        length = int.from_bytes(block[1:], "little")
        yield place, place + 4 + length
        place += 4 + length


def _sox_samples(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    head = _at(file, 0, 16)
    if len(head) == 16:
        length_of_head, num_samples = struct.unpack(
            "<4xIQ" if head[:4] == b".SoX" else ">4xIQ", head
        )
        if num_samples < UNKNOWN_LENGTH_64 // 4:
            yield 4 + length_of_head, 4 + length_of_head + 4 * num_samples


def _flv_tags(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    place = int.from_bytes(_at(file, 5, 4), "big") + 4
    while len(tag := _at(file, place, 4)) == 4 and tag[0] in (8, 9, 18):  # sound, picture, text
        length = 11 + int.from_bytes(tag[1:], "big") + 4
        yield place, place + length
        place += length


def _real_chunks(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    place = 0
    while len(chunk := _at(file, place, 8)) == 8:
        length = int.from_bytes(chunk[4:], "big")  # with its head
        if not 8 <= length < UNKNOWN_LENGTH:
            return
        yield place, place + length
        if chunk[:4] == b"DATA":
            return
        place += length


def _caf_data(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    place = 8
    while len(chunk := _at(file, place, 12)) == 12:
        name, length = struct.unpack(">4sQ", chunk)
        if name == b"data" and length >= UNKNOWN_LENGTH_64:
            return
        # the packet table of a compressed file may follow the data
        yield place + 12, place + 12 + length
        place += 12 + length


def _w64_data(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    place = 40
    while len(chunk := _at(file, place, 24)) == 24:
        length = int.from_bytes(chunk[16:], "little")  # with the 24 bytes before it
        if chunk[:4] == b"data":
            if length < UNKNOWN_LENGTH_64:
                yield place + 24, place + length
            return
        if length < 24:
            return
        place += (length + 7) // 8 * 8


def _mp4_boxes(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    place = 0
    while len(head := _at(file, place, 16)) >= 8 and head[4:8] in MP4_BOXES:
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if length < 8:  # 0: up to the end of the file
            return
        yield place, place + length
        place += length


ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")


def _asf_data(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    place = 0
    while len(head := _at(file, place, 24)) == 24:
        length = int.from_bytes(head[16:], "little")
        if length < 24 or length >= UNKNOWN_LENGTH_64:
            return
        yield place, place + length
        # in a file written to a pipe this is only the length of its header
        if head[:16] == ASF_DATA:
            return
        place += length


def _mpeg_frames(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """Yield the range that a Xing, Info or VBRI frame counts."""
    layout = mpeg_layout(file)
    if layout and layout.num_bytes:
        yield layout.start, layout.start + layout.num_bytes


def _sphere_samples(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    head = _at(file, 0, 16).split()
    if len(head) < 2 or not head[1].isdigit():
        return
    start = int(head[1])
    lines = [line.split() for line in _at(file, 0, min(start, 1 << 16)).splitlines()]
    fields = {line[0]: line[2] for line in lines if len(line) == 3}
    try:
        numbers = [
            int(fields[name]) for name in (b"sample_count", b"sample_n_bytes", b"channel_count")
        ]
    except (KeyError, ValueError):
        return
    # Other codings (shorten) compress.
    if b"sample_coding" not in fields or fields[b"sample_coding"] in (b"pcm", b"ulaw", b"alaw"):
        yield start, start + numbers[0] * numbers[1] * numbers[2]


EBML, SEGMENT, CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
MATROSKA_ELEMENTS = {
    *(EBML, SEGMENT, CLUSTER, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1254C367),
    *(0x1043A770, 0x1941A469, 0xEC, 0xBF),
    *(0xE7, 0xA3, 0xA0, 0xAB, 0xA7, 0x5854),  # in a cluster
}


def _matroska_elements(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """Yield the segment; if its length is open (written to a pipe), the elements inside it."""
    place = 0
    while place < size:
        head = _at(file, place, 12)
        length_of_id = 9 - head[0].bit_length() if head[0] else 9
        name = int.from_bytes(head[:length_of_id], "big")
        if name not in MATROSKA_ELEMENTS or len(head) <= length_of_id or not head[length_of_id]:
            return
        length_of_size = 9 - head[length_of_id].bit_length()
        mask = (1 << 7 * length_of_size) - 1
        length = int.from_bytes(head[length_of_id : length_of_id + length_of_size], "big") & mask
        start = place + length_of_id + length_of_size
        if length == mask:  # open
            if name not in (SEGMENT, CLUSTER):
                return
            place = start
        else:
            yield start, start + length
            if name == SEGMENT:
                return
            place = start + length


def _ogg_end(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    for page in ogg_pages(file):
        yield page.start, page.end


WALKS = {
    "WAV": _riff_data,
    "AVI": _avi_riffs,
    "AIFF": _iff_data,
    "8SVX": _iff_data,
    "16SV": _iff_data,
    "AU": _au_data,
    "VOC": _voc_blocks,
    "SoX": _sox_samples,
    "Flash video": _flv_tags,
    "RealMedia": _real_chunks,
    "CAF": _caf_data,
    "W64": _w64_data,
    "MP4": _mp4_boxes,
    "Windows Media": _asf_data,
    "Matroska or WebM": _matroska_elements,
    "Ogg": _ogg_end,
    "MP3": _mpeg_frames,
    "SPHERE": _sphere_samples,
}


# --- Ogg ---


@dataclass(frozen=True)
class OggPage:
    start: int
    end: int
    is_first: bool  # first page of a logical stream
    serial: int
    codec: bytes  # first 8 bytes of the payload; they name the codec in a first page


def ogg_pages(file: BinaryIO) -> Iterator[OggPage]:
    """Yield the pages of an Ogg file in order, and skip other data between them."""
    place = 0
    while True:
        file.seek(place)
        head = file.read(27 + 255 + 8)
        if not head:
            return
        # the file is cut within the header of its last page
        if len(head) < 27 and head[:4] == b"OggS"[: len(head)]:
            yield OggPage(place, place + 27, False, 0, b"")
            return
        if head[:4] != b"OggS":
            file.seek(place)
            found = file.read(1 << 17).find(b"OggS")
            if found <= 0:
                return
            place += found
            continue
        num_segments = head[26]
        payload = 27 + num_segments
        size = payload + sum(head[27:payload])
        serial = int.from_bytes(head[14:18], "little")
        codec = head[payload : payload + 8]
        yield OggPage(place, place + size, bool(head[5] & 2), serial, codec)
        place += size


@dataclass(frozen=True)
class OggLink:
    """One part of a chained Ogg file; `codecs`: the first bytes of each of its streams."""

    start: int
    end: int
    codecs: tuple[bytes, ...]


MOST_STREAMS = 64  # recorded per link


def ogg_links(file: BinaryIO) -> list[OggLink]:
    """Return the links of an Ogg file: one, or several if it is chained."""
    links: list[OggLink] = []
    was_first = False
    for page in ogg_pages(file):
        if page.is_first and was_first:
            links[-1] = OggLink(links[-1].start, page.end, links[-1].codecs)
            if len(links[-1].codecs) < MOST_STREAMS:  # with more it is not a recording
                links[-1] = OggLink(links[-1].start, page.end, (*links[-1].codecs, page.codec))
        elif page.is_first or not links:
            links.append(OggLink(page.start, page.end, (page.codec,)))
        else:
            links[-1] = OggLink(links[-1].start, page.end, links[-1].codecs)
        was_first = page.is_first
    return links
