import itertools
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.contract import StageBug
from stillhouse.losses import (
    Classified,
    Count,
    DistillationLoss,
    Head,
    Insides,
    LogitLoss,
    LossValue,
    Predicted,
    SparseTargets,
    build_loss,
)
from stillhouse.models import Captured, ModelShape
from stillhouse.recipe import DistillationConfig, HiddenTerm

SHAPE = ModelShape(layers=1, width=5, heads=1)


def loss_of(*, hidden: float = 0.0, **config: Any) -> DistillationLoss:
    features = (HiddenTerm(weight=hidden),) if hidden else ()
    return build_loss(DistillationConfig(features=features, **config), "kd", student=SHAPE, teacher=SHAPE)


@dataclass(frozen=True, kw_only=True)
class Targets:
    labels_B: torch.Tensor
    mask_BT: torch.Tensor
    teacher_logits_BC: torch.Tensor
    teacher_hidden_BTD: torch.Tensor


def value_of(
    loss: DistillationLoss, logits_BC: torch.Tensor, hidden_BTD: torch.Tensor | None, targets: Targets, *, of: int
) -> LossValue:
    """Return the loss of a micro-batch of a step with ``of`` documents."""
    answer = Classified(logits_MC=logits_BC, labels_M=targets.labels_B, teacher_logits_MC=targets.teacher_logits_BC)
    insides = None
    if hidden_BTD is not None:
        insides = Insides(
            student=Captured(hidden={1: hidden_BTD}),
            teacher=Captured(hidden={1: targets.teacher_hidden_BTD}),
            segments_BT=torch.where(targets.mask_BT == 1, torch.arange(len(logits_BC))[:, None], -1),
        )
    return loss(answer, insides, count=Count(targets=of, documents=of), weights=loss.weights)


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
    return Targets(
        labels_B=targets.labels_B[rows],
        mask_BT=targets.mask_BT[rows],
        teacher_logits_BC=targets.teacher_logits_BC[rows],
        teacher_hidden_BTD=targets.teacher_hidden_BTD[rows],
    )


def gradient_of_logits(loss: DistillationLoss, logits_BC: torch.Tensor, targets: Targets) -> torch.Tensor:
    logits_BC = logits_BC.clone().requires_grad_()
    value_of(loss, logits_BC, None, targets, of=len(logits_BC)).total.backward()
    assert logits_BC.grad is not None
    return logits_BC.grad


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
def test_gradient_is_the_documented_one(alpha: float, temperature: float) -> None:
    logits_BC, _, targets = random_targets(5, 4, 3, 2, seed=1)
    loss = loss_of(alpha=alpha, temperature=temperature)
    p_BC = logits_BC.softmax(-1)
    onehot_BC = torch.nn.functional.one_hot(targets.labels_B, 4)
    soft_BC = (logits_BC / temperature).softmax(-1) - (targets.teacher_logits_BC / temperature).softmax(-1)
    expected_BC = (alpha * (p_BC - onehot_BC) + (1 - alpha) * temperature * soft_BC) / 5
    torch.testing.assert_close(gradient_of_logits(loss, logits_BC, targets), expected_BC, rtol=1e-10, atol=1e-12)


def test_value_is_the_documented_one() -> None:
    logits_BC, hidden_BTD, targets = random_targets(6, 3, 4, 5, seed=2)
    value = value_of(loss_of(alpha=0.3, temperature=2.0, hidden=0.7), logits_BC, hidden_BTD, targets, of=6)
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
    loss = loss_of(alpha=0.4, temperature=3.0, hidden=0.5)
    assert torch.autograd.gradcheck(
        lambda logits, hidden: value_of(loss, logits, hidden, targets, of=3).total,
        (logits_BC.requires_grad_(), hidden_BTD.requires_grad_()),
    )


def test_temperature_squared_keeps_the_gradient_level() -> None:
    """From T = 1 to 8 the norm of the soft gradient stays within a factor of 2; without T^2 it falls 30-fold."""
    logits_BC, _, targets = random_targets(256, 10, 1, 1, seed=4)
    norms = {
        T: gradient_of_logits(loss_of(alpha=0, temperature=T), logits_BC, targets).norm() for T in (1.0, 2.0, 4.0, 8.0)
    }
    for temperature, norm in norms.items():
        assert 0.5 < norm / norms[1.0] < 2.0, f"T = {temperature}"
    assert norms[8.0] / 64 < norms[1.0] / 30


@settings(deadline=None, max_examples=30)
@given(cuts=st.sets(st.integers(1, 11)), seed=st.integers(0, 10_000))
def test_micro_batches_add_up_to_the_gradient_of_one_batch(cuts: set[int], seed: int) -> None:
    logits_BC, hidden_BTD, targets = random_targets(12, 3, 4, 5, seed=seed, dtype=torch.float32)
    loss = loss_of(alpha=0.5, temperature=2.0, hidden=0.3)
    whole = [logits_BC.clone().requires_grad_(), hidden_BTD.clone().requires_grad_()]
    value_of(loss, whole[0], whole[1], targets, of=12).total.backward()
    parts = [logits_BC.clone().requires_grad_(), hidden_BTD.clone().requires_grad_()]
    edges = [0, *sorted(cuts), 12]
    for start, stop in itertools.pairwise(edges):
        rows = slice(start, stop)
        value_of(loss, parts[0][rows], parts[1][rows], part(targets, rows), of=12).total.backward()
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


@pytest.mark.parametrize("arm", ["sft", "unfiltered"])
def test_control_arm_is_the_cross_entropy_whatever_is_configured(arm: Any) -> None:
    logits_BC, _, targets = random_targets(4, 3, 2, 2, seed=5)
    loss = build_loss(DistillationConfig(alpha=0.2, features=(HiddenTerm(),)), arm)
    value = value_of(loss, logits_BC, None, targets, of=4)
    assert not loss.needs_cache
    assert not loss.needs_teacher_beside
    assert value.terms.keys() == {"ce"}
    torch.testing.assert_close(value.total, torch.nn.functional.cross_entropy(logits_BC, targets.labels_B))


def test_missing_signal_is_a_bug_and_not_a_silent_zero() -> None:
    logits_BC, _, targets = random_targets(4, 3, 2, 2, seed=6)
    bare = Classified(logits_MC=logits_BC, labels_M=targets.labels_B)
    for loss, missing in ((loss_of(), "distributions"), (loss_of(alpha=1, hidden=1.0), "inside")):
        with pytest.raises(StageBug, match=missing):
            loss(bare, None, count=Count(targets=4, documents=4), weights=loss.weights)


def predicted(N: int, V: int, *, seed: int, shift: int = 0) -> Predicted:
    """Return states and a head with the targets of a teacher that is the student itself, maybe out of step."""
    generator = torch.Generator().manual_seed(seed)
    hidden_ND = torch.randn(N, 5, generator=generator, dtype=torch.float64) * 2
    weight_VD = torch.randn(V, 5, generator=generator, dtype=torch.float64)
    own_NV = (hidden_ND @ weight_VD.T / 2).softmax(-1).roll(shift, 0)
    return Predicted(
        hidden_ND=hidden_ND.requires_grad_(),
        head=Head(weight_VD=weight_VD, bias_V=None, vocabulary=V),
        labels_N=(hidden_ND @ weight_VD.T).argmax(-1),
        teacher=SparseTargets(
            offsets_S=torch.arange(0, N * V + 1, V),
            ids_K=torch.arange(V).repeat(N),
            probabilities_K=own_NV.flatten(),
        ),
    )


@pytest.mark.parametrize("shift", [1, -1])
def test_targets_that_are_out_of_step_by_one_position_show(shift: int) -> None:
    loss, count = loss_of(alpha=0.0, temperature=2.0), Count(targets=12, documents=1)
    aligned, slipped = (
        loss(predicted(12, 9, seed=1, shift=by), None, count=count, weights=loss.weights) for by in (0, shift)
    )
    assert float(aligned.terms["kd"]) == pytest.approx(0, abs=1e-9)
    assert float(slipped.terms["kd"]) > 1.0


def test_terms_can_be_had_separately_and_add_up() -> None:
    loss, count = loss_of(alpha=0.3, temperature=2.0), Count(targets=12, documents=1)
    answer = predicted(12, 9, seed=2, shift=1)
    together = loss(answer, None, count=count, weights=loss.weights)
    apart = loss(answer, None, count=count, weights=loss.weights, separate=True)
    torch.testing.assert_close(apart.total, together.total)
    for name, term in together.terms.items():
        torch.testing.assert_close(apart.terms[name].detach(), term)
        assert apart.terms[name].requires_grad
        assert not term.requires_grad


def test_balanced_weights_replace_the_configured_ones() -> None:
    loss, count = loss_of(alpha=0.3, temperature=2.0), Count(targets=12, documents=1)
    value = loss(predicted(12, 9, seed=3, shift=1), None, count=count, weights={"ce": 0.3, "kd": 5.0})
    expected = 0.3 * value.terms["ce"] + 5.0 * value.terms["kd"]
    torch.testing.assert_close(value.total.detach(), expected)
