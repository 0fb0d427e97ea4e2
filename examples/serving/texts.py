"""What clients ask the embeddings server, and when: a skewed, repeating mix of real texts at recorded times.

Texts are sentences of the help topics and docstrings that ship with Python. How often each is asked follows Zipf's law:
the k-th most frequent in proportion to k ** -exponent, drawn independently. Requests to web caches follow such a law,
with an exponent that varies from place to place (Breslau et al., "Web Caching and Zipf-like Distributions", INFOCOM
1999); 0.8 is assumed here, not measured on embeddings. An exponent of None asks no text twice: a cache is of no use.

Times are those of the Azure conversation trace of 2023, one hour (AzureLLMInferenceTrace_conv.csv, Patel et al.,
Splitwise, ISCA 2024, CC BY 4.0), thinned and compressed. Where there is no such file, they are a Poisson process of the
same mean rate, without the trace's bursts: `Load.note` says so.
"""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np

from negawatt.core.workload import Call
from negawatt.search.arrivals import read_trace

PATH = "/v1/embeddings"
PROSE = """
argparse ast asyncio calendar codecs collections configparser contextlib csv datetime decimal difflib email enum
fractions functools heapq html http imaplib inspect io ipaddress itertools json locale logging mailbox math
multiprocessing operator os pathlib pickle platform pprint random re sched shelve shutil signal smtplib socket
sqlite3 ssl statistics string subprocess sys tarfile tempfile textwrap threading time tokenize traceback types
unittest urllib uuid warnings weakref zipfile zlib
"""
"""Modules whose docstrings are written for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests to replay.

    Attributes:
        texts: what each asks, in the order of arrival.
        calls: the same as HTTP requests.
        note: where the times come from.
    """

    texts: tuple[str, ...]
    calls: tuple[Call, ...]
    note: str

    @property
    def time_s(self) -> float:
        """From the beginning to the last arrival."""
        return self.calls[-1].at_s

    @property
    def per_s(self) -> float:
        """Mean rate."""
        return len(self.calls) / self.time_s

    @property
    def repeat_fraction(self) -> float:
        """Part of the requests whose text was asked before: the most that an exact cache can answer."""
        return 1 - len(set(self.texts)) / len(self.texts)


def load(
    *,
    per_s: float,
    time_s: float,
    exponent: float | None = 0.8,
    seed: int = 1,
    trace: Path | None = None,
) -> Load:
    """The whole recorded hour, compressed to `time_s` and thinned to a mean of `per_s` requests a second.

    Args:
        per_s: mean rate [1/s].
        time_s: how long the hour takes [s].
        exponent: of Zipf's law; None: no text comes twice.
        seed: of the thinning and the texts.
        trace: file with the times; None, or not there: a Poisson process.
    """
    arrivals, note = times(per_s=per_s, time_s=time_s, seed=seed, trace=trace)
    rng = np.random.default_rng([seed, 1])
    pool = sentences()
    order = rng.permutation(len(pool))
    if exponent is None:
        if len(arrivals) > len(pool):
            raise SystemExit(
                f"{len(arrivals)} requests, but only {len(pool)} different texts: lower the rate or the time"
            )
        picks = order[: len(arrivals)]
    else:
        weight = np.arange(1, len(pool) + 1) ** -float(exponent)
        picks = order[rng.choice(len(pool), len(arrivals), p=weight / weight.sum())]
    texts = tuple(pool[i] for i in picks)
    return Load(texts=texts, calls=tuple(map(call, arrivals, texts)), note=note)


def call(at_s: float, text: str) -> Call:
    """A request as OpenAI's client makes it."""
    return Call(at_s=at_s, path=PATH, body=json.dumps({"model": "all-MiniLM-L6-v2", "input": text}).encode())


def times(*, per_s: float, time_s: float, seed: int, trace: Path | None) -> tuple[list[float], str]:
    """Arrivals [s], and where they come from."""
    if trace is not None and trace.exists():
        hour = read_trace(trace)
        fraction = per_s * time_s / len(hour)
        if fraction > 1:
            raise SystemExit(f"the trace has {len(hour)} requests, fewer than {per_s:g} a second for {time_s:g} s")
        taken = hour.compressed(hour.time_s / time_s).thinned(fraction, seed)
        return list(taken.at_s), f"{trace.name}, {1 / fraction:.3g} times thinned, compressed to {time_s:g} s"
    rng = np.random.default_rng([seed, 0])
    arrivals = np.cumsum(rng.exponential(1 / per_s, int(2 * per_s * time_s) + 100))
    return arrivals[
        arrivals < time_s
    ].tolist(), "a Poisson process: the Azure trace is not there, and its bursts neither"


@cache
def sentences() -> tuple[str, ...]:
    """Sentences of 40 to 240 characters of Python's help topics and of docstrings of its standard library."""
    documents = [text for _, text in sorted(topics.items())]
    for module in map(import_module, PROSE.split()):
        members = [member for _, member in sorted(vars(module).items()) if inspect.isroutine(member)]
        for _, kind in sorted(inspect.getmembers(module, inspect.isclass)):
            members += [kind, *filter(inspect.isroutine, vars(kind).values())]
        documents += [text for text in map(docstring, [module, *members]) if text]
    found = (" ".join(s.split()) for text in documents for s in re.split(r"(?<=[.:])\s+", text))
    return tuple(dict.fromkeys(s for s in found if 40 < len(s) < 240))


def docstring(thing: object) -> str:
    """The docstring of a thing, if it has one of its own."""
    text = getattr(thing, "__doc__", None)
    return text if isinstance(text, str) else ""
