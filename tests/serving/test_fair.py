"""Turns are even between clients and between requests, and nothing is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from difflm.serving.fair import FairQueue, Turns


def popped(queue: FairQueue[str]) -> list[str]:
    return [queue.pop() for _ in range(len(queue))]


def filled(*items: tuple[str, int, str, str]) -> FairQueue[str]:
    queue: FairQueue[str] = FairQueue()
    for item, cost, client, request in items:
        queue.push(item, cost=cost, client=client, request=request)
    return queue


def test_one_request_is_served_in_order() -> None:
    assert popped(filled(*((str(i), 10, "a", "r") for i in range(5)))) == list("01234")


def test_a_client_that_comes_later_does_not_wait_for_all_of_an_earlier_one() -> None:
    items = [(f"a{i}", 10, "a", f"r{i}") for i in range(4)] + [(f"b{i}", 10, "b", f"s{i}") for i in range(2)]
    assert popped(filled(*items)) == ["a0", "b0", "a1", "b1", "a2", "a3"]


def test_a_request_of_many_answers_does_not_hold_up_another_one_of_the_same_client() -> None:
    items = [(f"big{i}", 10, "a", "big") for i in range(3)] + [("small", 10, "a", "small")]
    assert popped(filled(*items)) == ["big0", "small", "big1", "big2"]


def test_turns_are_counted_in_tokens() -> None:
    long = [(f"long{i}", 30, "a", "r") for i in range(2)]
    short = [(f"short{i}", 10, "b", "s") for i in range(4)]
    assert popped(filled(*long, *short)) == ["long0", "short0", "short1", "short2", "long1", "short3"]


def test_who_comes_back_has_no_advantage_over_who_waits() -> None:
    queue = filled(("a0", 100, "a", "r"), ("b0", 10, "b", "s"), ("b1", 10, "b", "s"))
    assert queue.pop() == "a0"
    queue.push("a1", cost=100, client="a", request="again")  # under another request, at once
    assert popped(queue) == ["b0", "b1", "a1"]


def test_what_was_long_ago_is_forgotten() -> None:
    turns = Turns()
    for key in ("a", "b"):
        turns.come(key)
    turns.serve("a", 5)
    turns.leave("a")
    assert turns.ends == {"a": 5.0}
    turns.serve("b", 50)
    turns.serve("b", 50)
    turns.leave("b")
    assert turns.ends == {}


@given(
    st.lists(st.tuples(st.integers(1, 50), st.sampled_from("abc"), st.sampled_from("rs"), st.booleans()), max_size=30)
)
def test_every_item_comes_out_once_or_is_removed(given_items: list[tuple[int, str, str, bool]]) -> None:
    queue: FairQueue[tuple[int]] = FairQueue()
    items = [(number,) for number in range(len(given_items))]
    for item, (cost, client, request, _) in zip(items, given_items, strict=True):
        queue.push(item, cost=cost, client=client, request=request)
    assert queue.tokens == sum(cost for cost, *_ in given_items)
    kept = []
    for item, (_, client, request, removed) in zip(items, given_items, strict=True):
        if removed:
            assert queue.remove(item, client=client, request=request)
            assert not queue.remove(item, client=client, request=request)
        else:
            kept.append(item)
    order = []
    while queue:
        head = queue.head()
        order.append(queue.pop())
        assert order[-1] is head
    assert sorted(order) == kept
    assert queue.tokens == 0
    for key in {(client, request) for _, client, request, _ in given_items}:
        mine = [item for item in order if given_items[item[0]][1:3] == key]
        assert mine == sorted(mine)


@given(st.lists(st.integers(1, 20), min_size=20, max_size=40), st.lists(st.integers(1, 20), min_size=20, max_size=40))
def test_while_both_wait_neither_gets_more_than_an_item_ahead(left: list[int], right: list[int]) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for client, costs in (("a", left), ("b", right)):
        for cost in costs:
            queue.push((client, cost), cost=cost, client=client, request=client)
    had, count = {"a": 0, "b": 0}, {"a": len(left), "b": len(right)}
    while count["a"] and count["b"]:
        client, cost = queue.pop()
        had[client] += cost
        count[client] -= 1
        assert abs(had["a"] - had["b"]) <= 20
