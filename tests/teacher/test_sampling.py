import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.teacher.sampling import join_records, largest, sample, sample_points


def distributions(seed: int, rows: int, vocabulary: int, sharpness: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(sharpness * torch.randn(rows, vocabulary, generator=generator), dim=1)


def counts(
    probabilities_NV: torch.Tensor, method: str, samples: int, document_id: str = "d", seed: int = 0
) -> np.ndarray:
    points = sample_points(
        method, samples=samples, seed=seed, document_id=document_id, positions_N=range(len(probabilities_NV))
    )
    records = sample(probabilities_NV, points)
    dense_NV = np.zeros(probabilities_NV.shape)
    rows_K = np.repeat(np.arange(len(dense_NV)), np.diff(records.offsets_S))
    dense_NV[rows_K, records.ids_K] = records.values_K
    return dense_NV


@given(st.integers(0, 999), st.integers(1, 6), st.integers(1, 80), st.integers(1, 60), st.floats(0, 8))
@settings(deadline=None, max_examples=60)
def test_systematic_counts_are_n_p_rounded_down_or_up(
    seed: int, rows: int, vocabulary: int, samples: int, sharpness: float
) -> None:
    probabilities_NV = distributions(seed, rows, vocabulary, sharpness)
    found_NV = counts(probabilities_NV, "systematic", samples)
    exact_NV = probabilities_NV.double().numpy()
    expected_NV = samples * exact_NV / exact_NV.sum(axis=1, keepdims=True)
    assert (found_NV.sum(axis=1) == samples).all()
    assert (found_NV >= np.floor(expected_NV - 1e-9)).all()
    assert (found_NV <= np.ceil(expected_NV + 1e-9)).all()


@pytest.mark.parametrize("method", ["systematic", "random"])
def test_counts_are_unbiased(method: str) -> None:
    """Over 20,000 documents the mean of N = 10 counts is within 5 standard errors of p at every id."""
    draws, samples = 20_000, 10
    probabilities_V = distributions(3, 1, 20, 2.0)
    probabilities_NV = probabilities_V.expand(draws, -1).contiguous()
    shares_NV = counts(probabilities_NV, method, samples) / samples
    p_V = probabilities_V[0].double().numpy()
    error_V = np.sqrt(p_V * (1 - p_V) / samples / draws)  # of independent draws; systematic ones vary less
    assert (np.abs(shares_NV.mean(axis=0) - p_V) < 5 * error_V + 1e-7).all()


def test_systematic_counts_vary_less_than_independent_ones() -> None:
    probabilities_NV = distributions(3, 1, 50, 1.5).expand(2000, -1).contiguous()
    spread = {method: counts(probabilities_NV, method, 25).var(axis=0).sum() for method in ("systematic", "random")}
    assert spread["systematic"] < 0.7 * spread["random"]


@pytest.mark.parametrize("method", ["systematic", "random"])
def test_points_depend_on_seed_document_and_position_alone(method: str) -> None:
    def points(positions: list[int], *, seed: int = 1, document_id: str = "a") -> np.ndarray:
        return sample_points(method, samples=5, seed=seed, document_id=document_id, positions_N=positions)

    whole = points([0, 3, 8])
    assert (np.diff(whole, axis=1) >= 0).all()
    assert ((whole >= 0) & (whole < 1)).all()
    np.testing.assert_array_equal(points([3]), whole[1:2])
    assert not np.isclose(points([0], seed=2), whole[:1]).any()
    assert not np.isclose(points([0], document_id="b"), whole[:1]).any()
    assert not np.isclose(whole[0], whole[1]).any()


def test_ids_without_probability_are_never_drawn() -> None:
    probabilities_NV = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]])
    for points in (np.array([[0.0, 0.5, 1.0]]), np.array([[0.25, 0.4999999, 0.99]])):
        assert set(sample(probabilities_NV, points).ids_K.tolist()) <= {1, 3}


def test_top_k_keeps_the_largest_with_their_mass() -> None:
    probabilities_NV = distributions(1, 4, 30, 2.0)
    records = largest(probabilities_NV, 5)
    for row in range(4):
        ids = records.ids_K[records.offsets_S[row] : records.offsets_S[row + 1]]
        assert sorted(ids) == ids.tolist() == sorted(probabilities_NV[row].topk(5).indices.tolist())
    rows_K = np.repeat(np.arange(4), 5)
    np.testing.assert_allclose(records.values_K, probabilities_NV.numpy()[rows_K, records.ids_K], rtol=1e-3)


def test_records_of_parts_are_records_of_the_whole() -> None:
    probabilities_NV = distributions(1, 5, 30, 2.0)
    whole, parts = largest(probabilities_NV, 3), [largest(probabilities_NV[:2], 3), largest(probabilities_NV[2:], 3)]
    joined = join_records(parts)
    np.testing.assert_array_equal(joined.offsets_S, whole.offsets_S)
    np.testing.assert_array_equal(joined.ids_K, whole.ids_K)
    np.testing.assert_array_equal(joined.values_K, whole.values_K)
