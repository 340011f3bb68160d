"""The best mixture under a budget: against trying all of them."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvant.quant.allocate import Choice, Front, Item, Mixture, NotReachableError

BYTES = st.integers(1, 40)
COSTS = st.integers(0, 1000).map(lambda n: n / 8)  # sums of these are exact


@st.composite
def choices(draw: st.DrawFn) -> tuple[Choice, ...]:
    count = draw(st.integers(1, 4))
    unit = draw(st.sampled_from([1, 7, 64]))
    return tuple(Choice(f"P{i}", unit * draw(BYTES), draw(COSTS)) for i in range(count))


ITEMS = st.lists(choices(), min_size=1, max_size=5).map(
    lambda own: [Item((f"t{i}",), c) for i, c in enumerate(own)]
)


def all_mixtures(items: list[Item]) -> list[Mixture]:
    return [Mixture(picked) for picked in itertools.product(*(i.choices for i in items))]


@given(ITEMS, st.integers(0, 12_000))
def test_least_cost_within_bytes(items: list[Item], budget: int) -> None:
    allowed = [m for m in all_mixtures(items) if m.nbytes <= budget]
    front = Front(items)
    if not allowed:
        with pytest.raises(NotReachableError) as error:
            front.within_bytes(budget)
        assert error.value.least == min(m.nbytes for m in all_mixtures(items))
        return
    found = front.within_bytes(budget)
    assert found.nbytes <= budget
    assert found.cost == min(m.cost for m in allowed)
    assert found.nbytes == min(m.nbytes for m in allowed if m.cost == found.cost)
    for choice, item in zip(found.choices, items, strict=True):
        assert choice in item.choices


@given(ITEMS, st.integers(0, 5000).map(lambda n: n / 8))
def test_least_bytes_within_cost(items: list[Item], bound: float) -> None:
    allowed = [m for m in all_mixtures(items) if m.cost <= bound]
    front = Front(items)
    if not allowed:
        with pytest.raises(NotReachableError) as error:
            front.within_cost(bound)
        assert error.value.least == min(m.cost for m in all_mixtures(items))
        return
    found = front.within_cost(bound)
    assert found.cost <= bound
    assert found.nbytes == min(m.nbytes for m in allowed)


@given(ITEMS, st.integers(0, 12_000), st.integers(1, 12))
def test_coarse_units_never_exceed_and_waste_little(
    items: list[Item], budget: int, units: int
) -> None:
    """What is left over has no use: no tensor alone, no pair, would gain by it."""
    front = Front(items, most_units=units)
    if budget < front.least_bytes:
        with pytest.raises(NotReachableError):
            front.within_bytes(budget)
        return
    found = front.within_bytes(budget)
    assert found.nbytes <= budget
    room = budget - found.nbytes
    for item, choice in zip(items, found.choices, strict=True):
        for other in item.choices:
            if other.nbytes - choice.nbytes <= room:
                assert other.cost >= choice.cost


@given(ITEMS)
def test_ends_of_the_front(items: list[Item]) -> None:
    front, every = Front(items), all_mixtures(items)
    assert front.least_bytes == min(m.nbytes for m in every)
    assert front.least_cost == min(m.cost for m in every)
    assert front.within_bytes(front.most_bytes).cost == front.least_cost
    assert front.within_bytes(10**15).nbytes == front.most_bytes
    assert front.within_cost(math.inf).nbytes == front.least_bytes


def model(layers: int, scale: int = 1) -> list[Item]:
    """A model's shape: sizes with a large common divisor, costs that fall by about four a bit."""
    bits = {"Q2_K": 84, "Q3_K": 110, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210, "Q8_0": 272}
    items = []
    for layer in range(layers):
        for i, blocks in enumerate((64, 16, 16, 64, 256, 256, 256)):
            weight = 1.0 + ((layer * 7 + i) * 2654435761 % 97) / 9
            items.append(
                Item(
                    (f"blk.{layer}.{i}",),
                    tuple(
                        Choice(p, blocks * b * scale, weight * 4.0 ** (-b / 32))
                        for p, b in bits.items()
                    ),
                )
            )
    return items


def test_a_large_model_uses_its_budget() -> None:
    """Within a thousandth of the linear relaxation's bound, and of the room."""
    items = model(80)
    front = Front(items)
    least, most = front.least_bytes, front.most_bytes
    for share in (0.05, 0.3, 0.5, 0.9):
        budget = int(least + share * (most - least))
        found = front.within_bytes(budget)
        assert budget * 0.999 < found.nbytes <= budget
        # Any price of a byte gives a lower bound of what is possible (Lagrange).
        bound = max(
            sum(min(c.cost + price * c.nbytes for c in i.choices) for i in items) - price * budget
            for price in (10 ** (e / 40) for e in range(-400, 0))
        )
        assert bound <= found.cost <= bound * 1.02


def test_the_same_every_time_and_exact_in_any_unit() -> None:
    items = model(4)
    budget = Front(items).least_bytes * 2
    found = Front(items).within_bytes(budget)
    assert Front(items).within_bytes(budget) == found
    scaled = Front(model(4, scale=1024)).within_bytes(budget * 1024)
    assert [c.packing for c in scaled.choices] == [c.packing for c in found.choices]
    coarse = Front(items, most_units=64).within_bytes(budget)
    assert coarse.nbytes <= budget
    assert found.cost <= coarse.cost <= 1.1 * found.cost


def test_equal_choices() -> None:
    """Of equal bytes the cheaper, of equal both the first."""
    item = Item(("a",), (Choice("A", 5, 2.0), Choice("B", 5, 1.0), Choice("C", 5, 1.0)))
    assert Front([item]).within_bytes(5).choices[0].packing == "B"


@pytest.mark.parametrize(
    "choices",
    [(), (Choice("A", 1, -1.0),), (Choice("A", 1, math.nan),), (Choice("A", 1, math.inf),)],
)
def test_items_that_make_no_sense(choices: tuple[Choice, ...]) -> None:
    with pytest.raises(ValueError, match="a"):
        Front([Item(("a",), choices)])
