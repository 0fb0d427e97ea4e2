"""Arrivals: traces of when requests came, and their replay in real time against a server.

The replay is open loop: a request goes out when its time has come, whether or not earlier ones were answered, and its
time counts from then. So a stall of the server, of a connection or of the client itself shows in every request that it
held up, not in one of them (what G. Tene, "How NOT to Measure Latency", calls coordinated omission).
"""

from __future__ import annotations

import asyncio
import csv
import gzip
import itertools
import random
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from negawatt.core.errors import UsageError
from negawatt.core.workload import Call

if TYPE_CHECKING:
    import aiohttp

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
"""Of a trace file, as in the Azure LLM inference traces of 2023 and 2024 (Azure/AzurePublicDataset, CC BY 4.0)."""


_KEEP_ALIVE_S = 4.0
"""Shorter than servers wait (uvicorn: 5 s), so that no request meets a connection that is just being closed."""
_TICK_S = 1e-3
"""Event loops round waits to milliseconds; a shorter one would be spent spinning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """When requests arrived, and how large they were; all three of one length, in the order of arrival.

    Attributes:
        at_s: arrival after the first one [s].
        tokens_in: tokens of each prompt.
        tokens_out: tokens of each answer.
    """

    at_s: tuple[float, ...]
    tokens_in: tuple[int, ...]
    tokens_out: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.at_s)

    @property
    def time_s(self) -> float:
        """From the first arrival to the last [s]."""
        return self.at_s[-1] if self.at_s else 0.0

    def compressed(self, factor: float) -> Trace:
        """The same requests, `factor` times as fast. Raises UsageError unless the factor is above 0."""
        if not factor > 0:
            raise UsageError(f"a trace compressed by {factor}", "time would stand still", "use a factor above 0")
        return Trace(
            at_s=tuple(at_s / factor for at_s in self.at_s), tokens_in=self.tokens_in, tokens_out=self.tokens_out
        )

    def thinned(self, fraction: float, seed: int) -> Trace:
        """A random part of the requests at their own times; each stays with probability `fraction`.

        Raises:
            UsageError: unless the fraction is above 0 and at most 1.
        """
        if not 0 < fraction <= 1:
            raise UsageError(
                f"a trace thinned to {fraction}", "it is the part that stays", "use a fraction above 0, at most 1"
            )
        rng = random.Random(seed)
        return self._picked([rng.random() < fraction for _ in self.at_s])

    def until(self, end_s: float) -> Trace:
        """The requests that arrive before `end_s`."""
        return self._picked([at_s < end_s for at_s in self.at_s])

    def _picked(self, keep: Sequence[bool]) -> Trace:
        return Trace(
            at_s=tuple(itertools.compress(self.at_s, keep)),
            tokens_in=tuple(itertools.compress(self.tokens_in, keep)),
            tokens_out=tuple(itertools.compress(self.tokens_out, keep)),
        )


def read_trace(path: Path) -> Trace:
    """The trace in a CSV file, gzipped if its name ends in .gz, with the columns of `COLUMNS`; rows in any order.

    Raises:
        UsageError: if the file is not there, is no such file, or has a malformed row, which is named.
    """
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8-sig") as file
        ):
            rows = sorted(_rows(path, file), key=lambda row: row[0])
    except FileNotFoundError as error:
        raise UsageError(
            f"no trace file {path}", "there is nothing to replay", "give the path of a .csv or .csv.gz file"
        ) from error
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, csv.Error) as error:
        raise UsageError(
            f"{path} cannot be read: {error}", "a part of a trace is another load", "copy or download the file again"
        ) from error
    except TypeError as error:  # some of the times have a time zone
        raise UsageError(
            f"{path} has times with and without a time zone", "they cannot be put in order", "give all of them one"
        ) from error
    if not rows:
        raise UsageError(f"{path} has no rows", "there is nothing to replay", "give a file with requests in it")
    return Trace(
        at_s=tuple((at - rows[0][0]).total_seconds() for at, _, _ in rows),
        tokens_in=tuple(tokens for _, tokens, _ in rows),
        tokens_out=tuple(tokens for _, _, tokens in rows),
    )


def _rows(path: Path, file: TextIO) -> Iterator[tuple[datetime, int, int]]:
    lines = csv.DictReader(file)
    missing = [column for column in COLUMNS if column not in (lines.fieldnames or ())]
    if missing:
        raise UsageError(
            f"{path} has no column {', '.join(missing)}",
            "a trace says when each request came and how large it was",
            f"begin the file with {','.join(COLUMNS)}",
        )
    for row in lines:
        at, *sizes = (row[column] or "" for column in COLUMNS)
        try:
            tokens_in, tokens_out = map(int, sizes)
            when = datetime.fromisoformat(at.strip())
        except ValueError as error:
            raise _malformed(path, lines.line_num, str(error)) from error
        if min(tokens_in, tokens_out) < 0:
            raise _malformed(path, lines.line_num, "a number of tokens is below 0")
        yield when, tokens_in, tokens_out


def _malformed(path: Path, line: int, what: str) -> UsageError:
    return UsageError(
        f"{path}, line {line}: {what}",
        "a trace with a hole is another load",
        "write a time such as 2023-11-16 18:15:46.68 and whole numbers of tokens there, or remove the line",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Replied:
    """What came of one call.

    Attributes:
        status: HTTP status; 0: there was no whole answer.
        body: of the answer; what had come of it is dropped if it broke off.
        time_s: from the scheduled arrival to the last byte, or to the failure [s].
        late_s: from the scheduled arrival until this client turned to it [s]: a part of `time_s` for which the server
            is not to blame. If it is not small, the load generator was short of processor time.
        headers: of the answer, names in lower case: `content-type` and those with "negawatt" in their name.
        error: why there was no whole answer, or "".
    """

    status: int
    body: bytes
    time_s: float
    late_s: float
    headers: dict[str, str]
    error: str = ""


def replay(url: str, calls: Sequence[Call], *, timeout_s: float = 30.0, connections: int = 256) -> list[Replied]:
    """Send calls to a server, each at its time, and wait for all answers. Blocks; needs the extra `serve`.

    Args:
        url: base URL of the server ("http://127.0.0.1:8001").
        calls: in the order of their arrival; the first need not be at 0.
        timeout_s: longest wait for one answer, from its scheduled arrival [s].
        connections: most that are open at a time, kept alive between calls; a call that finds none free waits.

    Returns:
        One reply per call, in the order of the calls.

    Raises:
        UsageError: if the URL, the order of the calls, a limit or the missing extra makes it impossible.
    """
    base = url.rstrip("/")
    if not base.startswith(("http://", "https://")):
        raise UsageError(f"the URL {url!r}", "requests go over HTTP", "begin it with http:// or https://")
    if any(later.at_s < call.at_s for call, later in itertools.pairwise(calls)) or (calls and calls[0].at_s < 0):
        raise UsageError("calls that are not in the order of their arrival from 0 on", "a replay goes forward", "sort")
    if not (timeout_s > 0 and connections > 0):
        raise UsageError(
            f"a replay over {connections} connections with a limit of {timeout_s} s",
            "no call would be answered",
            "use at least one connection and a limit above 0",
        )
    try:
        import aiohttp  # noqa: F401 -- looked for before anything starts
    except ImportError as error:
        raise UsageError(
            "aiohttp is not installed", "it sends the requests of a replay", 'pip install "negawatt[serve]"'
        ) from error
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_replay(base, calls, timeout_s, connections))


def _loop_factory() -> Any:  # noqa: ANN401 -- None: asyncio's own
    try:
        import uvloop
    except ImportError:  # it does not exist for Windows
        return None
    return uvloop.new_event_loop


async def _replay(base: str, calls: Sequence[Call], timeout_s: float, connections: int) -> list[Replied]:
    import aiohttp

    connector = aiohttp.TCPConnector(limit=connections, keepalive_timeout=_KEEP_ALIVE_S)
    async with (
        aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept-Encoding"),  # answers come as they are, not compressed
        ) as session,
        asyncio.TaskGroup() as group,
    ):
        tasks = []
        start_s = time.monotonic()  # a loop's own clock may stand still while it is busy (uvloop)
        for call in calls:
            due_s = start_s + call.at_s
            while (wait_s := due_s - time.monotonic()) > 0:
                await asyncio.sleep(max(wait_s, _TICK_S))
            tasks.append(group.create_task(_send(session, base + call.path, call, due_s, timeout_s)))
    return [task.result() for task in tasks]


async def _send(session: aiohttp.ClientSession, url: str, call: Call, due_s: float, timeout_s: float) -> Replied:
    import aiohttp
    import yarl

    late_s = time.monotonic() - due_s
    status, body, headers, error = 0, b"", dict[str, str](), ""
    try:
        async with (
            asyncio.timeout(timeout_s - late_s),
            session.request(
                "POST" if call.body else "GET",
                yarl.URL(url, encoded=True),
                data=call.body or None,
                headers={"Content-Type": call.content_type} if call.body else None,
                allow_redirects=False,
            ) as answer,
        ):
            body = await answer.read()
            status = answer.status
            headers = {k.lower(): v for k, v in answer.headers.items() if _kept(k.lower())}
    except TimeoutError:
        error = f"no whole answer within {timeout_s:g} s"
    except (aiohttp.ClientError, OSError) as trouble:
        error = f"{type(trouble).__name__}: {trouble}"
    return Replied(
        status=status, body=body, time_s=time.monotonic() - due_s, late_s=late_s, headers=headers, error=error
    )


def _kept(name: str) -> bool:
    return name == "content-type" or "negawatt" in name
