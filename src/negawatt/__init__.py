"""negawatt: find, prove and keep the settings that do the same AI work for fewer joules.

Importing this package is cheap: each name below is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from negawatt.core.measurement import Measurement as Measurement
    from negawatt.core.plan import Plan as Plan
    from negawatt.core.reading import Reading as Reading
    from negawatt.core.workload import Knob as Knob
    from negawatt.core.workload import Phase as Phase
    from negawatt.core.workload import Progress as Progress
    from negawatt.core.workload import Split as Split
    from negawatt.metering.metered import meter as meter

__version__ = "0.1.0"

_HOME = {
    "Knob": "core.workload",
    "Measurement": "core.measurement",
    "Phase": "core.workload",
    "Plan": "core.plan",
    "Progress": "core.workload",
    "Reading": "core.reading",
    "Split": "core.workload",
    "load_ipython_extension": "integrations.jupyter",
    "meter": "metering.metered",
}

__all__ = ["Knob", "Measurement", "Phase", "Plan", "Progress", "Reading", "Split", "__version__", "meter"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 -- any public name
    """Load a public name on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'negawatt' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"negawatt.{_HOME[name]}"), name)
