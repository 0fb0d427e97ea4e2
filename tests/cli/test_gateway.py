"""`negawatt gateway`: what is typed becomes options, and what cannot be served says what to type instead."""

from __future__ import annotations

import builtins
import json

import pytest

from negawatt.cli import main
from negawatt.cli.gateway import _lines, _size, _time_s, command, serving_options
from negawatt.core.codec import to_json
from negawatt.core.errors import UsageError
from negawatt.core.serving import Cascade, Outcome, ServingOptions, ServingSetting
from negawatt.serve.service import Summary

UP = ["--upstream", "http://127.0.0.1:1"]


def typed(*words):
    """The serving options that these words make."""
    given = dict(command.make_context("gateway", list(words)).params)
    for name in ("listen", "sensors", "name"):
        del given[name]
    return serving_options(given)


def test_flags_become_options():
    """Every serving flag, with its units."""
    options = typed(
        *UP, "--upstream", "http://127.0.0.1:2", "--p99", "200ms", "--control", "--window", "5ms", "--max-batch", "8",
        "--concurrency", "4", "--replicas", "2", "--cache", "64MB", "--semantic", "0.97", "--semantic-url", "http://e",
        "--cascade", "http://s", "--cascade-model", "small", "--confidence", "0.8", "--confidence-field", "a.b",
    )  # fmt: skip
    assert options == ServingOptions(
        upstreams=("http://127.0.0.1:1", "http://127.0.0.1:2"),
        setting=ServingSetting(window_s=0.005, max_batch=8, concurrency=4, replicas=2),
        p99_s=0.2,
        control=True,
        cache_bytes=64_000_000,
        semantic=0.97,
        semantic_url="http://e",
        cascade=Cascade(upstream="http://s", model="small", confidence=0.8, field="a.b"),
    )


def test_a_file_holds_options_and_flags_come_first(tmp_path):
    """--options FILE gives what is not typed."""
    kept = ServingOptions(upstreams=("http://a",), p99_s=1.0, setting=ServingSetting(window_s=0.1, max_batch=4))
    path = tmp_path / "options.json"
    path.write_text(json.dumps(to_json(kept)))
    assert typed("--options", str(path)) == kept
    changed = typed("--options", str(path), "--p99", "2", "--max-batch", "2")
    assert (changed.p99_s, changed.setting) == (2.0, ServingSetting(window_s=0.1, max_batch=2))
    assert changed.upstreams == ("http://a",)


@pytest.mark.parametrize(
    ("words", "say"),
    [
        ([], "no --upstream"),
        ([*UP, "--control"], "--control without --p99"),
        ([*UP, "--p99", "0"], "--p99"),
        ([*UP, "--p99", "soon"], "write e.g. --p99 200ms"),
        ([*UP, "--cache", "many"], "write e.g. --cache 64MB"),
        ([*UP, "--window", "-1ms"], "write e.g. --window 200ms"),
        ([*UP, "--window", "100s"], "window_s from 0 to below 60"),
        ([*UP, "--semantic", "0.9"], "--semantic without"),
        ([*UP, "--confidence", "0.9"], "a cascade without --cascade"),
        ([*UP, "--listen", "8080"], "write e.g. --listen 127.0.0.1:8080"),
        ([*UP, "--listen", "127.0.0.1:99999"], "write e.g. --listen 127.0.0.1:8080"),
        ([*UP, "--options", "no-such-file"], "--options no-such-file"),
        ([*UP, "--timeout", "0"], "--timeout 0"),
        ([*UP, "--limit-power"], "--limit-power without --control"),
        ([*UP, "--wake", "true"], "--wake without --sleep"),
        (["--upstream", "127.0.0.1:1"], "write e.g. --upstream http://127.0.0.1:8000"),
        (["--upstream", "http://u:pw@h"], "a name or a password"),
    ],
)
def test_what_cannot_be_served_says_what_to_type(words, say, capsys):
    """Exit code 2, three parts, and no password."""
    assert main(["gateway", "--listen", "127.0.0.1:0", *words]) == 2
    said = capsys.readouterr().err
    assert say in said
    assert "what to do:" in said
    assert ":pw@" not in said


def test_unknown_fields_of_a_file_are_refused(tmp_path, capsys):
    """A file that is half understood would serve something else."""
    path = tmp_path / "options.json"
    path.write_text('{"upstream": "http://a"}')
    assert main(["gateway", "--options", str(path)]) == 2
    assert "no such field" in capsys.readouterr().err


def test_without_the_extra_the_error_says_what_to_install(monkeypatch, capsys):
    """The packages that serve come with an extra."""
    import sys

    for name in [name for name in sys.modules if name.startswith(("negawatt.serve", "uvicorn", "httptools"))]:
        monkeypatch.delitem(sys.modules, name)
    imported = builtins.__import__

    def absent(name, *rest, **named):
        if name.split(".")[0] == "uvicorn":
            raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")
        return imported(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", absent)
    assert main(["gateway", *UP]) == 2
    assert "pip install 'negawatt[serve]'" in capsys.readouterr().err


def test_units():
    """Times and sizes as people write them."""
    assert [_time_s(text, "--x") for text in ("200ms", "1.5 s", "2", "1m", "500us")] == [0.2, 1.5, 2.0, 60.0, 0.0005]
    assert [_size(text, "--x") for text in ("100", "64MB", "1 KiB", "2gb")] == [100, 64_000_000, 1024, 2 * 10**9]
    with pytest.raises(UsageError, match="it is not understood"):
        _time_s("1 fortnight", "--x")


def test_the_summary_tells_where_the_joules_went():
    """Requests, idle, failed; per request, per token; p99; and how the meter failed."""
    summary = Summary(
        time_s=60.0, outcomes=((Outcome.ANSWERED, 90), (Outcome.CACHED, 10), (Outcome.FAILED, 1)), tokens=1000,
        requests_j=200.0, idle_j=90.0, failed_j=10.0, total_j=300.0, p99_s=0.05, source="counter", fault="gone",
    )  # fmt: skip
    lines = "\n".join(_lines(summary)).replace("\xa0", " ")
    for part in ("90 answered, 10 cached, 1 failed", "300 J (counter)", "requests 200 J, idle 90.0 J, failed 10.0 J",
                 "2.00 J per request, 200 mJ per token; p99 50.0 ms", "the meter failed: gone"):  # fmt: skip
        assert part in lines
