"""Share the decoders among clients: a limited number of requests at a time, clients in turn.

Many requests of one client delay neither other clients nor queries.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from retrieval.search.page.clients import Refused

MAX_WAITING_OF_CLIENT = 64  # a page of 50 answers requests 50 pictures
MAX_WAITING = 512
SECONDS_BETWEEN_LOOKS = 0.5  # between checks whether a waiting client has disconnected


class Turns:
    """Lets waiting clients take turns; requests of one client keep their order.

    Args:
        at_once: Number of turns at the same time.
    """

    def __init__(self, at_once: int):
        self.free = at_once
        # the client that is next comes first
        self._waiting: OrderedDict[str, deque[asyncio.Future]] = OrderedDict()

    @asynccontextmanager
    async def turn(
        self, client_key: str, has_gone: Callable[[], Awaitable[bool]]
    ) -> AsyncIterator[None]:
        """Wait for a turn and hold it.

        Raises Refused if too many wait, or if the client disconnects.
        """
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
                503,
                "too many requests for recordings at once: try again in a moment",
                {"Retry-After": "1"},
            )
        place = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client_key, deque()).append(place)
        try:
            while not place.done():
                await asyncio.wait({place}, timeout=SECONDS_BETWEEN_LOOKS)
                if not place.done() and await has_gone():
                    raise Refused(408, "the client has disconnected")
        except BaseException:
            if place.done():
                self._pass_on()
            else:
                self._waiting[client_key].remove(place)
                if not self._waiting[client_key]:
                    del self._waiting[client_key]
            raise

    def _pass_on(self) -> None:
        if not self._waiting:
            self.free += 1
            return
        client_key, places = self._waiting.popitem(last=False)
        places.popleft().set_result(None)
        if places:
            self._waiting[client_key] = places  # behind all others
