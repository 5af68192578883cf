import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.contract import DataRejected
from stillhouse.teacher.codec import Codec
from stillhouse.teacher.sampling import Records, join_records


def random_records(codec: Codec, positions: int, seed: int) -> Records:
    rng = np.random.default_rng(seed)
    sizes, ids, values = [], [], []
    for _ in range(positions):
        k = int(rng.integers(1, min(codec.samples, codec.vocabulary) + 1))
        sizes.append(k)
        spread = codec.vocabulary if rng.random() < 0.5 else k  # everywhere, or all at the start
        ids.append(np.sort(rng.choice(max(spread, k), size=k, replace=False)))
        if codec.method == "top-k":
            values.append(rng.uniform(1e-6, 1, size=k).astype(np.float16))
        else:
            values.append(1 + rng.multinomial(codec.samples - k, np.full(k, 1 / k)))
    kind = np.float16 if codec.method == "top-k" else np.int64
    return Records(
        offsets_S=np.cumsum([0, *sizes], dtype=np.int64),
        ids_K=np.concatenate([np.empty(0, dtype=np.int64), *ids]).astype(np.int64),
        values_K=np.concatenate([np.empty(0, dtype=kind), *values]).astype(kind),
    )


codecs = st.builds(
    lambda method, samples, vocabulary: Codec(method=method, samples=samples, vocabulary=vocabulary),
    st.sampled_from(["systematic", "top-k"]),
    st.integers(1, 60),
    st.one_of(st.integers(1, 70), st.sampled_from([1024, 30_522, 49_152, 262_144])),
)


def blob(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype=np.uint8)


@given(codecs, st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(0, 10_000))
@settings(deadline=None, max_examples=200)
def test_round_trip_of_several_documents(codec: Codec, positions: list[int], seed: int) -> None:
    documents = [random_records(codec, count, seed + place) for place, count in enumerate(positions)]
    found = codec.decode([blob(codec.encode(records)) for records in documents], positions)
    expected = join_records(documents)
    np.testing.assert_array_equal(found.offsets_S, expected.offsets_S)
    np.testing.assert_array_equal(found.ids_K, expected.ids_K)
    np.testing.assert_array_equal(found.values_K, expected.values_K)


@given(codecs, st.integers(1, 9), st.integers(0, 10_000), st.data())
@settings(deadline=None, max_examples=200)
def test_truncated_and_longer_bytes_are_refused(codec: Codec, positions: int, seed: int, data: st.DataObject) -> None:
    encoded = codec.encode(random_records(codec, positions, seed))
    cut = data.draw(st.integers(0, len(encoded) - 1))
    for wrong in (encoded[:cut], encoded + b"\x00", encoded + b"\x01"):
        with pytest.raises(DataRejected, match="can't be read"):
            codec.decode([blob(wrong)], [positions])


@given(codecs, st.binary(max_size=80), st.integers(0, 9))
@settings(deadline=None, max_examples=300)
def test_garbage_is_refused_or_gives_valid_records(codec: Codec, garbage: bytes, positions: int) -> None:
    try:
        records = codec.decode([blob(garbage)], [positions])
    except DataRejected:
        return
    assert len(records.offsets_S) == positions + 1
    assert ((records.ids_K >= 0) & (records.ids_K < codec.vocabulary)).all()
    for start, stop in zip(records.offsets_S[:-1], records.offsets_S[1:], strict=True):
        assert (np.diff(records.ids_K[start:stop]) > 0).all()
        if codec.method != "top-k":
            assert records.values_K[start:stop].sum() == codec.samples


def test_thirteen_ids_of_a_large_vocabulary_take_under_thirty_bytes() -> None:
    codec = Codec(method="systematic", samples=25, vocabulary=49_152)
    rng = np.random.default_rng(0)
    ids = [np.sort(rng.choice(codec.vocabulary, size=13, replace=False)) for _ in range(200)]
    records = Records(
        offsets_S=np.arange(201) * 13,
        ids_K=np.concatenate(ids).astype(np.int64),
        values_K=np.tile([13, *[1] * 12], 200).astype(np.int64),
    )
    assert len(codec.encode(records)) / 200 < 27
