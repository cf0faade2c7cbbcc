"""An engine with another selection replaces those that run, and these cannot come back meanwhile."""

from __future__ import annotations

import pytest

from engine.core.generations import (
    Generation,
    Generations,
    claimed,
    decode_generations,
    encode_generations,
    joined,
    selection_of,
    successor,
)
from engine.core.specs import StreamSpec
from engine.errors import ConfigError, StateLostError


def streams(*collections: str, pipeline: str = "[]") -> list[StreamSpec]:
    return [StreamSpec(f"shop.{each}", "collection", "shop", (each,), pipeline=pipeline) for each in collections]


def after(
    found: Generations, specs: list[StreamSpec], *, wanted: int = 0, living: set[str] | None = None
) -> Generations:
    made = joined(found, specs, selection_of(specs, "lake"), wanted, living or set(), "host/1")
    return found if made is None else made


def numbers(found: Generations) -> dict[str, int]:
    return {
        "+".join(sorted(c for s in each.streams for c in s.collections)): each.number for each in found.current
    }


def generation(specs: list[StreamSpec]) -> Generation:
    """That of an engine with these streams."""
    return Generation(1, selection_of(specs, "lake"), tuple(specs))


A, B, OTHER = streams("a"), streams("a", "b"), streams("x")
A_ID, B_ID = selection_of(A, "lake"), selection_of(B, "lake")


def test_the_identity_of_a_selection_is_that_of_its_streams_and_its_sink() -> None:
    assert selection_of(list(reversed(B)), "lake") == B_ID
    assert selection_of(B, "another lake") != B_ID
    assert selection_of(streams("a", "b", pipeline="[1]"), "lake") != B_ID


def test_engines_of_one_selection_join_one_generation() -> None:
    first = after(Generations(), A)
    assert after(first, A) is first
    assert numbers(first) == {"a": 1}


def test_another_selection_replaces_the_one_that_it_meets() -> None:
    found = after(after(Generations(), A), B)
    assert numbers(found) == {"a+b": 2}
    assert successor(found, generation(A)) == found.current[0]
    assert successor(found, generation(B)) is None


def test_selections_that_do_not_meet_exist_beside_each_other() -> None:
    found = after(after(Generations(), A), OTHER)
    assert sorted(numbers(found)) == ["a", "x"]
    assert successor(found, generation(A)) is None
    found = after(found, B)
    assert sorted(numbers(found)) == ["a+b", "x"]


def test_a_replaced_selection_is_refused_while_engines_of_the_new_one_live() -> None:
    found = after(after(Generations(), A), B)
    with pytest.raises(ConfigError, match="engines with that one are running"):
        after(found, A, living={B_ID})


def test_a_run_with_an_end_replaces_no_engine_that_runs() -> None:
    found = after(Generations(), A)
    with pytest.raises(ConfigError, match="would only replace them for a time"):
        joined(found, B, B_ID, 0, {A_ID}, "host/1", stays=False)
    assert joined(found, A, A_ID, 0, {A_ID}, "host/1", stays=False) is None
    assert joined(found, B, B_ID, 0, set(), "host/1", stays=False) is not None
    assert joined(found, B, B_ID, 5, {A_ID}, "host/1", stays=False) is not None


def test_going_back_to_an_earlier_configuration() -> None:
    found = after(after(after(Generations(), A), B), A)
    assert numbers(found) == {"a": 3}
    assert successor(found, generation(B)) == found.current[0]
    assert successor(found, generation(A)) is None


def test_configured_numbers_decide() -> None:
    found = after(Generations(), A, wanted=7)
    assert numbers(found) == {"a": 7}
    with pytest.raises(ConfigError, match="generation 7"):
        after(found, B, wanted=7)
    with pytest.raises(ConfigError, match="generation 7"):
        after(found, B, wanted=3)
    found = after(found, B, wanted=8)
    # Back again, with the new engines still there: the number says that it is meant.
    assert numbers(after(found, A, wanted=9, living={B_ID})) == {"a": 9}


def test_a_higher_number_of_the_same_selection_replaces_nobody() -> None:
    found = after(after(Generations(), A, wanted=7), A, wanted=8)
    assert numbers(found) == {"a": 8}
    assert after(found, A, wanted=7) is found
    assert successor(found, generation(A)) is None


def test_one_engine_hands_over() -> None:
    first = after(Generations(), A)
    assert claimed(first, A_ID, "other/2", ["host/1"]) is None
    found = claimed(first, A_ID, "other/2", [])
    assert found is not None
    assert found.current[0].by == "other/2"
    assert claimed(found, A_ID, "other/2", []) is None
    assert claimed(found, B_ID, "other/2", []) is None


def test_a_selection_is_replaced_even_if_that_was_forgotten() -> None:
    """The document was lost, and an engine with another selection has made it anew."""
    found = after(Generations(), B)
    assert successor(found, generation(A)) == found.current[0]
    assert successor(found, generation(OTHER)) is None
    assert successor(Generations(), generation(A)) is None


def test_damage_has_a_remedy() -> None:
    with pytest.raises(StateLostError, match="headrace state rebuild --yes"):
        decode_generations('{"format": 2, "current": [{"number"')


def test_the_document_round_trips() -> None:
    found = after(after(Generations(), A), OTHER)
    assert decode_generations(encode_generations(found)) == found
    assert decode_generations(None) == decode_generations("") == Generations()
