import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.contract import ConfigurationError
from stillhouse.losses import LogitLoss, SparseTargets
from stillhouse.losses.divergences import divergence_sum
from stillhouse.losses.sparse import entry_positions, select_positions, slice_positions, sparse_divergence_sum
from stillhouse.recipe import Divergence

DIVERGENCES: tuple[Divergence, ...] = ("forward-kl", "jsd", "skew-kl", "tvd")


def sparse(p_NV: torch.Tensor) -> SparseTargets:
    counts_N = (p_NV > 0).sum(1)
    return SparseTargets(
        offsets_S=torch.cat([torch.zeros(1, dtype=torch.int64), counts_N.cumsum(0)]),
        ids_K=p_NV.nonzero()[:, 1],
        probabilities_K=p_NV[p_NV > 0],
    )


def random_distributions(N: int, V: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits of a student, and a teacher's distributions with many zeros."""
    generator = torch.Generator().manual_seed(seed)
    p_NV = torch.rand(N, V, generator=generator, dtype=torch.float64)
    p_NV[torch.rand(N, V, generator=generator) < 0.5] = 0
    p_NV[:, 0] = 0.1
    return torch.randn(N, V, generator=generator, dtype=torch.float64), p_NV / p_NV.sum(1, keepdim=True)


@settings(deadline=None)
@given(
    divergence=st.sampled_from(DIVERGENCES),
    mixture=st.floats(0.05, 0.95),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    seed=st.integers(0, 10_000),
    N=st.integers(0, 5),
    V=st.integers(1, 9),
)
def test_sparse_is_dense_where_nothing_was_cut(
    divergence: Divergence, mixture: float, temperature: float, seed: int, N: int, V: int
) -> None:
    logits_NV, p_NV = random_distributions(N, V, seed=seed)
    logits_NV.requires_grad_()
    found = sparse_divergence_sum(
        logits_NV, sparse(p_NV), temperature=temperature, divergence=divergence, mixture=mixture
    )
    log_q_NV = (logits_NV / temperature).log_softmax(-1)
    expected = divergence_sum(p_NV.log(), log_q_NV, divergence=divergence, mixture=mixture)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(found, logits_NV)[0], torch.autograd.grad(expected, logits_NV)[0], rtol=1e-8, atol=1e-12
    )


def test_a_cut_tail_pulls_nowhere() -> None:
    """The gradient is ``T (m q - t)`` with m below 1, not that of a distribution that was scaled up again."""
    logits_NV, p_NV = random_distributions(4, 6, seed=1)
    logits_NV.requires_grad_()
    t_NV = 0.7 * p_NV
    kd = LogitLoss(alpha=0.0, temperature=3.0).terms(logits_NV, torch.zeros(4, dtype=torch.int64), sparse(t_NV))["kd"]
    q_NV = (logits_NV.detach() / 3).softmax(-1)
    torch.testing.assert_close(torch.autograd.grad(kd, logits_NV)[0], 3.0 * (0.7 * q_NV - t_NV))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradcheck_in_float64(divergence: Divergence) -> None:
    logits_NV, p_NV = random_distributions(3, 5, seed=2)
    labels_N = torch.tensor([1, -100, 4])
    loss = LogitLoss(alpha=0.4, temperature=2.0, divergence=divergence, mixture=0.3)

    def total(logits_NV: torch.Tensor) -> torch.Tensor:
        terms = loss.terms(logits_NV, labels_N, sparse(0.9 * p_NV))
        return loss.weights["ce"] * terms["ce"] + loss.weights["kd"] * terms["kd"]

    assert torch.autograd.gradcheck(total, logits_NV.requires_grad_())


def test_reverse_kl_is_refused() -> None:
    logits_NV, p_NV = random_distributions(2, 3, seed=3)
    with pytest.raises(ConfigurationError, match="reverse-kl needs the teacher's whole distribution"):
        sparse_divergence_sum(logits_NV, sparse(p_NV), temperature=1.0, divergence="reverse-kl", mixture=0.5)


@given(
    lengths=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    data=st.data(),
)
def test_positions_are_selected_with_their_entries(lengths: list[int], data: st.DataObject) -> None:
    total = sum(lengths)
    targets = SparseTargets(
        offsets_S=torch.tensor([0, *lengths]).cumsum(0),
        ids_K=torch.arange(total),
        probabilities_K=torch.arange(total, dtype=torch.float32),
    )
    entries = torch.arange(total).split(lengths)
    assert entry_positions(targets).tolist() == [i for i, length in enumerate(lengths) for _ in range(length)]
    chosen = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=6))
    picked = select_positions(targets, torch.tensor(chosen, dtype=torch.int64))
    expected = [ids for i in chosen for ids in entries[i].tolist()]
    assert (picked.ids_K.tolist(), picked.probabilities_K.tolist()) == (expected, expected)
    assert picked.offsets_S.diff().tolist() == [lengths[i] for i in chosen]
    start = data.draw(st.integers(0, len(lengths)))
    stop = data.draw(st.integers(start, len(lengths)))
    part = slice_positions(targets, start, stop)
    assert part.offsets_S.diff().tolist() == lengths[start:stop]
    assert part.ids_K.tolist() == [ids for i in range(start, stop) for ids in entries[i].tolist()]
