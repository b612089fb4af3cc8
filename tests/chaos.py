"""
Everything at once, for as long as it is told, and an account of every request:

    python -m tests.chaos [--minutes M] [--seed N] [--database sqlite|postgresql] [--workers N] [--clients N]
                          [--balancer haproxy|none]

Two slots share a store. Clients ask (`tests.chaos_load`) while the upstream cuts, falls silent and dies, slots are
rolled and killed, recorders and the database stopped, frozen and killed, and the spool's disk is full
(`tests.chaos_world`). In the end each request was answered to the byte or ended in an error that its client could see
and that has a cause; what the store has of it agrees with what its client saw (`tests.chaos_accounts`); no request is
counted any more, no process is left, no log has a traceback.

The same seed asks the same requests and does the same in the same order; when, the machine decides. The exit status is
1 where anything is wrong; logs and records then stay where the last line says.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import pytest

from tests import balancers
from tests.chaos_accounts import Account
from tests.chaos_load import Load
from tests.chaos_world import GONE, LAME_DUCK, Disk, Health, Lanes, Slot, Upstream, World, disk, processes_of
from tests.postgresql import Database, server
from tests.processes import Proxy, wait_for
from tests.recorded import Reader, Records, describe, slots
from tests.test_process_metrics import scrape

# Not Traefik: it cuts an answer now and then that begins at once behind a slow upload, whoever gives it. That is Go's
# (https://github.com/golang/go/issues/40747).
BALANCERS: Final = {"haproxy": balancers.haproxy}


@attrs.frozen(kw_only=True)
class Plan:
    """What a run is to be. Times are seconds."""

    seconds: float
    seed: int
    database: str = "sqlite"
    workers: int = 1
    clients: int = 24
    balancer: str = "none"
    pause: float = 4.0
    """Between two deeds of a kind, at most."""


def settings(plan: Plan, directory: Path, disk: Disk, upstream: Upstream, database: Database | None) -> dict[str, str]:
    """Of both slots. Limits are short, so that what is silent is found to be."""
    store = {"DATABASE_URL": database.url} if database is not None else {"DB_PATH": str(directory / "requests.db")}
    bounded = {} if disk.real else {"SPOOL_MAX_BYTES": "8MiB"}
    return {
        "ANTHROPIC_FORWARD_URL": upstream.url,
        "ANTHROPIC_RESPONSE_HEADER_TIMEOUT": "4s",
        "UPSTREAM_IDLE_TIMEOUT": "4s",
        "DRAIN_LAME_DUCK": f"{LAME_DUCK:g}s",
        "RECORD": "full",
        "SPOOL_DIR": str(disk.spool),
        "WORKERS": str(plan.workers),
        **store,
        **bounded,
    }


def run(plan: Plan, directory: Path, say: Callable[[str], None]) -> Account:
    """Do it, and account for it."""
    began = time.monotonic()

    def tell(text: str) -> None:
        say(f"{time.monotonic() - began:7.2f} s  {text}")

    account = Account(began=began)
    with ExitStack() as stack:
        database = None
        if plan.database == "postgresql":
            database = stack.enter_context(stack.enter_context(server()).database())
        upstream = stack.enter_context(Upstream(directory / "upstream"))
        place = stack.enter_context(disk(directory))
        tell("the spool's disk is a small file system" if place.real else "the spool has a bound: no disk to be filled")
        common = settings(plan, directory, place, upstream, database)
        # Either way is a way that what is not streamed goes.
        blue = Slot("blue", directory / "blue", place, {**common, "ANTHROPIC_DEMOTE_NONSTREAMING": "true"})
        green = Slot("green", directory / "green", place, common)
        both = (blue, green)
        stack.callback(_end_all, both)
        for slot in both:
            slot.start()
        health = stack.enter_context(Health(both))
        port = health.port
        if plan.balancer != "none":
            (directory / plan.balancer).mkdir()
            balancer = BALANCERS[plan.balancer](directory / plan.balancer, [slot.port for slot in both])
            port = partial(int, stack.enter_context(balancer).port)
        world = World(
            slots=both,
            health=health,
            upstream=upstream,
            disk=place,
            database=database,
            balanced=plan.balancer != "none",
            workers=plan.workers,
            say=tell,
        )
        load = Load(port, clients=plan.clients, seed=plan.seed)
        with load:
            with Lanes(world, plan.seed, pause=plan.pause):
                end = time.monotonic() + plan.seconds
                while time.monotonic() < end and not world.failures:
                    time.sleep(min(1, max(0.0, end - time.monotonic())))
                    world.look()
                    upstream.forget()
            tell("no more is done")
            # What comes now meets nothing, and has to be well.
            time.sleep(2)
        tell(f"{len(load.attempts)} requests are over")
        account.failures += load.broken + world.failures
        account.done.update(event.what for event in world.events)
        with account.noting("the end"):
            _end(both, place, tell)
        records = Records(stack.enter_context(Reader()), database.url if database else directory / "requests.db")
        ids: dict[str, list[str]] = {}
        for each in records.exchanges().values():
            ids.setdefault(each.user_agent or "", []).append(each.id)
        tell(f"{sum(map(len, ids.values()))} records")
        account.add(load.attempts, world.events, ids, lambda some: records.kept(*some))
        _read_logs(both, account)
    return account


def _end(both: Sequence[Slot], place: Disk, tell: Callable[[str], None]) -> None:
    """Nothing is counted any more; then all go, and a last start stores what is left. Raises `AssertionError`."""
    for slot in both:
        running = slot.running
        assert running is not None, f"{slot.name} does not run"
        wait_for(partial(_is_idle, running), f"nothing is in flight at {slot.name}", 30)
        counted = scrape(running)("claude_proxy_requests_in_flight")
        assert counted == 0, f"{slot.name} counts {counted} requests in flight"
    for slot in both:
        assert slot.running is not None
        slot.running.signal(signal.SIGTERM)
    for slot in both:
        slot.end()
    last = both[0]
    running = last.start()
    _wait_stored(running, place, len(last.workers()) or 1)
    told = describe(running)
    assert told["status"] == "ok", f"records are not well: {told}"
    running.signal(signal.SIGTERM)
    last.end()
    tell("all have ended")


def _wait_stored(running: Proxy, place: Disk, own: int) -> None:
    """
    Wait until the spool holds nothing but `own` slots, with nothing in them. Raises `AssertionError`.

    As long as it gets on: a recorder is the last to get a share of a machine that has other things to do.
    """
    before, since = (0, 0), time.monotonic()
    while True:
        told = describe(running)
        if len(slots(place.inside)) <= own and not told["behind_bytes"]:
            return
        now = (told["recorded"], len(slots(place.inside)))
        if now != before:
            before, since = now, time.monotonic()
        assert time.monotonic() - since < GONE, f"the spool is not stored: {slots(place.inside)}, {told}"
        time.sleep(0.2)


def _is_idle(running: Proxy) -> bool:
    return running.in_flight() == 0


def _end_all(both: Sequence[Slot]) -> None:
    for slot in both:
        if slot.running is not None:
            slot.running.kill()
        for pid in processes_of(slot.directory):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _read_logs(both: Sequence[Slot], account: Account) -> None:
    """No log has a traceback; each is kept, and what it says of a request that went wrong stands beside that."""
    found: dict[str, list[str]] = {}
    for slot in both:
        for number, lines in enumerate(slot.logs):
            (slot.directory / f"log-{number}").write_text("\n".join(lines), encoding="utf-8")
            for index, line in enumerate(lines):
                if "Traceback" in line:
                    account.failures.append(f"{slot.name}'s log {number}: " + "\n".join(lines[index - 1 : index + 20]))
                for name in re.findall(r"req_[0-9a-f]{32}", line):
                    found.setdefault(name, []).append(f"{slot.name}: {line}")
    for index, failure in enumerate(account.failures):
        said = [
            line for name in dict.fromkeys(re.findall(r"req_[0-9a-f]{32}", failure)) for line in found.get(name, ())
        ]
        account.failures[index] = "\n    ".join([failure, *said])


def report(plan: Plan, account: Account) -> str:
    """What a run came to, in lines."""

    def counted(counts: Counter[str]) -> list[str]:
        return [f"{count:8} {what}" for what, count in counts.most_common()]

    lines = [
        "done:",
        *counted(account.done),
        "requests, as their clients saw them:",
        *counted(account.became),
        "their records:",
        *counted(account.stored),
    ]
    if account.failures:
        lines += [f"{len(account.failures)} wrong:", *(f"  {failure}" for failure in account.failures[:30])]
    else:
        lines.append("every request is accounted for")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Everything at once, accounted for.")
    parser.add_argument("--minutes", type=float, default=3.0, help="how long requests are sent")
    parser.add_argument("--seed", type=int, help="of what is asked and done")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--workers", type=int, default=1, help="of each slot")
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--balancer", choices=(*BALANCERS, "none"), default="none", help="none: clients look for slots")
    arguments = parser.parse_args()
    plan = Plan(
        seconds=arguments.minutes * 60,
        seed=random.randrange(10**6) if arguments.seed is None else arguments.seed,
        database=arguments.database,
        workers=arguments.workers,
        clients=arguments.clients,
        balancer=arguments.balancer,
    )
    again = " ".join(
        f"--{name} {getattr(plan, name)}" for name in ("seed", "database", "workers", "clients", "balancer")
    )
    print(f"python -m tests.chaos --minutes {arguments.minutes:g} {again}", flush=True)
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        account = run(plan, directory, lambda line: print(line, flush=True))
    except pytest.skip.Exception as missing:
        print(missing, file=sys.stderr)
        return 2
    print(report(plan, account))
    if account.failures:
        print(f"logs and records: {directory}", file=sys.stderr)
        return 1
    shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
