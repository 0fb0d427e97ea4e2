"""An embeddings server: MiniLM on ONNX Runtime behind OpenAI's POST /v1/embeddings. Loopback only.

One thread runs the model, so that the event loop goes on answering. While it is busy requests queue; when it is free it
takes what waits, up to --max-batch texts, and runs texts of similar length together.

    python server.py --port 8001 --threads 2
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import model
import numpy as np

MOST_TEXTS = 2048
"""Of one request, as OpenAI's API."""
MOST_BYTES = 4 << 20
MODEL = "all-MiniLM-L6-v2"


class RefusedError(Exception):
    """What is told to the client instead of an answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Queue:
    """Texts on their way through the model.

    Args:
        embed: from texts to their embeddings and numbers of tokens; slow, so it is run in a thread of its own.
        max_batch: most texts that are handed to it at a time; a request with more is split.
    """

    def __init__(self, embed: Any, max_batch: int) -> None:
        self._embed = embed
        self._max_batch = max_batch
        self._waiting: deque[tuple[str, asyncio.Future]] = deque()
        self._busy = False
        self._thread = ThreadPoolExecutor(1)

    async def put(self, texts: list[str]) -> list[tuple[np.ndarray, int]]:
        """The embedding and the number of tokens of each text."""
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in texts]
        self._waiting.extend(zip(texts, futures))
        self._next()
        try:
            return await asyncio.gather(*futures) if len(futures) > 1 else [await futures[0]]
        finally:  # a client that goes away takes its texts with it
            for future in futures:
                future.cancel()

    def _next(self) -> None:
        if self._busy:
            return
        taken = []
        while self._waiting and len(taken) < self._max_batch:
            text, future = self._waiting.popleft()
            if not future.done():
                taken.append((text, future))
        if taken:
            self._busy = True
            run = asyncio.get_running_loop().run_in_executor(self._thread, self._embed, [text for text, _ in taken])
            run.add_done_callback(lambda done: self._told(taken, done))

    def _told(self, taken: list[tuple[str, asyncio.Future]], done: asyncio.Future) -> None:
        self._busy = False
        error = done.exception()
        for i, (_, future) in enumerate(taken):
            if future.done():
                continue
            if error:
                future.set_exception(error)
            else:
                future.set_result(done.result()[i])
        self._next()


class App:
    """The ASGI side."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        try:
            status, body = 200, await self._answer(scope, receive)
        except RefusedError as refused:
            status, body = refused.status, {"error": {"message": str(refused), "type": "invalid_request_error"}}
        data = json.dumps(body, separators=(",", ":")).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    async def _answer(self, scope: dict[str, Any], receive: Any) -> dict[str, Any]:
        path, method = scope["path"], scope["method"]
        if path == "/health" and method == "GET":
            return {"status": "ok"}
        if path != "/v1/embeddings":
            raise RefusedError(404, f"no such path: {path}")
        if method != "POST":
            raise RefusedError(405, "use POST")
        asked = question(await whole(receive))
        found = await self._queue.put(asked["input"])
        tokens = sum(count for _, count in found)
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": i, "embedding": written(vector, asked["encoding_format"])}
                for i, (vector, _) in enumerate(found)
            ],
            "model": asked["model"],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }


async def whole(receive: Any) -> bytes:
    """The body of a request."""
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
        if size > MOST_BYTES:
            raise RefusedError(413, f"more than {MOST_BYTES} bytes")
    return b"".join(parts)


def question(body: bytes) -> dict[str, Any]:
    """What a request asks for: input as a list of texts, encoding_format, model."""
    try:
        asked = json.loads(body)
    except ValueError as error:
        raise RefusedError(400, f"the body is not JSON: {error}") from error
    if not isinstance(asked, dict):
        raise RefusedError(400, "the body is not a JSON object")
    given = asked.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise RefusedError(400, "'input' is a text or a list of texts, none of them empty")
    if len(texts) > MOST_TEXTS:
        raise RefusedError(400, f"'input' has {len(texts)} texts, more than {MOST_TEXTS}")
    how = asked.get("encoding_format", "float")
    if how not in ("float", "base64"):
        raise RefusedError(400, "'encoding_format' is float or base64")
    return {"input": texts, "encoding_format": how, "model": str(asked.get("model", MODEL))}


def written(vector: np.ndarray, how: str) -> list[float] | str:
    """An embedding as OpenAI's API writes it; seven digits are what a 32-bit float holds."""
    if how == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.astype(np.float64).round(7).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--runtime", choices=("onnx", "torch"), default="onnx")
    parser.add_argument("--precision", choices=model.PRECISIONS, default="fp32", help="int8: with --runtime onnx only")
    parser.add_argument("--threads", type=int, default=1, help="that run the model (1)")
    parser.add_argument("--max-batch", type=int, default=1, help="texts that are run together while others wait (1)")
    args = parser.parse_args()
    import uvicorn

    embed = model.embedder(args.runtime, args.precision, args.threads)
    embed(["the first run is slower than the others"])
    app = App(Queue(embed, args.max_batch))
    uvicorn.run(app, host="127.0.0.1", port=args.port, access_log=False, log_level="warning", lifespan="off")


if __name__ == "__main__":
    main()
