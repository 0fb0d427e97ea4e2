"""Classify the images of one split with a trained model, a batch at a time."""

import argparse

import numpy as np
from data import load, logits, report

arguments = argparse.ArgumentParser()
arguments.add_argument("--model", required=True)
arguments.add_argument("--batch-size", type=int, default=1)
arguments.add_argument("--split", default="report")
arguments.add_argument("--passes", type=int, default=20)
args = arguments.parse_args()

arrays = list(np.load(args.model).values())
layers = list(zip(arrays[::2], arrays[1::2]))
images, digits = load(args.split)

for _ in range(args.passes):
    right = 0
    for start in range(0, len(images), args.batch_size):
        answers = logits(layers, images[start : start + args.batch_size]).argmax(1)
        right += int((answers == digits[start : start + args.batch_size]).sum())
    report(work=len(images))
report(quality=right / len(images), split=args.split)
