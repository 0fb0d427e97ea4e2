"""Train an MLP 784-256-10 in plain NumPy (Adam, cross-entropy). SIGTERM ends it after the batch, model saved."""

import argparse
import signal

import numpy as np
from data import load, logits, report

arguments = argparse.ArgumentParser()
arguments.add_argument("--batch-size", type=int, default=200)
arguments.add_argument("--precision", default="float64")
arguments.add_argument("--seed", type=int, default=0)
arguments.add_argument("--epochs", type=int, default=12)
arguments.add_argument("--model", required=True)
args = arguments.parse_args()

stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(True))

random = np.random.default_rng(args.seed)
images, digits = load("train", args.precision)
sizes = (784, 256, 10)
layers = [
    [random.normal(0, (2 / a) ** 0.5, (a, b)).astype(args.precision), np.zeros(b, args.precision)]
    for a, b in zip(sizes, sizes[1:])
]
moments = [[[np.zeros_like(p), np.zeros_like(p)] for p in layer] for layer in layers]


def step(batch, wanted, count):
    """One Adam step (Kingma & Ba 2015, Algorithm 1)."""
    hidden = np.maximum(batch @ layers[0][0] + layers[0][1], 0)
    scores = hidden @ layers[1][0] + layers[1][1]
    error = np.exp(scores - scores.max(1, keepdims=True))
    error /= error.sum(1, keepdims=True)
    error[np.arange(len(wanted)), wanted] -= 1
    error /= len(wanted)
    back = (error @ layers[1][0].T) * (hidden > 0)
    gradients = [[batch.T @ back, back.sum(0)], [hidden.T @ error, error.sum(0)]]
    for layer, moment, gradient in zip(layers, moments, gradients):
        for i, g in enumerate(gradient):
            m, v = moment[i]
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            layer[i] -= 0.001 * (m / (1 - 0.9**count)) / (np.sqrt(v / (1 - 0.999**count)) + 1e-8)


def accuracy(split):
    inputs, wanted = load(split, args.precision)
    return float((logits(layers, inputs).argmax(1) == wanted).mean())


checked = load("calibration", args.precision)
count = 0
for epoch in range(args.epochs):
    order = random.permutation(len(images))
    for start in range(0, len(order), args.batch_size):
        if stop:
            break
        batch = order[start : start + args.batch_size]
        count += 1
        step(images[batch], digits[batch], count)
    if stop:
        break
    quality = float((logits(layers, checked[0]).argmax(1) == checked[1]).mean())
    report(work=len(images), quality=quality, split="calibration")

np.savez(args.model, *[p for layer in layers for p in layer])
for split in ("selection", "report"):
    report(quality=accuracy(split), split=split)
