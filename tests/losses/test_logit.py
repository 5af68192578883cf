import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.losses import LogitLoss
from stillhouse.losses.divergences import divergence_sum
from stillhouse.recipe import Divergence

DIVERGENCES: tuple[Divergence, ...] = ("forward-kl", "reverse-kl", "jsd", "skew-kl", "tvd")


def random_logits(N: int, V: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits_NV, teacher_NV = torch.randn(2, N, V, generator=generator, dtype=torch.float64)
    return logits_NV, teacher_NV, torch.randint(0, V, (N,), generator=generator)


def by_hand(p: list[float], q: list[float], divergence: Divergence, share: float) -> float:
    def kl(a: list[float], b: list[float]) -> float:
        return sum(x * float(torch.tensor(x / y, dtype=torch.float64).log()) for x, y in zip(a, b, strict=True) if x)

    mixed = [share * x + (1 - share) * y for x, y in zip(p, q, strict=True)]
    return {
        "forward-kl": lambda: kl(p, q),
        "reverse-kl": lambda: kl(q, p),
        "jsd": lambda: share * kl(p, mixed) + (1 - share) * kl(q, mixed),
        "skew-kl": lambda: kl(p, mixed),
        "tvd": lambda: sum(abs(x - y) for x, y in zip(p, q, strict=True)) / 2,
    }[divergence]()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("mixture", [0.1, 0.5, 0.8])
def test_value_is_the_textbook_one(divergence: Divergence, mixture: float) -> None:
    logits_NV, teacher_NV, _ = random_logits(3, 5, seed=1)
    found = divergence_sum(
        teacher_NV.log_softmax(-1), logits_NV.log_softmax(-1), divergence=divergence, mixture=mixture
    )
    rows = zip(teacher_NV.softmax(-1).tolist(), logits_NV.softmax(-1).tolist(), strict=True)
    assert float(found) == pytest.approx(sum(by_hand(p, q, divergence, mixture) for p, q in rows), rel=1e-12)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("padded", [False, True])
def test_gradcheck_in_float64(divergence: Divergence, padded: bool) -> None:
    logits_NV, teacher_NV, labels_N = random_logits(4, 5, seed=2)
    labels_N[1] = -100
    if padded:
        teacher_NV[:, 4] = -torch.inf
    loss = LogitLoss(alpha=0.3, temperature=2.0, divergence=divergence, mixture=0.3)

    def total(logits_NV: torch.Tensor) -> torch.Tensor:
        if padded:
            logits_NV = torch.cat([logits_NV[:, :4], torch.full((4, 1), -torch.inf, dtype=torch.float64)], dim=1)
        terms = loss.terms(logits_NV, labels_N.clamp(max=3), teacher_NV)
        return loss.weights["ce"] * terms["ce"] + loss.weights["kd"] * terms["kd"]

    assert torch.autograd.gradcheck(total, logits_NV.requires_grad_())


@settings(deadline=None)
@given(
    divergence=st.sampled_from(DIVERGENCES),
    mixture=st.floats(0.05, 0.95),
    temperature=st.floats(0.25, 20),
    seed=st.integers(0, 10_000),
)
def test_divergences_are_zero_at_the_teacher_and_never_negative(
    divergence: Divergence, mixture: float, temperature: float, seed: int
) -> None:
    logits_NV, teacher_NV, labels_N = random_logits(3, 6, seed=seed)
    loss = LogitLoss(alpha=0.0, temperature=temperature, divergence=divergence, mixture=mixture)
    scale = temperature**2
    assert float(loss.terms(logits_NV, labels_N, teacher_NV)["kd"]) >= -1e-12 * scale
    assert abs(float(loss.terms(logits_NV + 3, labels_N, logits_NV)["kd"])) <= 1e-12 * scale


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_padding_vocabulary_adds_nothing(divergence: Divergence, dtype: torch.dtype) -> None:
    logits_NV, teacher_NV, labels_N = (t.to(dtype) if t.is_floating_point() else t for t in random_logits(3, 5, seed=3))
    loss = LogitLoss(alpha=0.5, temperature=2.0, divergence=divergence)
    padding_NP = torch.full((3, 2), -torch.inf, dtype=dtype)
    values, gradients = [], []
    for student, teacher in (
        (logits_NV, teacher_NV),
        (torch.cat([logits_NV, padding_NP], dim=1), torch.cat([teacher_NV, padding_NP], dim=1)),
    ):
        student.requires_grad_()
        terms = loss.terms(student, labels_N, teacher)
        values.append(torch.stack(list(terms.values())).detach())
        gradients.append(torch.autograd.grad(terms["kd"], student)[0])
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(torch.cat([gradients[0], torch.zeros(3, 2, dtype=dtype)], dim=1), gradients[1])


@pytest.mark.parametrize("divergence", ["forward-kl", "jsd", "skew-kl", "tvd"])
def test_a_token_that_only_the_teacher_rules_out_leaves_a_finite_gradient(divergence: Divergence) -> None:
    logits_NV, teacher_NV, labels_N = random_logits(3, 5, seed=4)
    teacher_NV[:, 2] = -torch.inf
    kd = LogitLoss(alpha=0.5, temperature=2.0, divergence=divergence).terms(
        logits_NV.requires_grad_(), labels_N, teacher_NV
    )["kd"]
    assert kd.isfinite()
    assert torch.autograd.grad(kd, logits_NV)[0].isfinite().all()


@pytest.mark.parametrize(("divergence", "student_rules_out"), [("forward-kl", True), ("reverse-kl", False)])
def test_the_impossible_costs_infinitely_much(divergence: Divergence, student_rules_out: bool) -> None:
    logits_NV, teacher_NV, _ = random_logits(1, 4, seed=5)
    (logits_NV if student_rules_out else teacher_NV)[0, 1] = -torch.inf
    value = divergence_sum(teacher_NV.log_softmax(-1), logits_NV.log_softmax(-1), divergence=divergence, mixture=0.5)
    assert value == torch.inf


def test_rows_without_a_label_carry_neither_term() -> None:
    logits_NV, teacher_NV, labels_N = random_logits(5, 4, seed=6)
    loss = LogitLoss(alpha=0.5, temperature=2.0)
    masked_N = labels_N.clone()
    masked_N[[1, 4]] = -100
    kept = [0, 2, 3]
    found = loss.terms(logits_NV, masked_N, teacher_NV)
    expected = loss.terms(logits_NV[kept], labels_N[kept], teacher_NV[kept])
    assert {name: float(term) for name, term in found.items()} == pytest.approx(
        {name: float(term) for name, term in expected.items()}, rel=1e-12
    )


@pytest.mark.parametrize("divergence", ["forward-kl", "reverse-kl", "jsd"])
def test_temperature_squared_keeps_the_gradient_level(divergence: Divergence) -> None:
    """From T = 1 to 8 the norm of the soft gradient stays within a factor of 2; without T^2 it falls 30-fold."""
    logits_NV, teacher_NV, labels_N = random_logits(256, 10, seed=7)
    logits_NV.requires_grad_()

    def norm(temperature: float) -> float:
        loss = LogitLoss(alpha=0.0, temperature=temperature, divergence=divergence)
        return float(torch.autograd.grad(loss.terms(logits_NV, labels_N, teacher_NV)["kd"], logits_NV)[0].norm())

    for temperature in (2.0, 4.0, 8.0):
        assert 0.5 < norm(temperature) / norm(1.0) < 2.0, f"T = {temperature}"
    assert norm(8.0) / 64 < norm(1.0) / 30
