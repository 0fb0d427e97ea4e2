"""Labels: a bounded number of names, where clients may make up any."""

from __future__ import annotations

MODELS = 50
"""So many models have a label of their own."""
OTHER = "other"
"""The label of all the rest."""
CHARACTERS = 100
"""A name is cut to so many."""


class Labels:
    """Labels of models: the names of the first ones, then `OTHER`. For one thread at a time."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(self, model: str) -> str:
        """The label of a model."""
        known = self._known.get(model)
        if known is None:
            if len(self._known) >= MODELS:
                return OTHER
            # A lone surrogate, which JSON may hold, cannot be sent.
            known = self._known[model] = model[:CHARACTERS].encode("utf-8", "replace").decode("utf-8")
        return known
