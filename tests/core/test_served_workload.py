"""Workloads that are servers: what makes one, and what it may promise."""

from __future__ import annotations

import pytest

from negawatt.core.errors import UsageError
from negawatt.core.workload import Phase, Workload


class Server:
    """Answers requests and nothing else."""

    name, unit, quality, knobs = "server", "request", "accuracy", ()

    def served(self, params, state): ...

    def calls(self, split): ...

    def judge(self, split, bodies): ...


class Batch:
    """Answers batches in this process."""

    name, unit, quality, knobs = "batch", "image", "accuracy", ()

    def predictor(self, params, state): ...

    def requests(self, split): ...

    def score(self, split, answers): ...


def with_(target: object, **attributes: object) -> object:
    """The object with some attributes set."""
    for name, value in attributes.items():
        setattr(target, name, value)
    return target


def test_a_server_infers():
    """Its infer phase is served; it may promise a latency, in seconds."""
    workload = Workload.of(with_(Server(), p99_s=1))
    assert (workload.phases(), workload.served, workload.p99_s) == ((Phase.INFER,), True, 1.0)
    assert (Workload.of(Server()).p99_s, Workload.of(Batch()).served) == (None, False)


def test_a_server_that_only_trains_here_is_not_served():
    """A target that leaves its infer phase out has no server."""

    class Trained(Server):
        phases = (Phase.TRAIN,)

        def start(self, params, seed): ...

        def steps(self, params, state): ...

        def evaluate(self, state, split): ...

    assert not Workload.of(Trained()).served


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (with_(Server(), unit="token"), "its unit is 'token'"),
        (with_(Server(), p99_s="50ms"), "p99_s is '50ms'"),
        (with_(Server(), p99_s=True), "p99_s is True"),
        (with_(Server(), p99_s=0.0), r"p99_s is 0\.0"),
        (with_(Server(), p99_s=float("inf")), "p99_s is inf"),
        (with_(Batch(), p99_s=0.1), "promises a p99 and serves no requests"),
    ],
)
def test_what_no_server_may_be(target, says):
    """Another unit than the request, a promise that is no time, and one of something else are refused."""
    with pytest.raises(UsageError, match=says):
        Workload.of(target)
