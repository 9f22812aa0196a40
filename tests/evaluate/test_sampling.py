"""Samples look like the whole, and do not depend on the order of the file."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge.evaluate.sampling import allocate, detectable, labels_of, stratified
from forge.results.records import ItemRecord

SIZES = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 300), min_size=1)


def _items(labels: str, *, task: str = "t") -> list[ItemRecord]:
    return [
        ItemRecord.of(task, f"i{n}", question=f"q{n}", options=("a", "b"), gold=0, label=label)
        for n, label in enumerate(labels)
    ]


@given(SIZES, st.data())
def test_no_share_differs_from_the_exact_one_by_a_whole_item(
    sizes: dict[str, int], data: st.DataObject
) -> None:
    total = sum(sizes.values())
    count = data.draw(st.integers(0, total))
    shares = allocate(sizes, count)
    assert sum(shares.values()) == count
    for key, size in sizes.items():
        assert 0 <= shares[key] <= size
        assert total == 0 or abs(shares[key] - count * size / total) < 1


def test_the_largest_remainders_get_what_is_left() -> None:
    assert allocate({"yes": 276, "no": 169, "maybe": 55}, 10) == {"yes": 6, "no": 3, "maybe": 1}
    assert allocate({"yes": 276, "no": 169, "maybe": 55}, 100) == {"yes": 55, "no": 34, "maybe": 11}
    assert allocate({"a": 1, "b": 1, "c": 1}, 2) == {"a": 1, "b": 1, "c": 0}
    with pytest.raises(ValueError, match="4 items cannot be taken of 3"):
        allocate({"a": 3}, 4)


def test_a_sorted_file_gives_the_sample_of_a_shuffled_one() -> None:
    items = _items("y" * 276 + "n" * 169 + "m" * 55)
    shuffled = items.copy()
    random.Random(1).shuffle(shuffled)
    sample = stratified(items, 100, seed=0)
    assert stratified(shuffled, 100, seed=0) == sample
    assert labels_of(sample) == {"m": 11, "n": 34, "y": 55}
    assert stratified(items, 100, seed=1) != sample


def test_a_sample_is_spread_over_a_label_and_not_its_beginning() -> None:
    items = _items("y" * 1000)
    numbers = [int(item.item_id[1:]) for item in stratified(items, 200, seed=0)]
    quarters = Counter(number // 250 for number in numbers)
    # Each has 50 expected, with a standard deviation of 5.5.
    assert all(30 <= quarters[quarter] <= 70 for quarter in range(4))


def test_one_item_more_leaves_the_others_in_their_order() -> None:
    items = _items("y" * 40 + "n" * 40)
    before = {item.item_id for item in stratified(items, 20, seed=0)}
    after = {item.item_id for item in stratified(items[1:], 20, seed=0)}
    assert len(before - after) <= 1


def test_a_larger_sample_holds_the_smaller_one_of_each_label() -> None:
    items = _items("yn" * 50)
    small = {item.item_id for item in stratified(items, 20, seed=0)}
    large = {item.item_id for item in stratified(items, 40, seed=0)}
    assert small < large


def test_all_are_taken_if_there_are_no_more() -> None:
    items = _items("ynm")
    assert len(stratified(items, 10, seed=0)) == 3


def test_what_a_sample_can_show_is_said_in_points() -> None:
    assert detectable(100) == (
        "100 items can show a difference of 12.4 points or more between two models that disagree "
        "on 20% of them (power 80 %, level 5 %)."
    )
    assert detectable(1) == "1 item cannot show any difference between two models."
