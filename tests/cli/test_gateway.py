"""`negawatt gateway`: what is typed becomes options, and what cannot be served says what to type instead."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from negawatt.cli import main
from negawatt.cli.gateway import _lines, command
from negawatt.cli.gateway_checks import check_loop, hints
from negawatt.cli.gateway_options import serving_options, size, time_s
from negawatt.core.codec import to_json
from negawatt.core.errors import UsageError
from negawatt.core.serving import Cascade, Outcome, ServingOptions, ServingSetting
from negawatt.serve.chain import Hands
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
    changed = typed("--options", str(path), "--p99", "2s", "--max-batch", "2")
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
        ([*UP, "--p99", "200"], "write --p99 200ms or --p99 200s"),
        ([*UP, "--p99", "2 fortnights"], "units are us, ms, s, m, min, h"),
        ([*UP, "--cache", "64"], "write e.g. --cache 64MB"),
        ([*UP, "--cache", "1TB"], "units are B, kB, MB, GB"),
        ([*UP, "--max-body", "0"], "write e.g. --max-body 16MiB"),
        ([*UP, "--max-body", "16"], "write e.g. --max-body 16MiB"),
        ([*UP, "--window", "-1ms"], "write e.g. --window 5ms"),
        ([*UP, "--window", "10h"], "--window 10h"),
        ([*UP, "--window", "5ms", "--max-batch", "1"], "leave out one"),
        ([*UP, "--window", "0", "--max-batch", "4"], "--max-batch 1 to join none"),
        ([*UP, "--semantic-url", "http://e"], "without --semantic"),
        ([*UP, "--semantic", "0.9", "--cache", "1MB", "--semantic-url", "e"], "write e.g. --semantic-url http://"),
        ([*UP, "--cascade", "foo"], "write e.g. --cascade http://"),
        ([*UP, "--otlp", "foo"], "write e.g. --otlp http://"),
        ([*UP, "--wake-time", "2s"], "--wake-time without --wake"),
        ([*UP, "--wake", "vllm", "--sleep", "true"], "give vllm for both"),
        ([*UP, "--wake", "a | b", "--sleep", "true"], """write --wake "sh -c '...'\""""),
        ([*UP, "--wake", "true", "--sleep", "a>log"], "'>' is for a shell"),
        ([*UP, "--wake", "a; b", "--sleep", "true"], "';' is for a shell"),
        ([*UP, "--wake", "a && b", "--sleep", "true"], "'&&' is for a shell"),
        ([*UP, "--replicas", "2"], "--replicas 2 of 1"),
        ([*UP, *UP], "is there twice"),
        ([*UP, "--upstream", "http://127.0.0.1:1/"], "is there twice"),
        ([*UP, "--name", " "], "write e.g. --name chat"),
        ([*UP, "--name", "a\nb"], "write e.g. --name chat"),
        ([*UP, "--sensor", "nonsense"], "choose of amd, "),
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
    assert "known fields: upstreams, setting" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "say"),
    [
        ('{"p99_s": 1, "p99_s": 2}', "'p99_s' is there twice"),
        ('{"p99_s": NaN}', "NaN is no number of JSON"),
        ('{"setting": {"window": 1}}', "known fields of setting: window_s"),
        ('{"cascade": {"url": "http://s"}}', "known fields of cascade: upstream"),
        ('{"p99_s": "200ms"}', "expected a number, got '200ms'"),
        ("[]", "expected an object, got"),
    ],
)
def test_a_file_that_is_not_understood_says_what_it_may_hold(text, say, tmp_path, capsys):
    """What is there twice, is no JSON, or is no field of the options is named, without words of Python."""
    path = tmp_path / "options.json"
    path.write_text(text)
    assert main(["gateway", *UP, "--options", str(path)]) == 2
    said = capsys.readouterr().err
    assert say in said
    assert "what to do:" in said


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        (["--max-batch", "4"], ServingSetting(window_s=0.005, max_batch=4)),
        (["--window", "2ms"], ServingSetting(window_s=0.002, max_batch=8)),
        (["--max-batch", "4", "--control", "--p99", "1s"], ServingSetting(max_batch=4)),
        (["--max-batch", "1"], ServingSetting()),
    ],
)
def test_a_window_brings_a_batch_and_the_other_way_round(words, setting):
    """One does nothing without the other; a controller turns the window by itself."""
    assert typed(*UP, *words).setting == setting


@pytest.mark.parametrize(
    ("listen", "url", "loops"),
    [
        ("127.0.0.1", "http://127.0.0.1:8080", True),
        ("127.0.0.1", "http://localhost:8080/v1", True),
        ("localhost", "http://127.0.0.1:8080", True),
        ("0.0.0.0", "http://127.0.0.1:8080", True),
        ("127.0.0.1", "http://127.0.0.1:8081", False),
        ("127.0.0.1", "http://127.0.0.2:8080", False),
        ("0.0.0.0", "http://192.0.2.1:8080", False),
        ("127.0.0.1", "http://no-such-host.invalid:8080", False),
    ],
)
def test_a_gateway_does_not_ask_itself(listen, url, loops):
    """Whatever the URL is for, and whichever of its names the host has there."""
    for options in (
        ServingOptions(upstreams=(url,)),
        ServingOptions(upstreams=("http://192.0.2.2",), cascade=Cascade(upstream=url)),
        ServingOptions(upstreams=("http://192.0.2.2",), semantic_url=url),
    ):
        if loops:
            with pytest.raises(UsageError, match="is where the gateway itself listens"):
                check_loop(options, listen, 8080)
        else:
            check_loop(options, listen, 8080)


def test_a_loop_is_refused_at_the_start(capsys):
    """The default address of --listen, asked for as upstream."""
    assert main(["gateway", "--upstream", "http://localhost:8080"]) == 2
    assert "give another --listen" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "hands", "say"),
    [
        (["--max-batch", "4"], {}, "note: up to 4 requests go together, within 5 ms"),
        (["--upstream", "http://h/v1"], {}, "/v1/embeddings becomes /v1/v1/embeddings"),
        (["--p99", "1s"], {}, "--p99 without --control"),
        (["--p99", "1ms", "--window", "2ms"], {}, "give a shorter --window"),
        (["--cascade", UP[1]], {}, "without --cascade-model"),
        ([], {"wake": "start {replica}", "sleep": "stop"}, "{replica} stays as it is"),
        ([], {"wake": "start", "sleep": "stop"}, "all replicas stay awake"),
        (["--control", "--p99", "1s"], {"wake": "start", "sleep": "stop"}, "one replica has to stay awake"),
        ([], {"wake": "start", "sleep": "stop", "wake_s": 1.0}, "--wake-time does nothing"),
    ],
)
def test_what_does_little_is_told_at_the_start(words, hands, say):
    """The gateway serves all the same."""
    assert any(say in line for line in hints(typed(*UP, *words), Hands(**hands)))


def test_there_is_nothing_to_tell_of_a_plain_gateway():
    """No note without a reason; a command of a shell's own may have braces."""
    both = typed(*UP, "--upstream", "http://127.0.0.1:2", "--control", "--p99", "1s")
    assert not list(hints(typed(*UP), Hands()))
    assert not list(hints(both, Hands(wake="sh -c 'up ${NAME} {url}'", sleep="down --format {{.ID}} {index}")))


def test_without_the_extra_the_error_says_what_to_install():
    """The packages that serve come with an extra."""
    code = "import sys; sys.modules['uvicorn'] = None; from negawatt.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "gateway", *UP]
    told = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert told.returncode == 2
    assert "pip install 'negawatt[serve]'" in told.stderr


def test_units():
    """Times and sizes as people write them."""
    assert [time_s(text, "--x") for text in ("200ms", "1.5 s", "1m", "500us", "0")] == [0.2, 1.5, 60.0, 0.0005, 0.0]
    assert [size(text, "--x") for text in ("0", "2000", "64MB", "1 KiB", "2gb")] == [
        0,
        2000,
        64_000_000,
        1024,
        2 * 10**9,
    ]
    with pytest.raises(UsageError, match="'fortnight' is not known"):
        time_s("1 fortnight", "--x")


def test_the_summary_tells_where_the_joules_went():
    """Requests, idle, failed; per request with and without idle; per token; the promise; and how the meter failed."""
    summary = Summary(
        time_s=60.0, outcomes=((Outcome.ANSWERED, 90), (Outcome.CACHED, 10), (Outcome.FAILED, 1)), tokens_in=900,
        tokens_out=1000, told_j=150.0, held="2 ms, 8 at once: it draws less",
        requests_j=200.0, idle_j=90.0, failed_j=10.0, total_j=300.0, p99_s=0.05, source="counter", fault="gone",
    )  # fmt: skip
    lines = "\n".join(_lines(summary, 0.2)).replace("\xa0", " ")
    for part in ("90 answered, 10 cached, 1 failed", "300 J (counter)", "requests 200 J, idle 90.0 J, failed 10.0 J",
                 "per request: 2.00 J while it was under way, 2.90 J with its part of idle",
                 "per token out, what came in included: 150 mJ", "held in the end: 2 ms, 8 at once",
                 "p99 50.0 ms, within the promise of 200 ms", "the meter failed: gone"):  # fmt: skip
        assert part in lines
    assert "beyond the promise" in "\n".join(_lines(summary, 0.01))
    assert "promise" not in "\n".join(_lines(summary, None))
