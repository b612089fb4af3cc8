"""Clients and upstreams that send anything, a few hundred times; `make fuzz` does it for as long as it is told."""

from __future__ import annotations

import gc

from hypothesis import HealthCheck, given, settings

from .exchange import listening
from .fuzzing import Scenario, play, scenarios
from .memory import captured


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(scenarios())
def test_whatever_comes(scenario: Scenario) -> None:
    """No mistake of ours, nothing left over, nothing that another reader takes for something else. Many, so seconds."""
    play(scenario)


def test_the_fuzz_reaches_what_it_is_about() -> None:
    """It is no test of refusals alone: requests are forwarded, answered whole, cut, and refused."""
    verdicts: set[str] = set()

    @settings(deadline=None, max_examples=100, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(scenarios())
    def look(scenario: Scenario) -> None:
        with listening() as logs:
            play(scenario)
        verdicts.update(line.partition(" verdict=")[2].partition(" ")[0] for line in captured(logs, "access"))

    look()
    gc.collect()
    assert {"complete", "truncated", "refused", "failed", "client_gone"} <= verdicts
