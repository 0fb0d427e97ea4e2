"""The embeddings server as a workload of `negawatt plan`: precision, threads and batches, in front of a replayed load.

Quality is the mean cosine of all answers to the fp32 embeddings of the same texts.
Try it: pip install "negawatt[minilm,serve]", then
negawatt plan examples/serving/workload.py --keep 'cosine>=0.99' --p99 200ms
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import model
import numpy as np
from services import Serving, server
from texts import Load, load

from negawatt import Knob, Phase, Split
from negawatt.core.workload import Call

PER_S = float(os.environ.get("SERVING_PER_S", "15"))
TIME_S = float(os.environ.get("SERVING_TIME_S", "20"))
TRACE = os.environ.get("SERVING_TRACE")
"""Of a run: mean requests a second, seconds, and the path of AzureLLMInferenceTrace_conv.csv.gz, if it is there."""


class Embeddings:
    """Servable."""

    name = "minilm-server"
    unit = "request"
    quality = "cosine"
    knobs = (
        Knob(name="threads", phase=Phase.INFER, default=2, choices=(1, 2)),
        Knob(name="batch_size", phase=Phase.INFER, default=1, choices=(1, 8)),
        Knob(name="precision", phase=Phase.INFER, default="fp32", choices=("fp32", "int8"), competent=("fp32",)),
    )

    def served(self, params: dict[str, Any], state: None) -> AbstractContextManager[str]:
        return server(Serving(precision=params["precision"], threads=params["threads"], max_batch=params["batch_size"]))

    def calls(self, split: Split) -> Sequence[Call]:
        return self.load(split).calls

    def judge(self, split: Split, bodies: Sequence[bytes]) -> float:
        return float(np.mean(cosines(self.load(split).texts, bodies)))

    @functools.cache  # noqa: B019 -- there is one object
    def load(self, split: Split) -> Load:
        trace = Path(TRACE) if TRACE else None
        return load(per_s=PER_S, time_s=TIME_S, seed=list(Split).index(split), trace=trace)


def cosines(texts: Sequence[str], bodies: Sequence[bytes]) -> np.ndarray:
    """Of the embedding in each answer to that of the fp32 model in this process, each text by itself."""
    known = reference(tuple(dict.fromkeys(texts)))
    given = np.array([json.loads(body)["data"][0]["embedding"] for body in bodies])
    wanted = np.array([known[text] for text in texts])
    return (given * wanted).sum(1) / np.linalg.norm(given, axis=1) / np.linalg.norm(wanted, axis=1)


@functools.cache
def reference(texts: tuple[str, ...]) -> dict[str, np.ndarray]:
    """fp32 embeddings."""
    embed = model.embedder()
    return {text: embed([text])[0][0] for text in texts}


workload = Embeddings()
