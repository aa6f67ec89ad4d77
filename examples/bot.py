"""A bot in a room of a Realtime: it answers "!who" and "!time", and stays there when the server is restarted.

python examples/react_chat/app.py                                   # or another Realtime
python examples/bot.py ws://127.0.0.1:3000/realtime room:general    # and say "!who" in the chat
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time

import msgspec

from street_fast import CannotConnect, RealtimeClient, RealtimeError, connect


class Line(msgspec.Struct):
    name: str
    text: str


async def answer(rt: RealtimeClient, room: str, text: str) -> str | None:
    if text == "!who":
        presence = await rt.presence(room)
        return f"{presence.count} here, and I am one of them"
    if text == "!time":
        return time.strftime("%H:%M:%S")
    return None


async def main(url: str, room: str) -> None:
    async with connect(url) as rt:
        subscription = await rt.subscribe(room, type=Line)  # what is no Line is left out, and logged
        print(f"in {room}", flush=True)
        async for message in subscription:
            if rt.member is not None and message.from_member == rt.member.id:
                continue
            try:
                text = await answer(rt, room, message.data.text)
                if text is not None:
                    await rt.publish(room, Line("bot", text))
            except RealtimeError as error:
                print(f"could not answer: {error}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: bot.py URL ROOM")
    with contextlib.suppress(KeyboardInterrupt):
        try:
            asyncio.run(main(sys.argv[1], sys.argv[2]))
        except CannotConnect as error:
            sys.exit(str(error))
