"""Serving: a server under trial, with the gateway before it where the setting takes one, and what it answered."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from negawatt.core.codec import to_json
from negawatt.core.errors import WorkloadError
from negawatt.core.serving import ServingOptions
from negawatt.core.workload import Call, Phase, Servable, Split, State, Workload
from negawatt.search.arrivals import Replied, replay

OPTIONS = "gateway.json"
"""Name of the file with the options of a gateway, as `negawatt gateway --options` reads it."""
ANSWER_LIMIT_S = 30.0
"""A request that has no whole answer after so long makes its trial fail [s]."""
_WARM_UP_CALLS = 16
_READY_S = 60.0
_END_S = 10.0
_POLL_S = 0.02
_LISTENING = re.compile(r"listening on (http://\S+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A server that answers.

    Attributes:
        url: what clients talk to.
        servers: the server itself, or its replicas; `url` is the first one where no gateway stands before them.
    """

    url: str
    servers: tuple[str, ...]


def gateway_options(workload: Workload) -> ServingOptions | None:
    """How the gateway is to serve, without the servers' addresses; None if nothing is asked of it."""
    if workload.serving is None:
        return None
    options = replace(workload.serving, p99_s=workload.p99_s)
    idle = ServingOptions(p99_s=workload.p99_s)
    alone = replace(options.setting, replicas=0) if options.setting.replicas == 1 else options.setting
    return None if replace(options, setting=alone) == idle else options


@contextmanager
def service(workload: Workload, state: State | None) -> Iterator[Service]:
    """Start the server (with its replicas, its small sibling and the gateway, where set), and stop all of it.

    Raises:
        WorkloadError: if an address is none, or the gateway does not start; and whatever the workload itself raises.
    """
    target, params = workload.target, workload.params(Phase.INFER)
    assert isinstance(target, Servable)  # noqa: S101 -- narrows the type
    options = gateway_options(workload)
    with ExitStack() as stack:
        count = max(1, options.setting.replicas) if options else 1
        servers = tuple(_address(stack.enter_context(target.served(params, state))) for _ in range(count))
        if options is None:
            yield Service(url=servers[0], servers=servers)
            return
        if options.cascade is not None and not options.cascade.upstream:
            small = _address(stack.enter_context(target.small(params, state)))  # type: ignore[attr-defined]
            options = replace(options, cascade=replace(options.cascade, upstream=small))
        options = replace(options, setting=replace(options.setting, replicas=0))  # all that were started are awake
        yield Service(url=stack.enter_context(_gateway(options, servers)), servers=servers)


def _address(url: object) -> str:
    if isinstance(url, str) and url.startswith(("http://", "https://")):
        return url.rstrip("/")
    raise WorkloadError(
        f"served() yields {url!r}",
        "requests are sent to the address that it yields",
        'yield the base URL of the server once it answers, e.g. "http://127.0.0.1:8001"',
    )


@contextmanager
def _gateway(options: ServingOptions, upstreams: Sequence[str]) -> Iterator[str]:
    """Run `negawatt gateway` before some servers and yield its address.

    It meters by itself as it does in service, which is part of what it costs; its ledger is thrown away, because the
    trial's own window has the same joules.
    """
    with tempfile.TemporaryDirectory(prefix="negawatt-gateway-") as name:
        folder = Path(name)
        (folder / "options.json").write_text(json.dumps(to_json(options)), encoding="utf-8")
        command = [sys.executable, "-m", "negawatt", "gateway", "--options", str(folder / "options.json")]
        for upstream in upstreams:
            command += ["--upstream", upstream]
        log = folder / "stderr"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--listen", "127.0.0.1:0"], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env={**os.environ, "NEGAWATT_LEDGER": str(folder / "ledger.sqlite"), "NO_COLOR": "1"},
            )  # fmt: skip
        try:
            yield _listening(process, log)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_END_S)
            process.kill()
            process.wait()
            sys.stderr.write(log.read_text(errors="replace"))  # the bench keeps it in workload.log


def _listening(process: subprocess.Popen[bytes], log: Path) -> str:
    """The address that the gateway tells once it is ready."""
    until = time.monotonic() + _READY_S
    while time.monotonic() < until:
        gone = process.poll() is not None
        told = log.read_text(errors="replace")
        if match := _LISTENING.search(told):
            return match[1].rstrip("/")
        if gone:
            break
        time.sleep(_POLL_S)
    raise WorkloadError(
        f"the gateway did not start: {_gist(told)}",
        "the setting of this trial takes a gateway before the server",
        'its extra must be installed: pip install "negawatt[serve]"',
    )


def _gist(told: str) -> str:
    """The line that says what went wrong: the first of an error of ours, the last of a traceback."""
    lines = told.strip().splitlines() or ["it said nothing"]
    return lines[-1 if lines[0].startswith("Traceback") else 0]


def calls_of(target: Servable, split: Split) -> list[Call]:
    """The requests of a split. Raises WorkloadError if there are none, or if they are no calls."""
    calls = list(target.calls(split))
    strange = next((call for call in calls if not isinstance(call, Call)), None)
    if not calls or strange is not None:
        raise WorkloadError(
            f"calls({split}) holds {strange!r}" if calls else f"the workload has no calls in its {split} split",
            "the server is measured on the requests that are sent to it",
            'return a list of Call(at_s=0.0, path="/v1/embeddings", body=b"...")',
        )
    return calls


def warm_up(service: Service, target: Servable) -> None:
    """Send each server and the gateway some calls of the calibration split, outside any window.

    The gateway's bear a query, so that no answer to them is in its cache for those that count.
    """
    calls = [replace(call, at_s=0.0) for call in target.calls(Split.CALIBRATION)[:_WARM_UP_CALLS]]
    for server in service.servers:
        replay(server, calls, timeout_s=ANSWER_LIMIT_S)
    if service.url not in service.servers:
        marked = [replace(call, path=f"{call.path}{'&' if '?' in call.path else '?'}warm-up=1") for call in calls]
        replay(service.url, marked, timeout_s=ANSWER_LIMIT_S)


def ask(service: Service, calls: Sequence[Call]) -> list[Replied]:
    """Send all calls at their times.

    Raises:
        WorkloadError: if not all of them were answered well: requests that fail are cheap.
    """
    replies = replay(service.url, calls, timeout_s=ANSWER_LIMIT_S)
    faults = Counter(reply.error or f"status {reply.status}" for reply in replies if not 200 <= reply.status < 300)
    if faults:
        told = ", ".join(f"{fault} ({count})" for fault, count in faults.most_common(3))
        raise WorkloadError(
            f"{faults.total()} of {len(calls)} requests failed: {told}",
            "requests that fail are cheap, and a saving is for the same work",
            "give the server more to run on or send it fewer requests; workload.log has what it printed",
        )
    return replies
