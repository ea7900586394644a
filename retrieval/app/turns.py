"""Turns at the decoders: a bounded number at once, clients one after the other.

Fifty requests of one client hold up neither the others nor the queries.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from retrieval.app.clients import Refused

MAX_WAITING_OF_CLIENT = 64  # a page of 50 answers asks for as many pictures; a browser has six connections
MAX_WAITING = 512
SECONDS_BETWEEN_LOOKS = 0.5  # whether a client that waits has gone


class Turns:
    """Waiting clients take turns; within a client the first comes first.

    Args:
        at_once: Number of turns that may be taken at the same time.
    """

    def __init__(self, at_once: int):
        self.free = at_once
        self._waiting: OrderedDict[str, deque[asyncio.Future]] = OrderedDict()  # the client that is next comes first

    @asynccontextmanager
    async def turn(self, client_key: str, has_gone: Callable[[], Awaitable[bool]]) -> AsyncIterator[None]:
        """Wait for a turn and hold it. Raises Refused where too many wait, and where the client has gone meanwhile."""
        if self.free and not self._waiting:
            self.free -= 1
        else:
            await self._wait(client_key, has_gone)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, client_key: str, has_gone: Callable[[], Awaitable[bool]]) -> None:
        own, in_all = len(self._waiting.get(client_key, ())), sum(map(len, self._waiting.values()))
        if own >= MAX_WAITING_OF_CLIENT or in_all >= MAX_WAITING:
            raise Refused(
                503, "too many parts of recordings are asked for at once: try again in a moment", {"Retry-After": "1"}
            )
        place = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client_key, deque()).append(place)
        try:
            while not place.done():
                await asyncio.wait({place}, timeout=SECONDS_BETWEEN_LOOKS)
                if not place.done() and await has_gone():
                    raise Refused(408, "the client has gone")
        except BaseException:
            if place.done():
                self._pass_on()
            else:
                self._leave(client_key, place)
            raise

    def _pass_on(self) -> None:
        if not self._waiting:
            self.free += 1
            return
        client_key, places = self._waiting.popitem(last=False)
        places.popleft().set_result(None)
        if places:
            self._waiting[client_key] = places  # behind all others

    def _leave(self, client_key: str, place: asyncio.Future) -> None:
        self._waiting[client_key].remove(place)
        if not self._waiting[client_key]:
            del self._waiting[client_key]
