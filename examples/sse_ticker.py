"""Server-Sent Events from a FastAPI application: a price that ticks, for any number of readers.

    pip install street_fast fastapi uvicorn
    python examples/sse_ticker.py
    curl -N http://127.0.0.1:3000/ticks

In a page: new EventSource("/ticks").addEventListener("tick", (event) => show(JSON.parse(event.data)))

A reader that is too slow is let go; a client that hangs up is noticed; what says nothing for long gets a ping, so that
proxies keep it open. EventSource comes back by itself and says which tick it saw last.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from street_fast import SseStream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

streams: set[SseStream] = set()


async def tick() -> None:
    number, price = 0, 100.0
    while True:
        await asyncio.sleep(1)
        number, price = number + 1, round(price + random.uniform(-1, 1), 2)  # noqa: S311
        for stream in streams:
            stream.send({"price": price}, event="tick", id=str(number))


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    ticking = asyncio.create_task(tick())
    yield
    ticking.cancel()


app = FastAPI(lifespan=lifespan)


@app.get("/ticks")
async def ticks() -> StreamingResponse:
    stream = SseStream()
    streams.add(stream)
    stream.add_close_callback(streams.discard)
    return StreamingResponse(stream, headers=SseStream.HEADERS)


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "3000")), timeout_graceful_shutdown=1)
