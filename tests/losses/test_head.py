import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.contract import ConfigurationError, DataRejected, StageBug
from stillhouse.losses import Head, HeadLoss, LogitLoss, SparseTargets, TeacherStates
from stillhouse.recipe import Divergence

N, V, D, E = 7, 9, 3, 4


def random_head(V: int, D: int, *, seed: int, vocabulary: int | None = None) -> Head:
    generator = torch.Generator().manual_seed(seed)
    weight_VD = torch.randn(V, D, generator=generator, dtype=torch.float64)
    bias_V = torch.randn(V, generator=generator, dtype=torch.float64)
    return Head(weight_VD=weight_VD.requires_grad_(), bias_V=bias_V.requires_grad_(), vocabulary=vocabulary or V)


def random_teacher(*, live: bool, V: int, seed: int) -> TeacherStates | SparseTargets:
    generator = torch.Generator().manual_seed(seed)
    hidden_NE = torch.randn(N, E, generator=generator, dtype=torch.float64)
    if live:
        return TeacherStates(hidden_NE=hidden_NE, head=random_head(V, E, seed=seed))
    return SparseTargets(
        offsets_S=torch.arange(N + 1) * 2,
        ids_K=torch.stack([torch.arange(N) % V, (torch.arange(N) + 1) % V], dim=1).flatten(),
        probabilities_K=torch.rand(N, 2, generator=generator).softmax(-1).flatten(),
    )


def random_student(*, seed: int, vocabulary: int | None = None) -> tuple[torch.Tensor, Head, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed + 1)
    hidden_ND = torch.randn(N, D, generator=generator, dtype=torch.float64).requires_grad_()
    labels_N = torch.randint(0, vocabulary or V, (N,), generator=generator)
    labels_N[2] = -100
    return hidden_ND, random_head(V, D, seed=seed, vocabulary=vocabulary), labels_N


def dense_logits(hidden_ND: torch.Tensor, head: Head, vocabulary: int) -> torch.Tensor:
    assert head.bias_V is not None
    return (hidden_ND @ head.weight_VD.T + head.bias_V)[:, :vocabulary]


@settings(deadline=None, max_examples=120)
@given(
    divergence=st.sampled_from(["forward-kl", "reverse-kl", "jsd", "skew-kl", "tvd"]),
    teacher=st.sampled_from(["none", "sparse", "live"]),
    alpha=st.sampled_from([0.0, 0.3, 1.0]),
    temperature=st.sampled_from([1.0, 2.5]),
    chunk=st.integers(1, 3 * N * V),
    vocabulary=st.sampled_from([None, 6]),
    seed=st.integers(0, 1000),
)
def test_every_combination_is_the_dense_reference(
    divergence: Divergence,
    teacher: str,
    alpha: float,
    temperature: float,
    chunk: int,
    vocabulary: int | None,
    seed: int,
) -> None:
    if divergence == "reverse-kl" and teacher == "sparse":
        return
    logit = LogitLoss(alpha=alpha, temperature=temperature, divergence=divergence, mixture=0.3)
    hidden_ND, head, labels_N = random_student(seed=seed, vocabulary=vocabulary)
    size = vocabulary or V
    signal = None if teacher == "none" else random_teacher(live=teacher == "live", V=size, seed=seed)
    parts = HeadLoss(logit=logit, chunk_elements=chunk)(hidden_ND, head, labels_N, signal)
    live = isinstance(signal, TeacherStates)
    known = dense_logits(signal.hidden_NE, signal.head, size).detach() if live else signal
    terms = logit.terms(dense_logits(hidden_ND, head, size), labels_N, None if alpha == 1 else known)
    expected = torch.stack([logit.weights[name] * term for name, term in terms.items()]).sum()
    torch.testing.assert_close(parts.total, expected)
    torch.testing.assert_close(parts.ce, terms["ce"].detach())
    assert (parts.kd is None) == ("kd" not in terms)
    if parts.kd is not None:
        torch.testing.assert_close(parts.kd, terms["kd"].detach())
    leaves = [hidden_ND, head.weight_VD, head.bias_V]
    for one, other in zip(
        torch.autograd.grad(2 * parts.total, leaves), torch.autograd.grad(2 * expected, leaves), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("divergence", ["forward-kl", "reverse-kl", "jsd", "skew-kl", "tvd"])
def test_gradcheck_with_a_live_teacher(divergence: Divergence) -> None:
    hidden_ND, head, labels_N = random_student(seed=1)
    teacher = random_teacher(live=True, V=V, seed=1)
    loss = HeadLoss(logit=LogitLoss(alpha=0.3, temperature=2.0, divergence=divergence), chunk_elements=2 * V)

    def total(hidden_ND: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor) -> torch.Tensor:
        return loss(hidden_ND, Head(weight_VD=weight_VD, bias_V=bias_V, vocabulary=V), labels_N, teacher).total

    assert head.bias_V is not None
    assert torch.autograd.gradcheck(total, (hidden_ND, head.weight_VD, head.bias_V))


@pytest.mark.parametrize("divergence", ["forward-kl", "reverse-kl", "jsd"])
def test_padding_vocabulary_of_the_teacher_leaks_no_mass(divergence: Divergence) -> None:
    """A teacher with more rows than tokens, whose padding would win every softmax, teaches the same."""
    hidden_ND, head, labels_N = random_student(seed=2)
    teacher = random_teacher(live=True, V=V, seed=2)
    assert isinstance(teacher, TeacherStates)
    assert teacher.head.bias_V is not None
    padded = Head(
        weight_VD=torch.cat([teacher.head.weight_VD, torch.ones(5, E, dtype=torch.float64)]),
        bias_V=torch.cat([teacher.head.bias_V, torch.full((5,), 50.0, dtype=torch.float64)]),
        vocabulary=V + 5,
    )
    loss = HeadLoss(logit=LogitLoss(alpha=0.0, temperature=2.0, divergence=divergence))
    parts = loss(hidden_ND, head, labels_N, TeacherStates(hidden_NE=teacher.hidden_NE, head=padded))
    expected = loss(hidden_ND, head, labels_N, teacher)
    torch.testing.assert_close(parts.total, expected.total)
    hint = torch.autograd.grad(parts.total, hidden_ND)[0]
    torch.testing.assert_close(hint, torch.autograd.grad(expected.total, hidden_ND)[0])


def test_a_smaller_teacher_says_nothing_about_tokens_that_it_lacks() -> None:
    hidden_ND, head, labels_N = random_student(seed=3, vocabulary=V)
    teacher = random_teacher(live=True, V=V - 2, seed=3)
    loss = HeadLoss(logit=LogitLoss(alpha=0.0, temperature=2.0))
    parts = loss(hidden_ND, head, labels_N.clamp(max=V - 3), teacher)
    gradient_VD, gradient_V = torch.autograd.grad(parts.total, [head.weight_VD, head.bias_V])
    assert not gradient_VD[V - 2 :].any()
    assert not gradient_V[V - 2 :].any()
    assert gradient_VD[: V - 2].any()


def test_no_gradient_reaches_the_teacher() -> None:
    hidden_ND, head, labels_N = random_student(seed=4)
    teacher = random_teacher(live=True, V=V, seed=4)
    assert isinstance(teacher, TeacherStates)
    HeadLoss(logit=LogitLoss(alpha=0.5, temperature=2.0))(hidden_ND, head, labels_N, teacher).total.backward()
    assert teacher.head.weight_VD.requires_grad
    assert teacher.head.weight_VD.grad is None
    assert head.weight_VD.grad is not None


def test_without_gradients_the_values_are_the_same() -> None:
    hidden_ND, head, labels_N = random_student(seed=5)
    for divergence in ("forward-kl", "jsd"):
        loss = HeadLoss(logit=LogitLoss(alpha=0.5, temperature=2.0, divergence=divergence))
        teacher = random_teacher(live=False, V=V, seed=5)
        with torch.no_grad():
            quiet = loss(hidden_ND, head, labels_N, teacher)
        assert not quiet.total.requires_grad
        torch.testing.assert_close(quiet.total, loss(hidden_ND, head, labels_N, teacher).total.detach())


@pytest.mark.parametrize("divergence", ["forward-kl", "jsd"])
@pytest.mark.parametrize("live", [False, True])
def test_a_teacher_of_other_positions_is_a_bug(divergence: Divergence, live: bool) -> None:
    hidden_ND, head, labels_N = random_student(seed=7)
    loss = HeadLoss(logit=LogitLoss(alpha=0.5, temperature=2.0, divergence=divergence))
    with pytest.raises(StageBug, match="7 positions, the student"):
        loss(hidden_ND[1:], head, labels_N[1:], random_teacher(live=live, V=V, seed=7))


def test_what_can_not_be_computed_is_refused() -> None:
    hidden_ND, head, labels_N = random_student(seed=6)
    reverse = HeadLoss(logit=LogitLoss(alpha=0.5, temperature=2.0, divergence="reverse-kl"))
    with pytest.raises(ConfigurationError, match="reverse-kl"):
        reverse(hidden_ND, head, labels_N, random_teacher(live=False, V=V, seed=6))
    with pytest.raises(DataRejected, match="labels name tokens outside of the vocabulary of 2"):
        reverse(hidden_ND, head, torch.full_like(labels_N, 2), random_teacher(live=True, V=2, seed=6))
    jsd = HeadLoss(logit=LogitLoss(alpha=0.5, temperature=2.0, divergence="jsd"))
    small = Head(weight_VD=head.weight_VD, bias_V=None, vocabulary=4)
    with pytest.raises(DataRejected, match="records name tokens outside"):
        jsd(hidden_ND, small, labels_N.clamp(max=3), random_teacher(live=False, V=V, seed=6))
