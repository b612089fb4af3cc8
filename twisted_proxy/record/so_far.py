"""What is in the spool of an answer that is still coming: for who begins to watch in the middle of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from . import entries
from .exchange import Mark, Role
from .slots import CHECKPOINT, JOURNAL, numbered
from .spool import DamagedContent, SegmentReader

AT_ONCE = 1000
"""Frames that are looked at in one go."""


@attrs.define
class SoFar:
    """
    A body, as far as it is in files.

    :ivar marks: when its bytes were there, as `exchange.Body.marks`.
    """

    data: bytearray = attrs.Factory(bytearray)
    marks: list[Mark] = attrs.Factory(list)

    def until(self, us: int) -> bytes:
        """What was there by then, in microseconds since the exchange's ``received_at``."""
        return bytes(self.data[: max([mark.end for mark in self.marks if mark.us <= us], default=0)])


def read_so_far(slot: Path, wanted: Mapping[str, Role], most: int) -> dict[str, SoFar]:
    """
    Bodies of exchanges, as far as they are in the files of a slot. It reads files: in a thread.

    Asked again it may know more; where files are damaged, or were just let go of, it knows nothing.

    :param wanted: which body, by the exchange's id.
    :param most: bytes; a body that is larger is left out.
    """
    keys = {entries.exchange_key(exchange_id): exchange_id for exchange_id in wanted}
    found = {exchange_id: SoFar() for exchange_id in wanted}
    try:
        files = list(_files(slot))
    except OSError:
        return {}
    for path, number in files:
        segment = SegmentReader(path, number)
        try:
            while frames := segment.read(AT_ONCE):
                for head, extent, _ in frames:
                    exchange_id = keys.get(head.key)
                    if exchange_id is None or entries.ROLES.get(head.kind) is not wanted[exchange_id]:
                        continue
                    body = found.get(exchange_id)
                    if body is None:
                        continue
                    if len(body.data) + extent.size > most:
                        del found[exchange_id]
                        continue
                    _, marks, data = extent.load()
                    end = len(body.data)
                    for length, us in entries.read_marks(marks):
                        end += length
                        body.marks.append(Mark(end=end, us=us))
                    body.data += data
        except (OSError, DamagedContent):
            return {}
        finally:
            segment.finish()
        if segment.damage is not None:
            # It was deleted while we were at it, perhaps: what comes behind it would not follow.
            return {}
    return found


def _files(slot: Path) -> Iterator[tuple[Path, int]]:
    """The slot's files in their order. A checkpoint takes the place of those up to its number."""
    checkpoints = numbered(slot, CHECKPOINT)
    first = max(checkpoints, default=0)
    if checkpoints:
        yield checkpoints[first], first
    for number, path in sorted(numbered(slot, JOURNAL).items()):
        if number > first:
            yield path, number
