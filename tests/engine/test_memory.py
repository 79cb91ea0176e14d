"""The arena: no two values that live at once share a place."""

from hypothesis import given
from hypothesis import strategies as st

from gossamer.engine.memory import LINE, place


def test_a_chain_goes_back_and_forth_between_two_places():
    steps = [([i], i + 1) for i in range(6)]
    offsets, length = place(dict.fromkeys(range(7), 100), steps)
    assert sorted(set(offsets.values())) == [0, 112]
    assert length == 224


@given(st.data())
def test_living_values_never_overlap(data):
    count = data.draw(st.integers(1, 12))
    sizes = {v: data.draw(st.integers(1, 100)) for v in range(count)}
    steps = []
    for written in range(1, count):
        reads = data.draw(st.lists(st.integers(0, written - 1), min_size=1, max_size=3))
        steps.append((reads, written))
    offsets, length = place(sizes, steps)
    touched = {v: [i for i, (reads, w) in enumerate(steps) if v in (*reads, w)] for v in offsets}
    for a in offsets:
        assert offsets[a] % LINE == 0
        assert offsets[a] + sizes[a] <= length
        for b in offsets:
            apart = max(touched[a]) < min(touched[b]) or max(touched[b]) < min(touched[a])
            disjoint = offsets[a] + sizes[a] <= offsets[b] or offsets[b] + sizes[b] <= offsets[a]
            assert a == b or apart or disjoint
