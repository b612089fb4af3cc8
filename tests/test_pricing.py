"""What answers cost: by the table that is shipped, beside another's, and by a file of the user's."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from genai_prices import calc_price, types
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given
from hypothesis import strategies as st

from twisted_proxy.record import pricing
from twisted_proxy.record.pricing import Cost, Prices
from twisted_proxy.record.usage import MAX_COUNT, Charge, read_usage

SHIPPED = pricing.shipped()
NOW = datetime.datetime(2026, 11, 1, 12, tzinfo=datetime.UTC)
SONNET, OPUS = "claude-sonnet-5-5", "claude-opus-5-5"


def micros(moment: datetime.datetime) -> int:
    return int(moment.timestamp() * 1e6)


def cost(usage: dict[str, Any], model: str = SONNET, *, prices: Prices = SHIPPED, at: datetime.datetime = NOW) -> Any:
    """10⁻⁹ dollars and whether that is all, or ``None``."""
    found = prices.cost(read_usage(usage, model), micros(at))
    return None if found is None else (found.nanousd, found.partial)


class TestUsage:
    """An answer's `usage`, as the APIs count."""

    def test_anthropic(self) -> None:
        """`input_tokens` is without the cache; writes are told apart by how long they last."""
        usage = {
            "input_tokens": 10,
            "output_tokens": 20,
            "cache_read_input_tokens": 300,
            "cache_creation_input_tokens": 450,
            "cache_creation": {"ephemeral_5m_input_tokens": 50, "ephemeral_1h_input_tokens": 400},
            "output_tokens_details": {"thinking_tokens": 7},
            "server_tool_use": {"web_search_requests": 3, "web_fetch_requests": 2},
            "service_tier": "standard",
        }
        (charge,) = read_usage(usage, OPUS)
        assert charge == Charge(
            model=OPUS,
            input_tokens=10,
            output_tokens=20,
            cache_read_tokens=300,
            cache_write_5m_tokens=50,
            cache_write_1h_tokens=400,
            web_search_requests=3,
        )
        assert charge.prompt_tokens == 760

    @pytest.mark.parametrize(
        ("creation", "expected"),
        [
            (None, (450, 0)),
            ({}, (450, 0)),
            ({"ephemeral_1h_input_tokens": 400}, (50, 400)),
            ({"ephemeral_1h_input_tokens": 450, "ephemeral_5m_input_tokens": 0}, (0, 450)),
            ({"ephemeral_1h_input_tokens": "many"}, (450, 0)),
            ([], (450, 0)),
        ],
    )
    def test_writes_without_a_breakdown(self, creation: object, expected: tuple[int, int]) -> None:
        """What is not told to last an hour lasts five minutes."""
        usage = {"input_tokens": 1, "cache_creation_input_tokens": 450, "cache_creation": creation}
        (charge,) = read_usage(usage, OPUS)
        assert (charge.cache_write_5m_tokens, charge.cache_write_1h_tokens) == expected

    def test_openai(self) -> None:
        """What the cache gave is taken out of `prompt_tokens`."""
        usage = {
            "prompt_tokens": 100,
            "completion_tokens": 20,
            "total_tokens": 120,
            "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 30, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 5},
        }
        assert read_usage(usage, "gpt-5") == (
            Charge(
                model="gpt-5",
                input_tokens=10,
                output_tokens=20,
                cache_read_tokens=60,
                cache_write_5m_tokens=30,
            ),
        )
        responses = {"input_tokens": 100, "output_tokens": 20, "input_tokens_details": {"cached_tokens": 60}}
        assert read_usage(responses, "gpt-5") == (
            Charge(model="gpt-5", input_tokens=40, output_tokens=20, cache_read_tokens=60),
        )

    def test_more_cached_than_sent(self) -> None:
        """Nobody is paid for tokens."""
        usage = {"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 5}}
        assert read_usage(usage, "gpt-5") == (Charge(model="gpt-5", cache_read_tokens=10),)

    def test_iterations(self) -> None:
        """Each counts, at its own model, and what stands above them does not count again."""
        usage: dict[str, Any] = {
            "input_tokens": 23,
            "output_tokens": 10,
            "iterations": [
                {"type": "compaction", "input_tokens": 1800, "output_tokens": 35},
                {"type": "message", "input_tokens": 23, "output_tokens": 10, "cache_read_input_tokens": 4},
                {"type": "advisor_message", "model": SONNET, "input_tokens": 7, "output_tokens": 1},
                "nonsense",
                {"type": "unheard_of"},
            ],
            "server_tool_use": {"web_search_requests": 1},
        }
        assert read_usage(usage, OPUS) == (
            Charge(model=OPUS, input_tokens=1800, output_tokens=35, web_search_requests=1),
            Charge(model=OPUS, input_tokens=23, output_tokens=10, cache_read_tokens=4),
            Charge(model=SONNET, input_tokens=7, output_tokens=1),
        )
        compacted = {**usage, "iterations": usage["iterations"][:1]}
        assert [charge.input_tokens for charge in read_usage(compacted, OPUS)] == [23, 1800]
        nothings: list[object] = [None, [], ["nonsense"], {}]
        for nothing in nothings:
            assert read_usage({**usage, "iterations": nothing}, OPUS)[0].input_tokens == 23

    @pytest.mark.parametrize(
        ("told", "beside", "modes"),
        [
            ({"service_tier": "standard", "speed": "standard", "inference_geo": "global"}, None, set()),
            ({"service_tier": "batch"}, None, {"batch"}),
            ({"service_tier": "priority"}, None, {"priority"}),
            ({"speed": "fast", "inference_geo": "us"}, None, {"fast", "us"}),
            ({}, "flex", {"flex"}),
            ({}, "default", set()),
            ({"service_tier": ["batch"], "speed": 1, "inference_geo": None}, {}, set()),
        ],
    )
    def test_modes(self, told: dict[str, Any], beside: object, modes: set[str]) -> None:
        """What changes the price."""
        (charge,) = read_usage({"input_tokens": 1, **told}, OPUS, service_tier=beside)
        assert charge.modes == modes

    @pytest.mark.parametrize("count", [-1, True, "5", None, 1.5e300, float("nan"), MAX_COUNT + 1, 10**400, [], {}])
    def test_no_counts(self, count: object) -> None:
        """What is no number of tokens counts as none at all; with nothing else there is no usage."""
        assert read_usage({"input_tokens": count, "output_tokens": count}, OPUS) == ()
        assert read_usage({"input_tokens": 5, "output_tokens": count}, OPUS) == (Charge(model=OPUS, input_tokens=5),)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        [
                            "input_tokens",
                            "iterations",
                            "cache_creation",
                            "model",
                            "prompt_tokens_details",
                            "service_tier",
                        ]
                    ),
                    inner,
                )
            ),
        )
    )
    def test_any_usage(self, value: Any) -> None:
        """Nothing raises, and no count is negative."""
        usage = value if isinstance(value, dict) else {"iterations": value, "input_tokens": 1}
        charges = read_usage(usage, None)
        assert all(charge.prompt_tokens >= 0 for charge in charges)
        assert SHIPPED.cost(charges, 0, model=OPUS) is None or charges


class TestCost:
    """Charges and prices."""

    def test_each_kind(self) -> None:
        """Dollars for a million are thousands of 10⁻⁹ dollars for one."""
        assert cost({"input_tokens": 1_000_000}) == (2_000_000_000, False)
        assert cost({"output_tokens": 1}) == (10_000, False)
        assert cost({"input_tokens": 0, "cache_read_input_tokens": 1}) == (100, False)
        assert cost({"input_tokens": 0, "cache_creation_input_tokens": 1}) == (2_500, False)
        hour = {"cache_creation": {"ephemeral_1h_input_tokens": 1}, "cache_creation_input_tokens": 1}
        assert cost({"input_tokens": 0, **hour}) == (4_000, False)
        assert cost({"input_tokens": 0, "server_tool_use": {"web_search_requests": 1}}) == (10_000_000, False)

    @pytest.mark.parametrize("model", ["claude-opus-6", "claude-opus-5-6-latest", "gpt-5-nonsense", "", "llama3:8b"])
    def test_an_unknown_model(self, model: str) -> None:
        """Costs nobody knows what, which is not nothing."""
        assert cost({"input_tokens": 5}, model) is None

    def test_no_usage(self) -> None:
        """An answer without tokens has no cost."""
        assert SHIPPED.cost((), micros(NOW)) is None

    def test_the_model_that_was_asked_for(self) -> None:
        """Prices an answer that names none, and no other."""
        charges = read_usage({"input_tokens": 1_000_000}, None)
        assert SHIPPED.cost(charges, micros(NOW)) is None
        assert SHIPPED.cost(charges, micros(NOW), model=SONNET) == Cost(nanousd=2_000_000_000, partial=False)
        charges = read_usage({"input_tokens": 1_000_000}, "claude-opus-6")
        assert SHIPPED.cost(charges, micros(NOW), model=SONNET) is None

    def test_modes(self) -> None:
        """They multiply, and leave the price of searches alone."""
        usage = {"input_tokens": 1_000_000, "server_tool_use": {"web_search_requests": 1}}
        assert cost({**usage, "service_tier": "batch"}, OPUS) == (2_010_000_000, False)
        assert cost({**usage, "service_tier": "priority"}, OPUS) == (4_010_000_000, False)
        assert cost({**usage, "speed": "fast", "inference_geo": "us"}, OPUS) == (8_810_000_000, False)

    def test_a_mode_without_a_price(self) -> None:
        """A lower bound, that says so."""
        assert cost({"input_tokens": 1_000_000, "speed": "fast"}, "claude-haiku-4-5") == (1_000_000_000, True)

    def test_searches_without_a_price(self) -> None:
        """A lower bound as well."""
        usage = {"input_tokens": 1_000_000, "server_tool_use": {"web_search_requests": 1}}
        assert cost(usage, "claude-3-haiku-20240307") == (250_000_000, True)

    def test_iterations_of_several_models(self) -> None:
        """Each at its own price; one whose price is unknown makes the sum a lower bound."""
        iterations = [
            {"type": "message", "input_tokens": 1_000_000},
            {"type": "advisor_message", "model": SONNET, "input_tokens": 1_000_000},
        ]
        assert cost({"input_tokens": 1, "iterations": iterations}, OPUS) == (6_000_000_000, False)
        unknown = {"type": "advisor_message", "model": "claude-opus-6", "input_tokens": 9}
        assert cost({"iterations": [*iterations, unknown]}, OPUS) == (6_000_000_000, True)
        assert cost({"iterations": [unknown]}, OPUS) is None

    def test_a_long_prompt(self) -> None:
        """Above the limit all tokens have the higher price; what came out of the cache counts to the limit."""
        model = "claude-haiku-5-5"
        assert cost({"input_tokens": 100_000, "output_tokens": 1}, model) == (10_000_500, False)
        usage = {"input_tokens": 1, "cache_read_input_tokens": 100_000, "output_tokens": 1}
        assert cost(usage, model) == (500 + 5_000_000 + 2_500, False)

    def test_a_price_that_changed(self) -> None:
        """What was billed at the time, by days in UTC."""
        usage = {"input_tokens": 300_000}
        last = datetime.datetime(2026, 3, 12, 23, 59, 59, tzinfo=datetime.UTC)
        assert cost(usage, "claude-opus-4-6", at=last) == (3_000_000_000, False)
        assert cost(usage, "claude-opus-4-6", at=last + datetime.timedelta(seconds=1)) == (1_500_000_000, False)

    def test_halves_are_rounded_up(self, tmp_path: Path) -> None:
        """To whole 10⁻⁹ dollars, once for each charge."""
        prices = load(tmp_path, {"models": ["m"], "usd_per_million_tokens": {"input": 0.0005, "output": 0.0004}})
        assert cost({"input_tokens": 1}, "m", prices=prices) == (1, False)
        assert cost({"output_tokens": 1}, "m", prices=prices) == (0, False)

    def test_more_than_a_column_holds(self, tmp_path: Path) -> None:
        """Is no cost."""
        prices = load(tmp_path, {"models": ["m"], "usd_per_million_tokens": {"input": 1_000_000, "output": 1}})
        assert cost({"input_tokens": MAX_COUNT}, "m", prices=prices) == (10**18, False)
        iterations = [{"input_tokens": MAX_COUNT}] * 10
        assert cost({"iterations": iterations}, "m", prices=prices) is None

    @pytest.mark.parametrize("at", [-(10**30), -1, 0, 2**63, 10**30])
    def test_any_time(self, at: int) -> None:
        """Nothing raises."""
        assert SHIPPED.cost(read_usage({"input_tokens": 1}, SONNET), at) == Cost(nanousd=2_000, partial=False)


# Another's prices

USAGES: dict[str, dict[str, Any]] = {
    "plain": {"input_tokens": 12_345, "output_tokens": 678},
    "cache": {
        "input_tokens": 3,
        "output_tokens": 1_234,
        "cache_read_input_tokens": 54_321,
        "cache_creation_input_tokens": 4_000,
        "cache_creation": {"ephemeral_5m_input_tokens": 1_000, "ephemeral_1h_input_tokens": 3_000},
    },
    "writes of unknown kind": {"input_tokens": 3, "output_tokens": 1, "cache_creation_input_tokens": 4_000},
    "150 K": {"input_tokens": 10, "output_tokens": 50, "cache_read_input_tokens": 149_990},
    "250 K": {
        "input_tokens": 10_000,
        "output_tokens": 500,
        "cache_read_input_tokens": 200_000,
        "cache_creation_input_tokens": 40_000,
        "cache_creation": {"ephemeral_5m_input_tokens": 40_000, "ephemeral_1h_input_tokens": 0},
    },
    "searches": {"input_tokens": 10, "output_tokens": 50, "server_tool_use": {"web_search_requests": 7}},
    "batch": {"input_tokens": 12_345, "output_tokens": 678, "service_tier": "batch"},
    "fast": {"input_tokens": 12_345, "output_tokens": 678, "cache_read_input_tokens": 1_000, "speed": "fast"},
}

# Where the two differ, and why. Whatever is not named here must be the same.
NO_BATCH_THERE = (
    "The Batch API halves prices since October 2024; genai-prices has that for models that were active when it began "
    "to keep it."
)
NO_FAST_THERE = "Fast mode cost six times the price on Opus 4.6, which has it no more; genai-prices never had it."

DIFFERENCES = {
    **dict.fromkeys([(model, "batch") for model in (
        "claude-3-5-haiku-latest", "claude-3-5-sonnet", "claude-3-7-sonnet-latest", "claude-3-haiku",
        "claude-3-opus-latest", "claude-3-sonnet", "claude-opus-4-0", "claude-opus-4-1", "claude-sonnet-4-0",
    )], NO_BATCH_THERE),
    **dict.fromkeys([("claude-opus-4-6", "fast")], NO_FAST_THERE),
}  # fmt: skip


def names(match: Any) -> Iterator[str]:
    """Names that a model of genai-prices goes by."""
    for clause in match.or_ if isinstance(match, types.ClauseOr) else [match]:
        if isinstance(clause, types.ClauseEquals):
            yield clause.equals
        elif isinstance(clause, types.ClauseStartsWith):
            yield clause.starts_with
            yield clause.starts_with + ("20260401" if clause.starts_with.endswith("@") else "-20260401")
        elif isinstance(clause, types.ClauseRegex):
            dated = clause.regex.strip("^$").replace(r"\d{4}", "2026").replace(r"\d{2}", "04")
            yield dated.replace(r"\d{8}", "20260401").replace("[-@]", "@").replace(r"\.", ".")


def models(provider: str) -> dict[str, Any]:
    (found,) = [each for each in get_snapshot().providers if each.id == provider]
    return {model.id: model for model in found.models}


def theirs(usage: dict[str, Any], model: str, provider: str, at: datetime.datetime) -> int:
    """What genai-prices says, in 10⁻⁹ dollars."""
    (charge,) = read_usage(usage, model)
    counts = {
        "input_tokens": charge.prompt_tokens,
        "output_tokens": charge.output_tokens,
        "cache_read_tokens": charge.cache_read_tokens,
        "cache_write_tokens": charge.cache_write_5m_tokens + charge.cache_write_1h_tokens,
        "cache_write_1h_tokens": charge.cache_write_1h_tokens,
        "web_searches": charge.web_search_requests,
    }
    context = {"processing": "batch"} if "batch" in charge.modes else {}
    context |= {"speed": "fast"} if "fast" in charge.modes else {}
    price = calc_price(
        types.Usage(**{name: count for name, count in counts.items() if count}),
        model,
        provider_id=provider,
        genai_request_timestamp=at,
        price_context=context or None,
    )
    return int((price.total_price * Decimal(10**9)).to_integral_value())


OPENAI = [model for model in models("openai") if cost({"input_tokens": 1}, model) is not None]
BEFORE = datetime.datetime(2026, 2, 1, tzinfo=datetime.UTC)


class TestBesideAnother:
    """The table that is shipped beside that of genai-prices, which is offline data."""

    @pytest.mark.parametrize("model", models("anthropic"))
    def test_every_claude(self, model: str) -> None:
        """Each model that it knows, under each name, with each kind of usage: the same cost, or a known difference."""
        differ = set()
        for name in [model, *names(models("anthropic")[model].match)]:
            for kind, usage in USAGES.items():
                at = BEFORE if kind == "250 K" else NOW
                ours = cost(usage, name, at=at)
                assert ours is not None, name
                if ours[1]:
                    # A lower bound: it is what genai-prices asks, which knows no price for the rest either.
                    assert ours[0] == theirs(usage, name, "anthropic", at), (name, kind)
                elif ours[0] != theirs(usage, name, "anthropic", at):
                    differ.add((model, kind))
        assert differ == {each for each in DIFFERENCES if each[0] == model}

    @pytest.mark.parametrize("model", OPENAI)
    @pytest.mark.parametrize("at", [datetime.datetime(2025, 6, 1, tzinfo=datetime.UTC), BEFORE, NOW])
    def test_openai(self, model: str, at: datetime.datetime) -> None:
        """The models that both know, under each name, at several times."""
        for name in [model, *names(models("openai")[model].match)]:
            for prompt in (1_000, 250_000, 300_000):
                usage = {
                    "prompt_tokens": prompt,
                    "completion_tokens": 77,
                    "prompt_tokens_details": {"cached_tokens": prompt // 2},
                }
                assert cost(usage, name, at=at) == (theirs(usage, name, "openai", at), False), (name, prompt)

    def test_which_of_openai(self) -> None:
        """Those that people route to are among them."""
        expected = ["gpt-4o", "gpt-4o-mini", "gpt-4.1", "gpt-5", "gpt-5-mini", "gpt-5.1", "gpt-5.4", "gpt-5.5"]
        assert {*expected, "gpt-5.6-sol", "gpt-6-sol", "o1", "o3", "o3-mini", "o4-mini"} <= set(OPENAI)

    def test_mythos(self) -> None:
        """Models of limited availability, which genai-prices has in part, cost what their siblings do."""
        for version in ("5", "5-1", "5-2"):
            for usage in USAGES.values():
                assert cost(usage, f"claude-mythos-{version}") == cost(usage, f"claude-fable-{version}")


# A file of the user's


def load(directory: Path, *entries: object, **members: object) -> Prices:
    path = directory / "prices.json"
    path.write_text(json.dumps({"prices": list(entries), **members}), encoding="utf-8")
    return pricing.load(path)


def flat(dollars: float, *patterns: str, **members: object) -> dict[str, object]:
    """An entry with one price for all tokens."""
    return {"models": list(patterns), "usd_per_million_tokens": {"input": dollars, "output": dollars}, **members}


class TestFile:
    """A user's prices."""

    def test_they_come_first(self, tmp_path: Path) -> None:
        """Of the models that they name, also by a pattern that says less; the rest keeps the price that is shipped."""
        prices = load(tmp_path, flat(7, "claude-sonnet-*"), flat(9, "my-model"))
        usage = {"input_tokens": 1_000_000}
        assert cost(usage, SONNET, prices=prices) == (7_000_000_000, False)
        assert cost(usage, "My-Model", prices=prices) == (9_000_000_000, False)
        assert cost(usage, OPUS, prices=prices) == cost(usage, OPUS)

    def test_the_closest_pattern(self, tmp_path: Path) -> None:
        """The one with the most characters of its own, in whichever order they stand."""
        entries = [flat(1, "*"), flat(3, "a-b-*"), flat(4, "a-b-c"), flat(2, "a-?-*")]
        for order in (entries, entries[::-1]):
            prices = load(tmp_path, *order)
            found = [
                cost({"input_tokens": 10**6}, name, prices=prices)[0] // 10**9
                for name in ("x", "a-x-y", "a-b-d", "a-b-c")
            ]
            assert found == [1, 2, 3, 4]

    def test_brackets_are_a_part_of_names(self, tmp_path: Path) -> None:
        """`claude[1m]` is one name."""
        prices = load(tmp_path, flat(1, "claude[1m]"))
        assert cost({"input_tokens": 1}, "claude[1m]", prices=prices) == (1_000, False)
        assert cost({"input_tokens": 1}, "claude1", prices=prices) is None

    def test_from(self, tmp_path: Path) -> None:
        """Of entries for one pattern, the latest that has begun; before the first there is no price."""
        prices = load(tmp_path, flat(2, "m", **{"from": "2026-02-01"}), flat(1, "m", **{"from": "2026-01-01"}))
        days = [
            datetime.datetime(2025 + year, month, 15, tzinfo=datetime.UTC) for year, month in ((0, 12), (1, 1), (1, 2))
        ]
        assert [cost({"input_tokens": 1}, "m", prices=prices, at=day) for day in days] == [
            None,
            (1_000, False),
            (2_000, False),
        ]

    def test_all_members(self, tmp_path: Path) -> None:
        """The whole form, as the module's docstring has it."""
        prices = load(
            tmp_path,
            {
                "models": ["m"],
                "from": "2025-01-01",
                "usd_per_million_tokens": {
                    "input": 1,
                    "output": 2,
                    "cache_read": 3,
                    "cache_write_5m": 4,
                    "cache_write_1h": 5,
                },
                "above": {"prompt_tokens": 100, "usd_per_million_tokens": {"input": 10, "output": 20}},
                "usd_per_thousand": {"web_search_requests": 6},
                "factors": {"batch": 0.5, "fast": 2, "flex": 0.5, "priority": 1.5, "us": 1.1},
            },
            about="Ours.",
        )
        usage = {
            "input_tokens": 1,
            "output_tokens": 1,
            "cache_read_input_tokens": 1,
            "cache_creation_input_tokens": 2,
            "cache_creation": {"ephemeral_1h_input_tokens": 1},
            "server_tool_use": {"web_search_requests": 1},
        }
        assert cost(usage, "m", prices=prices) == (15_000 + 6_000_000, False)
        # Kinds without a price of their own cost what input does.
        assert cost({**usage, "input_tokens": 100}, "m", prices=prices) == (1_030_000 + 20_000 + 6_000_000, False)

    @pytest.mark.parametrize(
        ("document", "problems"),
        [
            ("{", ["is not JSON: "]),
            ("[" * 100_000, ["is not JSON: "]),
            ("[]", ['must be an object with a list "prices"']),
            ('{"prices": {}}', ['must be an object with a list "prices"']),
            ('{"price": 1, "prices": []}', ["the file has an unknown member 'price'"]),
            ('{"prices": [5]}', ["entry 1: must be an object"]),
            (
                '{"prices": [{},'
                ' {"models": [], "usd_per_million_tokens": {"input": -1, "outputs": 1}, "from": "soon"}]}',
                [
                    'entry 1: "models" must be a list of names or patterns',
                    'entry 1: "usd_per_million_tokens" must be an object',
                    'entry 2: "models" must be a list of names or patterns',
                    'entry 2: "usd_per_million_tokens" has an unknown member \'outputs\'',
                    'entry 2: "usd_per_million_tokens": "input" must be a number from 0 to 1000000',
                    'entry 2: "usd_per_million_tokens" has no output',
                    'entry 2: "from" must be a date, YYYY-MM-DD',
                ],
            ),
            (
                '{"prices": [{"models": ["m"], "usd_per_million_tokens": {"input": NaN, "output": null},'
                ' "above": {"prompt_tokens": 1.5, "usd_per_million_tokens": {"input": true, "output": "1"}},'
                ' "usd_per_thousand": {"web_searches": 1}, "factors": {"batch": 1e999, "slow": 1}, "form": 1,'
                ' "from": "2026-02-30"}]}',
                [
                    "entry 1: it has an unknown member 'form'",
                    'entry 1: "usd_per_million_tokens": "input" must be a number from 0 to 1000000',
                    'entry 1: "usd_per_million_tokens": "output" must be a number from 0 to 1000000',
                    'entry 1: "above": "prompt_tokens" must be a whole number',
                    'entry 1: "above": "usd_per_million_tokens": "input" must be a number from 0 to 1000000',
                    'entry 1: "above": "usd_per_million_tokens": "output" must be a number from 0 to 1000000',
                    'entry 1: "usd_per_thousand" has an unknown member \'web_searches\'',
                    'entry 1: "factors" has an unknown member \'slow\'',
                    'entry 1: "factors": "batch" must be a number from 0 to 1000000',
                    'entry 1: "from" must be a date, YYYY-MM-DD',
                ],
            ),
            ('{"prices": [{"models": ["m"], "above": 1}]}', [
                'entry 1: "usd_per_million_tokens" must be an object',
                'entry 1: "above" must be an object',
            ]),
        ],
    )  # fmt: skip
    def test_problems(self, tmp_path: Path, document: str, problems: list[str]) -> None:
        """All of them at once, each in words and with the file's name."""
        path = tmp_path / "mine.json"
        path.write_text(document, encoding="utf-8")
        with pytest.raises(ValueError, match=r"mine\.json: ") as caught:
            pricing.load(path)
        lines = str(caught.value).split("\n")
        assert len(lines) == len(problems)
        for line, problem in zip(lines, problems, strict=True):
            assert line.startswith(f"{path}: {problem}")

    def test_no_file(self, tmp_path: Path) -> None:
        """It is said which, and why it cannot be read."""
        with pytest.raises(ValueError, match=r"none\.json: cannot be read: .*No such file"):
            pricing.load(tmp_path / "none.json")
        (tmp_path / "binary").write_bytes(b"\xff\xfe")
        with pytest.raises(ValueError, match=r"binary: cannot be read: .*utf-8"):
            pricing.load(tmp_path / "binary")

    def test_the_shipped_table_is_such_a_file(self, tmp_path: Path) -> None:
        """So it can be copied and changed."""
        source = Path(pricing.__file__).with_name("prices.json")
        (tmp_path / "prices.json").write_bytes(source.read_bytes())
        assert cost({"input_tokens": 1}, prices=pricing.load(tmp_path / "prices.json")) == cost({"input_tokens": 1})
