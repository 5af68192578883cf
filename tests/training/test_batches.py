import math

from hypothesis import given
from hypothesis import strategies as st

from stillhouse.training.batches import batch_plan

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=300)


@given(lengths=lengths, batch_size=st.integers(1, 40), seed=st.integers(0, 99))
def test_each_epoch_holds_every_sequence_once(lengths: list[int], batch_size: int, seed: int) -> None:
    plan = batch_plan(lengths, batch_size=batch_size, epochs=2, seed=seed)
    steps = math.ceil(len(lengths) / batch_size)
    for epoch in (plan[:steps], plan[steps:]):
        assert sorted(index for batch in epoch for index in batch) == list(range(len(lengths)))
        assert sum(len(batch) == batch_size for batch in epoch) == len(lengths) // batch_size


@given(lengths=lengths, epochs=st.floats(0.05, 3))
def test_a_fraction_of_an_epoch_is_the_start_of_a_whole_one(lengths: list[int], epochs: float) -> None:
    plan = batch_plan(lengths, batch_size=7, epochs=epochs, seed=3)
    assert len(plan) == math.ceil(epochs * math.ceil(len(lengths) / 7))
    assert plan == batch_plan(lengths, batch_size=7, epochs=3, seed=3)[: len(plan)]


def test_batches_hold_sequences_of_similar_length_in_no_order_of_length() -> None:
    lengths = [3 + (i * 37) % 50 for i in range(3200)]
    plan = batch_plan(lengths, batch_size=32, epochs=1, seed=0)
    widths = [max(lengths[i] for i in batch) for batch in plan]
    padded = sum(width * len(batch) for width, batch in zip(widths, plan, strict=True))
    assert padded < 1.05 * sum(lengths)
    assert widths != sorted(widths)
    assert plan != batch_plan(lengths, batch_size=32, epochs=1, seed=1)


def test_the_plan_is_the_same_today_as_ever() -> None:
    """Pinned, since a checkpoint of an older process is continued by this plan."""
    assert batch_plan([5, 1, 4, 2, 3], batch_size=2, epochs=1, seed=0) == [[0], [1, 3], [4, 2]]
