"""Chain: what the stages of a gateway are given."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from sockets import Counted, answer, length_of, origin
from standins import content, post, run

from negawatt.core.serving import Cascade, ServingOptions
from negawatt.metering.run import LiveRun
from negawatt.metering.session import Meter
from negawatt.serve.chain import Chain
from negawatt.serve.limits import Limits
from negawatt.testing import ManualClock, ScriptedSensor

KEY = (b"authorization", b"Bearer k")


@pytest.fixture
def live() -> Iterator[LiveRun]:
    clock = ManualClock()
    live = LiveRun("gateway", meter=Meter.of([ScriptedSensor(script=[(1.0, 10.0)], clock=clock)], clock=clock))
    yield live
    live.end()


def test_audits_are_paid_for_and_are_no_traffic(live: LiveRun) -> None:
    """A controller sees the requests of clients only; the account of an audit is kept all the same."""
    feed = Counted()
    heads: list[bytes] = []

    async def model(head, reader, writer):
        heads.append(head)
        await reader.readexactly(length_of(head))
        writer.write(answer(b'{"confidence": 1.0, "label": "a"}'))

    async def work() -> None:
        async with origin(model) as large, origin(model) as small:
            cascade = Cascade(upstream=small, field="confidence", audit_fraction=1.0)
            options = ServingOptions(upstreams=(large,), p99_s=1.0, control=True, cascade=cascade)
            async with Chain(options, Limits(), feed, live) as chain:
                assert content(await chain.first(post("/predict", {}, KEY)))["label"] == "a"
                while not feed.ended:
                    await asyncio.sleep(0.001)
                assert chain.accounts.arrived == 0
        assert feed.last == ("answered", 200)
        assert [b"Bearer k" in head for head in heads] == [False, True]  # the small model is another server

    run(work())


@pytest.mark.parametrize(
    ("small", "known"),
    [
        ("http://a/small", True),
        ("http://A:80", True),
        ("http://b:9", True),
        ("https://a", False),
        ("http://a:81", False),
        ("http://c", False),
    ],
)
def test_credentials_go_to_an_upstreams_origin_only(live: LiveRun, small: str, *, known: bool) -> None:
    """The same scheme, host and port as one of the replicas'."""

    async def work() -> None:
        options = ServingOptions(upstreams=("http://a", "http://b:9/v1"), cascade=Cascade(upstream=small))
        async with Chain(options, Limits(), Counted(), live) as chain:
            assert chain.first._same_party is known

    run(work())
