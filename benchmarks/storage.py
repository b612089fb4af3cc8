"""
What content addressing costs and saves: CPU time for a megabyte of request bodies, by stage, and stored bytes.

    python benchmarks/storage.py

Sessions are made up (`tests/conversations.py`) of the standard library's sources and documentation. Everything is in
memory: what a database adds is not in it, but for 110 bytes a row.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import zstandard

from tests.conversations import Session, dump
from twisted_proxy.record import blobs, identity
from twisted_proxy.record.exchange import BytesContent
from twisted_proxy.record.following import Following

R = TypeVar("R")

ROW = 110
ROUNDS = 5


@dataclass
class Shelf:
    """What a store would keep."""

    ids: dict[bytes, int] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)
    runs: list[bytes] = field(default_factory=list)
    recipes: list[bytes] = field(default_factory=list)

    def put(self, recipe: blobs.Recipe) -> None:
        for item in recipe.items:
            if isinstance(item, blobs.Part):
                self._put_part(item)
            elif isinstance(item, blobs.Run) and item.hash not in self.ids:
                for part in item.items:
                    if isinstance(part, blobs.Part):
                        self._put_part(part)
                self.runs.append(blobs.encode_run(item, self.ids))
                self.ids[item.hash] = len(self.ids) + 1
        self.recipes.append(blobs.encode(recipe, self.ids))

    def _put_part(self, part: blobs.Part) -> None:
        if part.hash not in self.ids:
            self.parts.append(blobs.compress(part.load()))
            self.ids[part.hash] = len(self.ids) + 1

    @property
    def rows(self) -> int:
        return len(self.parts) + len(self.runs) + len(self.recipes)

    @property
    def size(self) -> int:
        return sum(map(len, (*self.parts, *self.runs, *self.recipes))) + ROW * self.rows


def forget() -> None:
    """As in a process that has just started."""
    blobs._known = blobs._Known()
    identity._known = Following(most_bytes=identity._REMEMBERED)


def cpu(work: Callable[[], R], prepare: Callable[[], object] = forget) -> tuple[float, R]:
    """The least CPU time in milliseconds of some rounds, and the result."""
    best = float("inf")
    for _ in range(ROUNDS):
        prepare()
        gc.collect()
        started = time.process_time()
        result = work()
        best = min(best, time.process_time() - started)
    return 1000 * best, result


def kept(recipes: Iterable[blobs.Recipe]) -> Shelf:
    shelf = Shelf()
    for recipe in recipes:
        shelf.put(recipe)
    return shelf


def measure(name: str, session: Session, turns: int) -> None:
    bodies = list(session.bodies(turns))
    contents = [BytesContent(body) for body in bodies]
    messages = [[dump(message) for message in json.loads(body)["messages"]] for body in bodies]
    megabytes = sum(map(len, bodies)) / 1e6
    alone = len(zstandard.ZstdCompressor(level=3).compress(bodies[-1]))

    first, recipes = cpu(lambda: [blobs.split(content) for content in contents])
    again, _ = cpu(lambda: [blobs.split(content) for content in contents], lambda: None)
    whole, shelf = cpu(lambda: kept(blobs.split(content) for content in contents))
    encoding, _ = cpu(lambda: [blobs.encode(recipe, shelf.ids) for recipe in recipes])
    reading, _ = cpu(lambda: [blobs.references(recipe) for recipe in shelf.recipes])
    chaining, _ = cpu(lambda: [identity.chains_of(each) for each in messages])

    print(f"{name}: {turns} turns, {len(messages[-1])} messages, {megabytes:.1f} MB in all; the last body has")
    print(f"  {len(bodies[-1]):,} bytes, {alone:,} compressed")
    for stage, milliseconds in (
        ("split, the session for the first time", first),
        ("split, everything known", again),
        ("encode recipes", encoding),
        ("split, compress and encode, the first time", whole),
        ("references", reading),
        ("chains", chaining),
    ):
        print(f"  {stage:45}{milliseconds / megabytes:8.2f} ms/MB")
    for what, data in (("parts", shelf.parts), ("runs", shelf.runs), ("recipes", shelf.recipes)):
        print(f"  {what:45}{sum(map(len, data)):8,} bytes in {len(data)}")
    print(f"  {'rows':45}{ROW * shelf.rows:8,} bytes")
    print(f"  {'together':45}{shelf.size:8,} bytes, {shelf.size / alone:.2f} times the last body, compressed")
    print(f"  {'each body compressed by itself':45}{sum(map(compressed, bodies)) / alone:8.1f} times")


def compressed(body: bytes) -> int:
    return len(zstandard.ZstdCompressor(level=3).compress(body))


if __name__ == "__main__":
    measure("A session", Session(tool_result=3600), 60)
    measure("A long session of short messages", Session(tool_result=700), 250)
