"""What a gateway is not started with, because it would loop or do nothing; and what its operator should know."""

from __future__ import annotations

import re
import shlex
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from negawatt.core.errors import UsageError

if TYPE_CHECKING:
    from negawatt.core.serving import ServingOptions
    from negawatt.serve.chain import Hands
    from negawatt.serve.service import How

_BASE, _EMBEDDINGS, _COLLECTOR = "http://127.0.0.1:8000", "http://127.0.0.1:8002/v1/embeddings", "http://127.0.0.1:4318"
_PORTS = {"http": 80, "https": 443}
_Address = IPv4Address | IPv6Address


def check(options: ServingOptions, how: How) -> None:
    """Raise UsageError if the options cannot be served, or something among them would do nothing."""
    if not options.upstreams:
        raise UsageError("no --upstream", "requests have to go somewhere", f"add --upstream {_BASE}")
    for option, url in urls(options):
        _url(url, option, _EMBEDDINGS if option == "--semantic-url" else _BASE)
    if how.otlp:
        _url(how.otlp, "--otlp", _COLLECTOR)
    _check_replicas(options)
    if options.control and options.p99_s is None:
        raise UsageError(
            "--control without --p99", "a controller saves as much as a promise leaves it", "add e.g. --p99 200ms"
        )
    _check_semantic(options)
    if how.hands.limit_power and not options.control:
        raise UsageError("--limit-power without --control", "nobody would turn it", "add --control --p99 TIME")
    _check_hands(how.hands)


def check_sensors(names: Sequence[str]) -> None:
    """Raise UsageError on a sensor that is not known."""
    from negawatt.core import registry

    known = registry.sensors()
    for name in names:
        if name not in known.members and name not in (broken.name for broken in known.broken):
            raise UsageError(
                f"--sensor {name!r} is not known",
                "requests would be metered by something else than what you asked for",
                f"choose of {', '.join(known.members)}; `negawatt doctor` says which of them work here",
            )


def check_loop(options: ServingOptions, host: str, port: int) -> None:
    """Raise UsageError if requests would come back to the gateway that listens there."""
    for option, url in urls(options):
        parts = urlsplit(url)
        if (parts.port or _PORTS[parts.scheme]) == port and _same_host(parts.hostname or "", host):
            raise UsageError(
                f"{option} {url} is where the gateway itself listens",
                "it would ask itself, without an end",
                f"give another --listen than {host}:{port}, or the inference server's own address",
            )


def urls(options: ServingOptions) -> Iterator[tuple[str, str]]:
    """Every URL that requests go to, behind the option that names it."""
    yield from (("--upstream", url) for url in options.upstreams)
    if options.cascade is not None:
        yield "--cascade", options.cascade.upstream
    if options.semantic_url:
        yield "--semantic-url", options.semantic_url


def hints(options: ServingOptions, hands: Hands) -> Iterator[str]:
    """What the operator should know about these options, a line each."""
    setting = options.setting
    if setting.max_batch > 1 and setting.window_s:
        yield f"note: up to {setting.max_batch} requests go together, within {1e3 * setting.window_s:.3g} ms"
    for option, url in urls(options):
        base = urlsplit(url).path.rstrip("/")
        if base and option != "--semantic-url":
            yield (
                f"note: {base} of {option} {url} goes before the path of each request: {base}/embeddings becomes "
                f"{base}{base}/embeddings. If clients send {base} themselves, leave it out of {option}"
            )
    small = options.cascade
    if small is not None and not small.model and _normal(small.upstream) in map(_normal, options.upstreams):
        yield "warning: --cascade is an --upstream: without --cascade-model the same model is asked twice"
    if options.p99_s is not None and not options.control:
        yield "warning: --p99 without --control: nothing is turned to keep the promise; the end tells whether it was"
    if options.p99_s is not None and setting.window_s >= options.p99_s:
        yield "warning: a request may wait for others as long as --p99 allows for all of it: give a shorter --window"
    if setting.limit_fraction < 1 and not hands.limit_power:
        yield "warning: limit_fraction does nothing without --limit-power and --control"
    yield from _hints_of_hands(options, hands)


def _hints_of_hands(options: ServingOptions, hands: Hands) -> Iterator[str]:
    for option, command in (("--wake", hands.wake), ("--sleep", hands.sleep)):
        for name in re.findall(r"(?<![${])\{(\w*)\}", command):
            if name not in ("url", "index"):
                yield f"warning: {option}: {{{name}}} stays as it is, only {{url}} and {{index}} are filled in"
    if hands.wake and not options.control and not 0 < options.setting.replicas < len(options.upstreams):
        yield "warning: --wake and --sleep do nothing: all replicas stay awake without --control or --replicas"
    elif hands.wake and len(options.upstreams) == 1:
        yield "warning: --wake and --sleep do nothing: one replica has to stay awake, and there is one --upstream"
    if hands.wake_s and not options.control:
        yield "warning: --wake-time does nothing without --control"


def _url(url: str, option: str, example: str) -> None:
    """Raise UsageError unless it can be asked."""
    from negawatt.serve.upstream import Upstream

    # a base URL has no query, the endpoint of embeddings may have one
    bare = url.partition("?")[0] if option == "--semantic-url" else url
    try:
        Upstream(bare)
    except UsageError as error:
        got = f"{option} {error.got.removeprefix('upstream ')}"
        raise UsageError(got, error.why, f"write e.g. {option} {example}") from None


def _check_replicas(options: ServingOptions) -> None:
    seen: dict[tuple[str, str | None, int, str], str] = {}
    for url in options.upstreams:
        if (same := seen.get(_normal(url))) is not None:
            raise UsageError(
                f"--upstream {url} is there twice" + (f", as {same}" if same != url else ""),
                "each stands for a replica of its own: one server would be counted, and put to sleep, as two",
                "leave out one",
            )
        seen[_normal(url)] = url
    if options.setting.replicas > len(options.upstreams):
        raise UsageError(
            f"--replicas {options.setting.replicas} of {len(options.upstreams)}",
            "there is one replica for each --upstream",
            "give --upstream as often as there are replicas, or a smaller --replicas",
        )


def _check_semantic(options: ServingOptions) -> None:
    if options.semantic is None and (options.semantic_url or options.semantic_model):
        raise UsageError(
            "--semantic-url or --semantic-model without --semantic",
            "nobody would ask it for embeddings",
            "add e.g. --semantic 0.97",
        )
    if options.semantic is not None and not (options.semantic_url and options.cache_bytes):
        raise UsageError(
            "--semantic without --semantic-url or without --cache",
            "texts are compared by their embeddings, and answers are kept in the cache",
            f"add --semantic-url {_EMBEDDINGS} --cache 64MB",
        )


def _check_hands(hands: Hands) -> None:
    wake, sleep = hands.wake, hands.sleep
    if bool(wake) != bool(sleep):
        raise UsageError("--wake without --sleep, or the other way", "what sleeps has to wake again", "give both")
    if (wake == "vllm") != (sleep == "vllm"):
        raise UsageError(
            f"--wake {wake!r} --sleep {sleep!r}", "vLLM's sleep mode is not woken by a command", "give vllm for both"
        )
    if hands.wake_s and not wake:
        raise UsageError(
            "--wake-time without --wake",
            "replicas that are never put to sleep are awake at once",
            "add --wake, --sleep",
        )
    for option, command in (("--wake", wake), ("--sleep", sleep)):
        odd = _for_a_shell(command)
        if odd:
            raise UsageError(
                f"{option} {command!r}: {odd!r} is for a shell",
                "no shell is used, so the command would get it as a word",
                f"write {option} \"sh -c '...'\", or quote it inside the command",
            )


def _for_a_shell(command: str) -> str:
    """The first pipe, redirection or the like outside of quotes, or ""."""
    words = shlex.shlex(command, posix=True, punctuation_chars="|&;<>")
    words.whitespace_split, words.commenters = True, ""
    with suppress(ValueError):  # an open quote: whoever runs the command says so
        return next((word for word in words if word and set(word) <= set("|&;<>")), "")
    return ""


def _normal(url: str) -> tuple[str, str | None, int, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _PORTS[parts.scheme], parts.path.rstrip("/")


def _same_host(host: str, listens: str) -> bool:
    """Whether a connection to a host may come to what listens on an address of this machine."""
    here = _addresses(listens)
    everywhere = {own.version for own in here if own.is_unspecified}
    return any(a in here or (a.version in everywhere and _ours(a)) for a in _addresses(host))


def _addresses(host: str) -> set[_Address]:
    """Of a name; none if it has none."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return set()
    return {ip_address(str(address[0]).partition("%")[0]) for *_, address in found}


def _ours(address: _Address) -> bool:
    """Whether it is one of this machine's: only such can be bound to."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as trial:
        try:
            trial.bind((str(address), 0))
        except OSError:
            return False
    return True
