"""
The fuzz, for as long as it is told:

    python -m tests.fuzz [--minutes M] [--seed N] [--batch EXAMPLES]

Each batch has a seed of its own, which it prints; the same seed and batch size play the same scenarios. The first
failure ends it, with the smallest scenario that shows it and what to type to see it again.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time

import hypothesis

from .exchange import listening
from .fuzzing import Scenario, play, scenarios


def run_batch(seed: int, examples: int) -> None:
    """Play so many scenarios. What is wrong with one is raised."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        deadline=None,
        max_examples=examples,
        database=None,
        print_blob=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(scenarios())
    def fuzz(scenario: Scenario) -> None:
        play(scenario)

    with listening() as logs:
        fuzz()
        # A Deferred that failed unseen complains when it is thrown away.
        gc.collect()
    failures = [event["log_failure"].getTraceback() for event in logs if "log_failure" in event]
    assert not failures, "\n".join(failures)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Send anything, and see what holds.")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long; a batch that has begun is finished")
    parser.add_argument("--seed", type=int, help="of the first batch; each further one has the next number")
    parser.add_argument("--batch", type=int, default=500, metavar="EXAMPLES", help="scenarios in a batch")
    arguments = parser.parse_args()
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    end = time.monotonic() + arguments.minutes * 60
    count = 0
    while True:
        print(f"seed {seed}, {count} scenarios so far", flush=True)
        try:
            run_batch(seed, arguments.batch)
        except BaseException:
            again = f"python -m tests.fuzz --minutes 0 --seed {seed} --batch {arguments.batch}"
            print(f"failed; to see it again: {again}", file=sys.stderr)
            raise
        count += arguments.batch
        seed += 1
        if time.monotonic() >= end:
            print(f"{count} scenarios, nothing wrong")
            return 0


if __name__ == "__main__":
    sys.exit(main())
