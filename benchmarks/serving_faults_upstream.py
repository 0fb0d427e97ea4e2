"""The inference server of `serving_faults.py`: does on request what bad servers do, and notes what it has answered.

The body of a request says what is wanted: {"id": N, "fault": NAME, ...}. Each id that was answered whole, to the last
byte handed to the system, becomes a line of the file that is named on the command line.
"""

from __future__ import annotations

import asyncio
import json
import sys
import zlib
from contextlib import suppress
from pathlib import Path

BIG = 4 << 20


def plain(body: bytes, status: str = "200 OK", more: str = "") -> bytes:
    """A whole answer."""
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{more}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def vector(text: str) -> list[float]:
    """What stands for the embedding of a text: the same for the same text."""
    return [zlib.crc32(f"{place} {text}".encode()) / 2**32 for place in range(64)]


def good(asked: dict) -> bytes:
    """What a request that asks for nothing odd gets."""
    texts = asked.get("input", "")
    texts = texts if isinstance(texts, list) else [texts]
    data = [{"index": place, "embedding": vector(text)} for place, text in enumerate(texts)]
    usage = {"prompt_tokens": 7 * len(texts), "total_tokens": 7 * len(texts)}
    named = {"id": asked["id"]} if "id" in asked else {}
    return json.dumps(named | {"data": data, "usage": usage}).encode()


def event(number: int, piece: int) -> bytes:
    """A piece of a stream."""
    text = b"data: " + json.dumps({"id": number, "choices": [{"delta": {"content": f"w{piece} "}}]}).encode() + b"\n\n"
    return f"{len(text):x}\r\n".encode() + text + b"\r\n"


class Server:
    """Answers; `log` gets the ids."""

    def __init__(self, log: Path) -> None:
        self.log = log.open("ab", buffering=0)

    async def client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with suppress(ConnectionError, asyncio.IncompleteReadError, ValueError):
            while (asked := await self.request(reader)) is not None:
                if not await self.answer(asked, writer):
                    break
        writer.transport.abort()

    async def request(self, reader: asyncio.StreamReader) -> dict | None:
        """What is asked, or None at the end."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        body = await reader.readexactly(length)
        try:
            asked = json.loads(body)
        except ValueError:
            return {"fault": "malformed", "id": -1}
        return asked if isinstance(asked, dict) else {"fault": "malformed", "id": -1}

    async def answer(self, asked: dict, writer: asyncio.StreamWriter) -> bool:
        """Answer, or do what is wanted instead. Returns whether the connection goes on."""
        number, fault = int(asked.get("id", -1)), str(asked.get("fault", ""))
        if fault in BROKEN:
            writer.write(BROKEN[fault](asked))
            await writer.drain()
            await asyncio.sleep(0.01)
            return False
        await asyncio.sleep(1.0 if fault in ("slow", "gone") else 0.002)
        if fault == "stream":
            writer.write(STREAM)
            for piece in range(20):
                writer.write(event(number, piece))
                await asyncio.sleep(0.01)
            writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        else:
            writer.write(WHOLE.get(fault, lambda asked: plain(good(asked)))(asked))
        await writer.drain()
        self.log.write(b"%d\n" % number)
        return True


STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
WHOLE = {
    "malformed": lambda _: plain(b'{"error": "no JSON"}', "400 Bad Request"),
    "refused": lambda _: plain(b'{"error": "too many"}', "429 Too Many Requests", "retry-after: 1\r\n"),
    "injected": lambda asked: plain(good(asked), more="x-odd: a\tb\r\n"),
    "big": lambda _: plain(b'"' + b"x" * BIG + b'"'),
}
BROKEN = {
    "close": lambda _: b"",
    "garbage": lambda _: b"\x16\x03\x01 this is no HTTP at all\r\n\r\n" * 10,
    "cut": lambda asked: plain(good(asked))[:-20],
    "cut-stream": lambda asked: STREAM + event(asked["id"], 0) + event(asked["id"], 1),
    "head": lambda _: b"HTTP/1.1 200 OK\r\nx-long: " + b"a" * (1 << 20) + b"\r\n\r\n",
    "bad-header": lambda _: b"HTTP/1.1 200 OK\r\nx-a: b\rset-cookie: c=d\r\ncontent-length: 2\r\n\r\n{}",
}


async def main() -> None:
    """Serve on the port and log to the file that the command line names."""
    server = Server(Path(sys.argv[2]))
    listening = await asyncio.start_server(server.client, "127.0.0.1", int(sys.argv[1]), limit=64 << 20, backlog=2048)
    print("ready", flush=True)
    async with listening:
        await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
