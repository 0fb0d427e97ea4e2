"""Make the prior of power-limit curves that negawatt ships, from all curves of Zeus's power traces.

Prints it; with --write, puts it where `Prior.load` finds it. The data are told at the top of `power_limit.py`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from power_limit import DATA, read

from negawatt.tuning import prior
from negawatt.tuning.learning import fit

SOURCE = (
    "Zeus power traces of {gpus}, {curves} curves (You, Chung, Chowdhury, NSDI'23; Apache-2.0; "
    "https://github.com/ml-energy/zeus at commit 75a8b93, examples/research_reproducibility/zeus_nsdi23/trace); "
    "made by benchmarks/fit_power_prior.py"
)


def made(data: Path) -> prior.Prior:
    """The prior from all curves in a folder."""
    measured = read(data)
    gpus = ", ".join(sorted({one.gpu.upper() for one in measured}))
    return fit([one.curve for one in measured], SOURCE.format(gpus=gpus, curves=len(measured)))


def main() -> None:
    """Print the prior, or write it into the package."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder that holds summary_power_*.csv (%(default)s)")
    parser.add_argument("--write", action="store_true", help="into the package, instead of stdout")
    options = parser.parse_args()
    text = made(options.data).text()
    if options.write:
        (Path(prior.__file__).parent / "data" / prior.SHIPPED).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
