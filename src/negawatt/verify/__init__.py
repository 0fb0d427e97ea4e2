"""Whether a saving may be claimed: randomised mirrored blocks, intervals, the quality guard, and the verdict."""
