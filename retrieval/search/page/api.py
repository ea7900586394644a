"""JSON endpoints of the page's server for other programs: search, and moments in one recording.

Requests pass gate.py first, as those of the page. Each model below is a part of the description
that /api/openapi.json gives. See docs/search_page.md.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from retrieval.base.errors import UserError
from retrieval.search import AudioIndex, Hit, Query
from retrieval.search.cluster.address import StoreError
from retrieval.search.feedback.detectors import Detector, Mark
from retrieval.search.metadata import as_written, fields_as_written
from retrieval.search.page.clients import Refused
from retrieval.search.page.events import MAX_MARKS
from retrieval.search.page.page import UNREACHABLE, filters, read_stretch, without_folders
from retrieval.search.page.turns import Turns
from retrieval.search.queries import LONGEST

MAX_ANSWERS = 100
MAX_SECONDS = 1e9
MAX_PARTS = 20  # sentences
MAX_COLUMNS, MAX_VALUES = 50, 100  # of `where`
MOST_FOLDERS = 1000
LONGEST_NAME = 4096  # characters of a file or folder
LONGEST_DETAIL = 300
AT_ONCE = 1  # questions to the model

logger = logging.getLogger(__name__)

Text = Annotated[str, Field(min_length=1, max_length=LONGEST)]
Name = Annotated[str, Field(max_length=LONGEST_NAME)]
Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS)]
Value = Annotated[str, Field(max_length=LONGEST_NAME)] | float
Number = int | float  # whole numbers of metadata stay whole
Answer = TypeVar("Answer")


class Asked(BaseModel):
    """Base of requests: no unknown keys, no conversion of types, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Part(Asked):
    """A further sentence."""

    text: Text
    weight: float = Field(1.0, gt=0, le=1000, description="beside 1 of the first sentence")


def listed(given: Any) -> Any:
    """Return a list of a string, as Python's `also` and `without` take one."""
    return [given] if isinstance(given, str) else given


def as_part(given: Any) -> Any:
    """Return the fields of a Part for a sentence, or for a pair of sentence and weight."""
    if isinstance(given, str):
        return {"text": given}
    if isinstance(given, list):
        if len(given) != 2:
            raise ValueError("expected a sentence, [sentence, weight], or an object with text")
        return {"text": given[0], "weight": given[1]}
    return given


OnePart = Annotated[
    Part, BeforeValidator(as_part, json_schema_input_type=Text | tuple[Text, float] | Part)
]
SeveralParts = Annotated[list[OnePart], Field(max_length=MAX_PARTS)]
SeveralTexts = Annotated[list[Text], Field(max_length=MAX_PARTS)]
Parts = Annotated[SeveralParts, BeforeValidator(listed, json_schema_input_type=Text | SeveralParts)]
Texts = Annotated[SeveralTexts, BeforeValidator(listed, json_schema_input_type=Text | SeveralTexts)]


class Sound(Asked):
    """A stretch of a recording of the index, at most as long as its excerpts."""

    file: Name
    start: Seconds
    end: Seconds


class Judged(Asked):
    """An answer that was judged."""

    file: Name
    start: Seconds | None = Field(None, description="that of the excerpt")
    end: Seconds | None = None
    right: bool


class SearchRequest(Asked):
    """A search, as in the page and on the terminal: by a sentence, a sound, both, or a detector."""

    query: Text | None = Field(None, description="the sentence", examples=["a dog barks twice"])
    also: Parts = Field([], description="sentences to be heard too")
    without: Texts = Field([], description="sentences not to be heard")
    like: Sound | None = Field(None, description="a sound that answers should be like")
    marks: list[Judged] = Field([], max_length=MAX_MARKS, description="answers to `query`, judged")
    detector: Name | None = Field(None, description="a saved detector, in place of the sentence")
    k: int = Field(10, ge=1, le=MAX_ANSWERS, description="number of answers")
    min_score: float | None = Field(None, ge=-1e9, le=1e9, description="the lowest score")
    within: Name = Field("", description="only files below this folder of the indexed one")
    min_seconds: Seconds = Field(0.0, description="only files of this length or longer")
    max_seconds: Seconds | None = Field(None, description="only files of this length or shorter")
    where: dict[Name, Value | list[Value]] = Field(
        {},
        max_length=MAX_COLUMNS,
        description="accepted values by column of the metadata; a range of numbers is a text",
        examples=[{"place": "forest", "year": "2020..2024"}],
    )


class MomentsRequest(Asked):
    """A question where in one recording a sentence is heard."""

    file: Name = Field(description="name of a recording in the index", examples=["2024/dog.wav"])
    query: Text = Field(description="the sentence", examples=["a dog barks twice"])
    curve: bool = Field(False, description="also return the sentence's curve over the recording")


class Moment(BaseModel):
    """A stretch of a recording, in seconds from its beginning."""

    start: float
    end: float
    score: float


class Found(BaseModel):
    """An answer: an excerpt of a recording, and the stretches of it that fit the sentence."""

    rank: int = Field(description="1 is the best")
    score: float = Field(description="similarity to the query; by marks or detector: probability")
    file: str = Field(description="name of the recording in the index")
    seconds: float = Field(description="length of the recording")
    start: float = Field(description="start of the excerpt, s")
    end: float = Field(description="end of the excerpt, s")
    moments: list[Moment] = Field(description="best first")
    is_match: bool = Field(
        description="false if unrelated sentences reach it too, or below `threshold`"
    )
    judged_score: float | None = Field(
        description="with `without`: score of the wanted sentences, which `is_match` is about"
    )
    metadata: dict[str, str | Number]
    copies: list[str] = Field(description="other files with the same recording")


class SearchAnswer(BaseModel):
    """Answers to a sentence, best first."""

    query: str = Field(description="in one line; of a detector, its sentence")
    note: str | None = Field(description="words of the sentence that the model does not read")
    unrelated_score: float | None = Field(
        description="that unrelated sentences reach; null by marks or detector"
    )
    threshold: float | None = Field(
        description="probability from which an answer matches, by marks or detector; else null"
    )
    seconds: float = Field(description="time that the search took")
    hits: list[Found]


class MomentsAnswer(BaseModel):
    """Stretches of a recording where a sentence is heard, best first."""

    file: str
    query: str
    seconds: float = Field(description="length of the recording")
    moments: list[Moment]
    curve: list[float] | None = Field(description="value of each frame; see AudioIndex.locate")
    frame_seconds: float = Field(description="length of a frame of the curve")


class Folder(BaseModel):
    """A folder below the indexed one."""

    name: str
    files: int = Field(description="number of files in it and its sub-folders")


class Column(BaseModel):
    """A column of the metadata."""

    name: str
    kind: str = Field(description="text or number")
    values: dict[str, int] = Field(description="number of files by value; the most frequent ones")
    lowest: Number | None
    highest: Number | None


class IndexAnswer(BaseModel):
    """What is in the index, and by what it can be filtered."""

    recordings: int
    seconds: float = Field(description="length of all recordings")
    unrelated_score: float | None
    folders: list[Folder] = Field(description=f"the first {MOST_FOLDERS}, by name")
    columns: list[Column]
    detectors: list[str]


class DetectorsAnswer(BaseModel):
    """Names of the saved detectors."""

    detectors: list[str]


class Problem(BaseModel):
    """Why there is no answer, in one line."""

    detail: str


PROBLEMS = {
    401: "a token or password is missing or wrong",
    404: "the index has no such recording",
    413: "the request is too long",
    415: "the request is not application/json",
    422: "a field is wrong or missing",
    429: "too many wrong tokens: wait for Retry-After seconds",
    503: "too many requests wait, or the index is out of reach: try after Retry-After seconds",
}


def make_api(index: AudioIndex) -> FastAPI:
    """Return the application with the routes below /api."""
    token = HTTPBearer(
        auto_error=False,  # gate.py has checked it
        description="The token of the page's address, or its password; none if it has none.",
    )
    api = FastAPI(
        title="Search recordings",
        description=__doc__.partition("\n")[0],
        version="1",
        docs_url=None,  # these pages need scripts of other machines
        redoc_url=None,
        dependencies=[Depends(token)],
        responses={
            status: {"model": Problem, "description": why} for status, why in PROBLEMS.items()
        },
    )
    questions = Turns(AT_ONCE)

    @api.exception_handler(Refused)
    def refused(request: Request, error: Refused) -> JSONResponse:
        return JSONResponse({"detail": error.detail}, error.status, error.headers)

    @api.exception_handler(RequestValidationError)
    def wrong_field(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:]) or "the body"
        detail = " ".join(f"{place}: {first['msg']}".split())[:LONGEST_DETAIL]
        return JSONResponse({"detail": detail}, 422)

    async def answer(request: Request, function: Callable[[], Answer]) -> Answer:
        """Call a function of the index in another thread, at the client's turn. Raises Refused."""
        async with questions.turn(request.state.client_key, request.is_disconnected):
            try:
                return await asyncio.to_thread(function)
            except StoreError as error:
                logger.error("%s", error)
                raise Refused(503, UNREACHABLE, {"Retry-After": "10"}) from None
            except UserError as error:
                detail = without_folders(str(error), index.folder, index.place.folder)
                raise Refused(422, detail) from None
            except Exception:
                logger.exception("a request could not be answered")
                detail = "this could not be answered: the log of the page's command has the reason"
                raise Refused(500, detail) from None

    @api.post("/search", summary="Find recordings by a sentence, a sound or a detector")
    async def search(request: Request, asked: SearchRequest) -> SearchAnswer:
        return await answer(request, lambda: searched(index, asked))

    @api.get("/index", summary="What is in the index, and by what it can be filtered")
    async def contents(request: Request) -> IndexAnswer:
        return await answer(request, lambda: facts(index))

    @api.get("/detectors", summary="Names of the saved detectors")
    async def detectors(request: Request) -> DetectorsAnswer:
        return DetectorsAnswer(detectors=await answer(request, index.detectors.names))

    @api.post("/moments", summary="Find a sentence in one recording")
    async def moments(request: Request, asked: MomentsRequest) -> MomentsAnswer:
        file = await answer(request, lambda: index.file(asked.file))
        if file is None:
            raise Refused(404, "file: the index has no recording of this name")
        found = await answer(request, lambda: index.locate(asked.query, file.file))
        return MomentsAnswer(
            file=file.file,
            query=asked.query,
            seconds=file.seconds,
            moments=list(map(stretch, found.moments[0])),
            curve=found.curves[0].tolist() if asked.curve else None,
            frame_seconds=found.frame_seconds,
        )

    return api


def searched(index: AudioIndex, asked: SearchRequest) -> SearchAnswer:
    """Answer a request. Raises UserError."""
    limits = filters(asked.within, asked.min_seconds, asked.max_seconds)
    limits |= {"where": asked.where, "min_score": asked.min_score}
    query = asked_for(index, asked)
    begin = time.perf_counter()
    hits = index.search(query, asked.k, **limits) if index.num_files else []
    took = time.perf_counter() - begin
    detector = query if isinstance(query, Detector) else None
    sentences = list(query.sentences) if detector is None else [detector.query]
    notes = filter(None, map(index.notes, sentences))
    return SearchAnswer(
        query=str(query) if detector is None else detector.query,
        note="; ".join(notes) or None,
        # probabilities of a detector cannot be compared with the scores of sentences
        unrelated_score=index.unrelated_score if detector is None else None,
        threshold=None if detector is None else detector.threshold,
        seconds=took,
        hits=list(map(shown, hits)),
    )


def asked_for(index: AudioIndex, asked: SearchRequest) -> Query | Detector:
    """Return what a request searches for. Raises UserError."""
    parts = bool(asked.also or asked.without or asked.like)
    if asked.detector is not None:
        if asked.query or asked.marks or parts:
            raise UserError("detector: it has its own sentence and marks; give nothing else")
        return index.detectors.load(asked.detector)
    if asked.marks:
        if asked.query is None or parts:
            raise UserError("marks: they belong to one sentence, query, and nothing else")
        marks = [Mark(**mark.model_dump()) for mark in asked.marks]
        return index.refine(asked.query, marks)
    sound = None
    if asked.like is not None:
        sound = read_stretch(index, asked.like.file, asked.like.start, asked.like.end)
    also = [(part.text, part.weight) for part in asked.also]
    return Query.of(asked.query, also=also, without=asked.without, audio=sound)


def facts(index: AudioIndex) -> IndexAnswer:
    found = index.facets()
    return IndexAnswer(
        recordings=index.num_files,
        seconds=index.seconds,
        unrelated_score=index.unrelated_score,
        folders=[Folder(name=name, files=num) for name, num in found.folders[:MOST_FOLDERS]],
        columns=[
            Column(
                name=own.column,
                kind=own.kind,
                values={str(as_written(value)): num for value, num in own.values},
                lowest=as_written(own.lowest),
                highest=as_written(own.highest),
            )
            for own in found.columns
        ],
        detectors=index.detectors.names(),
    )


def shown(hit: Hit) -> Found:
    return Found(
        rank=hit.rank,
        score=hit.score,
        file=hit.file,
        seconds=hit.seconds,
        start=hit.start,
        end=hit.end,
        moments=list(map(stretch, hit.moments)),
        is_match=hit.is_match,
        judged_score=hit.judged_score,
        metadata=fields_as_written(hit.metadata),
        copies=list(hit.copies),
    )


def stretch(moment: Any) -> Moment:
    return Moment(start=moment.start, end=moment.end, score=moment.score)
