import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.contract import ConfigurationError, StageBug
from stillhouse.losses import DistillationLoss, HiddenCosineLoss, LogitLoss, Targets, build_loss
from stillhouse.recipe import DistillationConfig


def random_targets(
    B: int, C: int, T: int, D: int, *, seed: int, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, Targets]:
    generator = torch.Generator().manual_seed(seed)
    lengths_B = torch.randint(1, T + 1, (B,), generator=generator)
    lengths_B[0] = T
    mask_BT = (torch.arange(T)[None, :] < lengths_B[:, None]).long()
    logits_BC = torch.randn(B, C, generator=generator, dtype=dtype)
    hidden_BTD = torch.randn(B, T, D, generator=generator, dtype=dtype)
    targets = Targets(
        labels_B=torch.randint(0, C, (B,), generator=generator),
        mask_BT=mask_BT,
        teacher_logits_BC=torch.randn(B, C, generator=generator, dtype=dtype),
        teacher_hidden_BTD=torch.randn(B, T, D, generator=generator, dtype=dtype),
    )
    return logits_BC, hidden_BTD, targets


def part(targets: Targets, rows: slice) -> Targets:
    assert targets.teacher_logits_BC is not None
    assert targets.teacher_hidden_BTD is not None
    return Targets(
        labels_B=targets.labels_B[rows],
        mask_BT=targets.mask_BT[rows],
        teacher_logits_BC=targets.teacher_logits_BC[rows],
        teacher_hidden_BTD=targets.teacher_hidden_BTD[rows],
    )


def gradient_of_logits(loss: DistillationLoss, logits_BC: torch.Tensor, targets: Targets) -> torch.Tensor:
    logits_BC = logits_BC.clone().requires_grad_()
    loss(logits_BC, None, targets, num_sequences=len(logits_BC)).total.backward()
    assert logits_BC.grad is not None
    return logits_BC.grad


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
def test_gradient_is_the_documented_one(alpha: float, temperature: float) -> None:
    logits_BC, _, targets = random_targets(5, 4, 3, 2, seed=1)
    assert targets.teacher_logits_BC is not None
    loss = DistillationLoss(DistillationConfig(alpha=alpha, temperature=temperature))
    p_BC = logits_BC.softmax(-1)
    onehot_BC = torch.nn.functional.one_hot(targets.labels_B, 4)
    soft_BC = (logits_BC / temperature).softmax(-1) - (targets.teacher_logits_BC / temperature).softmax(-1)
    expected_BC = (alpha * (p_BC - onehot_BC) + (1 - alpha) * temperature * soft_BC) / 5
    torch.testing.assert_close(gradient_of_logits(loss, logits_BC, targets), expected_BC, rtol=1e-10, atol=1e-12)


def test_value_is_the_documented_one() -> None:
    logits_BC, hidden_BTD, targets = random_targets(6, 3, 4, 5, seed=2)
    assert targets.teacher_logits_BC is not None
    assert targets.teacher_hidden_BTD is not None
    value = DistillationLoss(DistillationConfig(alpha=0.3, temperature=2.0, hidden_weight=0.7))(
        logits_BC, hidden_BTD, targets, num_sequences=6
    )
    ce = kd = hidden = 0.0
    for i in range(6):
        p = [math.exp(z) for z in logits_BC[i].tolist()]
        ce -= math.log(p[int(targets.labels_B[i])] / sum(p))
        s = [math.exp(z / 2) for z in logits_BC[i].tolist()]
        t = [math.exp(z / 2) for z in targets.teacher_logits_BC[i].tolist()]
        kd += 4 * sum(b / sum(t) * math.log((b / sum(t)) / (a / sum(s))) for a, b in zip(s, t, strict=True))
        distances = []
        for j in range(int(targets.mask_BT[i].sum())):
            a_D, b_D = hidden_BTD[i, j], targets.teacher_hidden_BTD[i, j]
            distances.append(1 - float(a_D @ b_D / (a_D.norm() * b_D.norm())))
        hidden += sum(distances) / len(distances)
    assert {name: float(term) for name, term in value.terms.items()} == pytest.approx(
        {"ce": ce / 6, "kd": kd / 6, "hidden": hidden / 6}, rel=1e-9
    )
    assert float(value.total) == pytest.approx((0.3 * ce + 0.7 * kd + 0.7 * hidden) / 6, rel=1e-9)


def test_gradcheck_in_float64() -> None:
    logits_BC, hidden_BTD, targets = random_targets(3, 4, 3, 5, seed=3)
    loss = DistillationLoss(DistillationConfig(alpha=0.4, temperature=3.0, hidden_weight=0.5))
    assert torch.autograd.gradcheck(
        lambda logits, hidden: loss(logits, hidden, targets, num_sequences=3).total,
        (logits_BC.requires_grad_(), hidden_BTD.requires_grad_()),
    )


def test_temperature_squared_keeps_the_gradient_level() -> None:
    """From T = 1 to 8 the norm of the soft gradient stays within a factor of 2; without T^2 it falls 30-fold."""
    logits_BC, _, targets = random_targets(256, 10, 1, 1, seed=4)
    norms = {
        T: gradient_of_logits(DistillationLoss(DistillationConfig(alpha=0, temperature=T)), logits_BC, targets).norm()
        for T in (1.0, 2.0, 4.0, 8.0)
    }
    for temperature, norm in norms.items():
        assert 0.5 < norm / norms[1.0] < 2.0, f"T = {temperature}"
    assert norms[8.0] / 64 < norms[1.0] / 30


@settings(deadline=None, max_examples=30)
@given(cuts=st.sets(st.integers(1, 11)), seed=st.integers(0, 10_000))
def test_micro_batches_add_up_to_the_gradient_of_one_batch(cuts: set[int], seed: int) -> None:
    logits_BC, hidden_BTD, targets = random_targets(12, 3, 4, 5, seed=seed, dtype=torch.float32)
    loss = DistillationLoss(DistillationConfig(alpha=0.5, temperature=2.0, hidden_weight=0.3))
    whole = [logits_BC.clone().requires_grad_(), hidden_BTD.clone().requires_grad_()]
    loss(whole[0], whole[1], targets, num_sequences=12).total.backward()
    parts = [logits_BC.clone().requires_grad_(), hidden_BTD.clone().requires_grad_()]
    edges = [0, *sorted(cuts), 12]
    for start, stop in itertools.pairwise(edges):
        rows = slice(start, stop)
        loss(parts[0][rows], parts[1][rows], part(targets, rows), num_sequences=12).total.backward()
    for one, many in zip(whole, parts, strict=True):
        torch.testing.assert_close(one.grad, many.grad, rtol=1e-5, atol=1e-8)


finite_logits = st.lists(st.floats(-30, 30), min_size=4, max_size=4)


@settings(deadline=None)
@given(student=finite_logits, teacher=finite_logits, temperature=st.floats(0.25, 20), shift=st.floats(-50, 50))
def test_divergence_is_a_divergence(
    student: list[float], teacher: list[float], temperature: float, shift: float
) -> None:
    loss = LogitLoss(alpha=0.0, temperature=temperature)
    student_BC, teacher_BC = (torch.tensor([z], dtype=torch.float64) for z in (student, teacher))
    label_B = torch.tensor([0])
    kd = float(loss.terms(student_BC, label_B, teacher_BC)["kd"])
    scale = temperature**2
    assert kd >= -1e-12 * scale
    assert abs(float(loss.terms(teacher_BC, label_B, teacher_BC)["kd"])) <= 1e-12 * scale
    shifted = float(loss.terms(student_BC + shift, label_B, teacher_BC - shift)["kd"])
    assert shifted == pytest.approx(kd, rel=1e-6, abs=1e-9 * scale)


@settings(deadline=None)
@given(noise=st.floats(-1e4, 1e4), seed=st.integers(0, 1000))
def test_hidden_term_ignores_padding_and_length_of_vectors(noise: float, seed: int) -> None:
    _, hidden_BTD, targets = random_targets(4, 2, 6, 3, seed=seed)
    assert targets.teacher_hidden_BTD is not None
    loss, padding_BT1 = HiddenCosineLoss(weight=1.0), (1 - targets.mask_BT)[..., None]
    term = loss.term(hidden_BTD, targets.teacher_hidden_BTD, targets.mask_BT)
    noisy = loss.term(hidden_BTD + noise * padding_BT1, targets.teacher_hidden_BTD * 7, targets.mask_BT)
    torch.testing.assert_close(term, noisy, rtol=1e-7, atol=1e-9)
    assert 0 <= float(term) <= 2 * 4
    assert float(loss.term(hidden_BTD, hidden_BTD * 3, targets.mask_BT)) == pytest.approx(0, abs=1e-9)


def test_hidden_states_of_other_width_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="3 wide and the teacher 5"):
        HiddenCosineLoss(weight=1.0).term(torch.ones(1, 2, 3), torch.ones(1, 2, 5), torch.ones(1, 2))


def test_control_arm_is_the_cross_entropy_whatever_is_configured() -> None:
    logits_BC, _, targets = random_targets(4, 3, 2, 2, seed=5)
    loss = build_loss(DistillationConfig(alpha=0.2, hidden_weight=1.0), "sft")
    value = loss(logits_BC, None, targets, num_sequences=4)
    assert not loss.needs_teacher
    assert value.terms.keys() == {"ce"}
    assert value.total == torch.nn.functional.cross_entropy(logits_BC, targets.labels_B)


def test_missing_signal_is_a_bug_and_not_a_silent_zero() -> None:
    logits_BC, hidden_BTD, targets = random_targets(4, 3, 2, 2, seed=6)
    bare = Targets(labels_B=targets.labels_B, mask_BT=targets.mask_BT)
    with pytest.raises(StageBug, match="logits"):
        build_loss(DistillationConfig(), "kd")(logits_BC, None, bare, num_sequences=4)
    with pytest.raises(StageBug, match="hidden"):
        build_loss(DistillationConfig(alpha=1, hidden_weight=1), "kd")(logits_BC, hidden_BTD, bare, num_sequences=4)
