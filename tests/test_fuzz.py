"""Clients and upstreams that send anything, a few hundred times; `make fuzz` does it for as long as it is told."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings

from .exchange import listening
from .fuzzing import Scenario, play, scenarios
from .memory import captured

ENOUGH = settings(max_examples=3000, phases=[Phase.generate], database=None, suppress_health_check=list(HealthCheck))


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(scenarios())
def test_whatever_comes(scenario: Scenario) -> None:
    """No mistake of ours, nothing left over, nothing that another reader takes for something else. Many, so seconds."""
    play(scenario)


@pytest.mark.parametrize("verdict", ["complete", "truncated", "refused", "failed", "client_gone"])
def test_the_fuzz_reaches_what_it_is_about(verdict: str) -> None:
    """Requests are forwarded, answered whole, cut, refused and left alone: sooner or later there is each of these."""

    def ends_so(scenario: Scenario) -> bool:
        with listening() as logs:
            play(scenario)
        return any(f" verdict={verdict} " in line for line in captured(logs, "access"))

    find(scenarios(), ends_so, settings=ENOUGH)


def test_the_fuzz_reaches_other_providers() -> None:
    """What is not for Anthropic goes elsewhere, sooner or later, and is answered there."""
    find(scenarios(), lambda scenario: bool(play(scenario).forwarded_elsewhere), settings=ENOUGH)
