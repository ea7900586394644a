"""Bring ids of Freesound and YouTube to one spelling, from lists, JSON files and file names.

    Freesound, an integer              354184 | 354184.0 (pandas) | 0354184 | 3.54184E+05
                                       354184.flac | 354184__user__name.wav | a link
    YouTube, 11 of A-Z a-z 0-9 _ -     ID | YID | ID.wav | ID_START | ID_START_END | a link;
                                       case matters, and an id may begin with Y itself

Leading folders, and quotes and blanks around an id, are ignored. Without one spelling an exclusion
list would match nothing: a leak that no score shows.
"""

import re
from dataclasses import dataclass

# words for a missing id in Clotho, DCASE, pandas and spreadsheets
UNKNOWN = {"", "not found", "nan", "none", "null", "na", "n/a", "<na>", "#n/a"}
# blanks, byte order mark, quotes, a spreadsheet's ="354184"
AROUND = " \t\r\n\v\f\xa0\ufeff\u200b=\"'`\u201c\u201d\u2018\u2019"
ENDING = re.compile(r"\.([A-Za-z][A-Za-z0-9]{1,4}|3gp|3g2)$", re.ASCII)

DIGITS = re.compile(r"(\d{1,18})(\.0*)?", re.ASCII)
SCIENTIFIC = re.compile(r"(\d)(?:\.(\d*))?[eE]\+?(\d{1,2})", re.ASCII)
# Names of Freesound's downloads and previews.
FREESOUND_FILE = re.compile(r"(\d{1,18})(__.+|_\d+-[hl]q)", re.ASCII | re.DOTALL)
FREESOUND_LINK = re.compile(
    r"(?:https?:)?//(?:[a-z]+\.)?freesound\.org/(?:people/[^/]+/|s/)(?:sounds/)?"
    r"(\d{1,18})/?(?:[?#].*)?",
    re.ASCII,
)

YOUTUBE_FILE = re.compile(
    r"Y?(?P<video>[\w-]{11})(_(?P<start>\d+(\.\d+)?)(_\d+(\.\d+)?)?)?", re.ASCII
)
YOUTUBE_LINK = re.compile(
    r"(?:https?:)?//(?:[a-z]+\.)?"
    r"(?:youtube(?:-nocookie)?\.com/(?:watch\?(?:.*&)?v=|shorts/|embed/|v/|live/)|youtu\.be/)"
    r"([\w-]{11})(?:[?&#/].*)?",
    re.ASCII,
)


@dataclass(frozen=True)
class Excerpt:
    """A part of a YouTube video, from the name of its file."""

    video: str
    start: float | None  # as in the name, in seconds or milliseconds; None if absent


def is_unknown(text: str) -> bool:
    """Return True for words that mark a missing id."""
    return text.strip(AROUND).lower() in UNKNOWN


def freesound_id(text: str) -> str | None:
    """Return the digits of a Freesound id without leading zeros; None for other texts.

    None too for a number that a spreadsheet has rounded: its last digits are lost.
    """
    text = text.strip(AROUND)
    name = _file_name(text)
    found = (
        FREESOUND_LINK.fullmatch(text) or DIGITS.fullmatch(name) or FREESOUND_FILE.fullmatch(name)
    )
    if found:
        return str(int(found[1])) if int(found[1]) else None
    if found := SCIENTIFIC.fullmatch(name):
        first, others, exponent = found[1], found[2] or "", int(found[3])
        whole, rest = others[:exponent], others[exponent:]
        # fewer digits than the exponent needs: rounded
        if len(whole) == exponent and not rest.strip("0") and first != "0":
            return first + whole
    return None


def youtube_id(text: str) -> str | None:
    """Return the 11 characters of a YouTube id; None for other texts."""
    if link := YOUTUBE_LINK.fullmatch(text.strip(AROUND)):
        return link[1]
    excerpt = youtube_excerpt(text)
    return excerpt.video if excerpt else None


def youtube_excerpt(file_name: str) -> Excerpt | None:
    """Return video and start in the name of a file; None for other names.

    Names are unambiguous: with a leading Y the underscore before START is the 13th character,
    without it the 12th, and a digit follows.
    """
    found = YOUTUBE_FILE.fullmatch(_file_name(file_name.strip(AROUND)))
    if found is None:
        return None
    return Excerpt(found["video"], float(found["start"]) if found["start"] else None)


def _file_name(text: str) -> str:
    """Return `text` without folders and ending."""
    name = re.split(r"[/\\]", text)[-1].strip(AROUND)
    return ENDING.sub("", name)
