"""Levers of the gateway before a server: they keep the contract, and set the options that they say."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import replace

import pytest

from negawatt.core.errors import UsageError
from negawatt.core.lever import Choice
from negawatt.core.serving import Cascade, ServingOptions, ServingSetting
from negawatt.core.workload import Call, Phase, Workload
from negawatt.levers import batching, cascade, clock_limit, power_limit, replicas, response_cache, threads
from negawatt.testing.contracts import LeverContract

pytest.importorskip("aiohttp")
pytest.importorskip("uvicorn")


class Server:
    """A server of which three run today, with a small sibling."""

    name, unit, quality, knobs = "server", "request", "accuracy", ()
    replicas = 3
    small = "http://127.0.0.1:9"

    def served(self, params, state):
        return nullcontext("http://127.0.0.1:8")

    def calls(self, split):
        return [Call(at_s=0.0, path="/")]

    def judge(self, split, bodies):
        return 1.0


class Batch:
    """A workload that is no server."""

    name, unit, quality, knobs = "batch", "image", "accuracy", ()

    def predictor(self, params, state): ...

    def requests(self, split): ...

    def score(self, split, answers): ...


class _Contract(LeverContract):
    def workload(self):
        return Server()


class TestBatching(_Contract):
    def make(self):
        return batching.lever


class TestResponseCache(_Contract):
    def make(self):
        return response_cache.lever


class TestCascade(_Contract):
    def make(self):
        return cascade.lever


class TestReplicas(_Contract):
    def make(self):
        return replicas.lever


LEVERS = (batching.lever, response_cache.lever, cascade.lever, replicas.lever)


def options_of(target: object, *chosen: tuple[object, str | int]) -> ServingOptions | None:
    """The gateway's options under some choices."""
    workload = Workload.of(target)
    with ExitStack() as stack:
        for lever, value in chosen:
            choice = Choice(lever=lever.info.name, phase=Phase.INFER, value=value)
            workload = stack.enter_context(lever.applied(workload, choice, None))
        return workload.serving


def test_levers_add_up():
    """Each turns its own option and leaves those of the others."""
    chosen = [(batching.lever, "5ms/32"), (response_cache.lever, "64MB"), (replicas.lever, 1)]
    assert options_of(Server(), *chosen) == ServingOptions(
        setting=ServingSetting(window_s=0.005, max_batch=32, replicas=1), cache_bytes=64_000_000
    )
    assert options_of(Server(), *((lever, "off") for lever in LEVERS[:3])) is None


@pytest.mark.parametrize("lever", LEVERS, ids=lambda lever: lever.info.name)
def test_only_servers_have_a_gateway(lever):
    """Work that waits in this process gives them nothing to turn."""
    assert list(lever.choices(Workload.of(Batch()))) == []


def test_what_competent_engineers_do():
    """They batch and shut down idle replicas; a cache and a smaller model change what is asked and answered."""
    competent = {lever.info.name: all(c.competent for c in lever.choices(Workload.of(Server()))) for lever in LEVERS}
    assert competent == {"batching": True, "response-cache": False, "cascade": False, "replicas": True}


def test_no_window_takes_most_of_the_promise():
    """A request may wait for others no longer than a quarter of the promised time."""
    workload = replace(Workload.of(Server()), p99_s=0.01)
    assert [choice.value for choice in batching.lever.choices(workload)] == ["off", "2ms/8"]


def test_replicas_halve_from_what_runs_today():
    """The naive choice is what runs today; one replica gives nothing to choose, and half a replica is an error."""
    assert [(c.value, c.naive) for c in replicas.lever.choices(Workload.of(Server()))] == [(3, True), (1, False)]
    server = Server()
    server.replicas = 1
    assert list(replicas.lever.choices(Workload.of(server))) == []
    server.replicas = 0.5
    with pytest.raises(UsageError, match=r"replicas is 0\.5"):
        replicas.lever.choices(Workload.of(server))


def test_a_cascade_asks_as_the_workload_says():
    """Its address is `small`, or known once that is started; the rest is `cascade`, but for the confidence."""
    server = Server()
    at_once = options_of(server, (cascade.lever, "sure>=0.9"))
    assert at_once.cascade == Cascade(upstream="http://127.0.0.1:9", confidence=0.9)
    server.small = lambda params, state: nullcontext("http://127.0.0.1:9")
    server.cascade = Cascade(upstream="", field="score", margin=0.01)
    assert options_of(server, (cascade.lever, "sure>=0.8")).cascade == replace(server.cascade, confidence=0.8)
    server.cascade = 0.9
    with pytest.raises(UsageError, match=r"cascade is 0\.9"):
        options_of(server, (cascade.lever, "sure>=0.8"))


def test_levers_of_the_host_know_servers():
    """Devices can be limited at fixed parts while a server is asked; pools of this process are not the server's."""
    workload = Workload.of(Server())
    for lever in (power_limit.lever, clock_limit.lever):
        values = [choice.value for choice in lever.choices(workload)]
        assert values == ["as-found", "0.85x", "0.7x", "0.6x"]
    assert list(threads.lever.choices(workload)) == []
