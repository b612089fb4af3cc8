"""
How soon the dashboard's first view is there, with many exchanges stored, and how smoothly its list scrolls.

    python benchmarks/dashboard.py [--exchanges N] [--apart SECONDS] [--rounds N] [--busy N]
                                   [--store sqlite|postgresql]

A proxy starts for each store, and a headless Chromium with an empty cache opens each view. Times are milliseconds since
the navigation began: until rows (or the charts' numbers) stand on the page, and until the page has acted on a key that
was pressed then. Beside them are the first paint, and what of it was the slowest answer of the API: when it was there,
and its size. The PostgreSQL server is one of the test suite's, in a temporary directory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from playwright.sync_api import Browser
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tests.browser import chromium, recording
from tests.many import TURNS, fill, multiply
from tests.postgresql import server
from tests.processes import Proxy, proxy, standin
from twisted_proxy.record.postgres import postgres_store
from twisted_proxy.record.sql import SqlStore
from twisted_proxy.record.sqlite import SqliteDriver

reactor: Any = installed_reactor

VIEWS = {
    "now": "[role=listitem] a",
    "requests": "[role=listitem] a",
    "sessions": "a[data-row]",
    "conversations": "a[data-row]",
    "cache": "a[data-row]",
    "usage": "main dl dd",
}
"""What is on the page as soon as a view shows what it is for."""

SOME = 50 * TURNS
"""Exchanges that are written; the others are copies of them."""

WATCH = """
(() => {
  const seen = (window.__seen = { shown: 0, reacted: 0 });
  const look = () => {
    if (!seen.shown && document.querySelector(ROWS)) {
      seen.shown = performance.now();
      document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "?", bubbles: true }));
    }
    if (seen.shown && document.querySelector("dialog[open]")) seen.reacted = performance.now();
    else requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
})();
"""

TIMES = """
() => {
  const api = performance.getEntriesByType("resource").filter((one) => /\\/api\\/(?!live$)/.test(one.name));
  const before = api.filter((one) => one.responseEnd && one.responseEnd <= window.__seen.shown);
  const last = before.sort((a, b) => a.responseEnd - b.responseEnd).at(-1);
  return {
    ...window.__seen,
    painted: performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? 0,
    asked: last?.requestStart ?? 0,
    answered: last?.responseEnd ?? 0,
    size: (last?.decodedBodySize ?? 0) / 1000,
  };
}
"""

DRAG = """
async () => {
  const frame = document.querySelector("[role=region][aria-label^=Requests]");
  const times = [];
  let last = performance.now();
  const end = last + 5000;
  while (last < end) {
    // As a dragged bar does: to and fro over all that is there.
    const share = Math.abs((((last - end + 5000) / 2500) % 2) - 1);
    frame.scrollTop = (1 - share) * (frame.scrollHeight - frame.clientHeight);
    const now = await new Promise((done) => requestAnimationFrame(done));
    times.push(now - last);
    last = now;
  }
  return times;
}
"""


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that only count."""
    others = [multiprocessing.Process(target=_count, daemon=True) for _ in range(count)]
    for each in others:
        each.start()
    try:
        yield
    finally:
        for each in others:
            each.kill()
            each.join()


def _count() -> None:
    while True:
        pass


async def fill_all(places: dict[str, Path | str], exchanges: int, apart: int) -> None:
    for name, place in places.items():
        began = time.monotonic()
        store = postgres_store(reactor, place) if isinstance(place, str) else SqlStore(SqliteDriver(reactor, place))
        await store.open()
        await fill(store, min(SOME, exchanges), newest=int(time.time() * 1e6), apart=apart * 1_000_000)
        await store.close()
        multiply(place, max(1, exchanges // SOME), span=SOME * apart * 1000)
        print(f"{name}: {exchanges} exchanges, made in {time.monotonic() - began:.0f} s", flush=True)


def first_view(browser: Browser, running: Proxy, view: str) -> dict[str, float]:
    """Open a view in a browser that has seen nothing yet."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    try:
        page = context.new_page()
        page.add_init_script(WATCH.replace("ROWS", repr(VIEWS[view])))
        page.goto(f"{running.url}/#/{view}")
        page.wait_for_function("() => window.__seen.reacted > 0")
        times: dict[str, float] = page.evaluate(TIMES)
        return times
    finally:
        context.close()


def views(browser: Browser, running: Proxy, rounds: int) -> None:
    print("  view           shown  worst  reacts  worst  painted  asked  answered     KB")
    for view in VIEWS:
        found = [first_view(browser, running, view) for _ in range(rounds)]
        middle = {name: statistics.median(each[name] for each in found) for name in found[0]}
        worst = {name: max(each[name] for each in found) for name in found[0]}
        print(
            f"  {view:13} {middle['shown']:6.0f} {worst['shown']:6.0f}  {middle['reacted']:6.0f} "
            f"{worst['reacted']:6.0f}   {middle['painted']:6.0f} {middle['asked']:6.0f}    "
            f"{middle['answered']:6.0f} {middle['size']:6.0f}",
            flush=True,
        )


def drag(browser: Browser, running: Proxy) -> None:
    """Scroll through all that is there, from end to end and back, in five seconds."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    try:
        page = context.new_page()
        page.goto(f"{running.url}/#/requests")
        page.wait_for_selector(VIEWS["requests"])
        took = sorted(page.evaluate(DRAG))
        rows = page.evaluate("() => Number(document.querySelector('[aria-setsize]').ariaSetSize)")
    finally:
        context.close()
    print(
        f"  dragged through the list: {1000 * len(took) / sum(took):.0f} frames/s; a frame takes "
        f"{statistics.median(took):.0f} ms, p99 {took[len(took) * 99 // 100]:.0f} ms; {rows} rows at the end",
        flush=True,
    )


def measure(arguments: argparse.Namespace, directory: Path) -> None:
    with ExitStack() as stack:
        places: dict[str, Path | str] = {}
        if arguments.store != "postgresql":
            places["sqlite"] = directory / "requests.db"
        if arguments.store != "sqlite":
            places["postgresql"] = stack.enter_context(stack.enter_context(server()).database()).url
        failed: list[Failure] = []
        done = Deferred.fromCoroutine(fill_all(places, arguments.exchanges, arguments.apart))
        done.addErrback(failed.append)
        done.addBoth(lambda _: reactor.callLater(0, reactor.stop))
        reactor.run()
        if failed:
            sys.exit(failed[0].getTraceback())
        browser = stack.enter_context(chromium())
        upstream = stack.enter_context(standin(directory))
        for name, place in places.items():
            settings = recording(directory) | ({"DATABASE_URL": place} if isinstance(place, str) else {})
            with proxy(directory, upstream, **settings) as running:
                # The first look opens the store, and what the system keeps of it.
                first_view(browser, running, "requests")
                for others in sorted({0, arguments.busy}):
                    print(f"{name}, beside {others} busy processes" if others else name, flush=True)
                    with busy(others):
                        views(browser, running, arguments.rounds)
                        drag(browser, running)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exchanges", type=int, default=100_000)
    parser.add_argument(
        "--apart", type=int, default=15, help="seconds from one to the next; 1: nearly all are of today"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--busy", type=int, default=1, help="measure again beside so many processes that take a core")
    parser.add_argument("--store", choices=("sqlite", "postgresql"), help="only this one")
    with tempfile.TemporaryDirectory() as directory:
        measure(parser.parse_args(), Path(directory))


if __name__ == "__main__":
    main()
