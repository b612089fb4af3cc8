"""The supervisor's part of the metrics: how many workers there are, and what those have counted that are gone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ..metrics import families
from ..metrics.merging import Snapshot, lasting, of_family

METRICS: Final = "metrics"
"""The question that is answered with a snapshot."""


class Retired:
    """
    What dead workers had counted when they were last asked.

    Without it, Prometheus would take each death for a start from zero, and count again what the others have.
    """

    def __init__(self) -> None:
        self._counted: list[Snapshot] = []

    def add(self, snapshots: Sequence[Snapshot]) -> None:
        """Somebody is gone, with these last words."""
        if snapshots:
            self._counted = [lasting([*self._counted, *snapshots])]

    def answer(self) -> list[Any]:
        return list(self._counted)


def of_workers(running: int, configured: int, restarts: int) -> list[Snapshot]:
    """How many workers there are."""
    return [
        of_family(families.WORKERS, [(("running",), running), (("configured",), configured)]),
        of_family(families.WORKER_RESTARTS, [((), restarts)]),
    ]
