from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from stillhouse.contract import DataRejected, StageBug
from stillhouse.losses import Head, HeadLoss, LogitLoss, LossParts, SparseTargets, fused_linear_loss
from stillhouse.losses.fused import plan_blocks


def random_targets(N: int, V: int, *, seed: int, mass: float = 1.0) -> SparseTargets:
    """From 0 to 4 tokens a position, 0 where the seed says so: such a target has no mass."""
    generator = torch.Generator().manual_seed(seed)
    lengths_N = torch.randint(0, min(4, V) + 1, (N,), generator=generator)
    ids = [torch.randperm(V, generator=generator)[:length].sort().values for length in lengths_N]
    shares = [torch.rand(int(length), generator=generator) + 0.1 for length in lengths_N]
    return SparseTargets(
        offsets_S=torch.cat([torch.zeros(1, dtype=torch.int64), lengths_N.cumsum(0)]),
        ids_K=torch.cat(ids),
        probabilities_K=torch.cat([mass * share / share.sum() for share in shares]),
    )


def random_inputs(
    N: int, V: int, D: int, *, seed: int, ignored: float = 0.3, vocabulary: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden_ND, weight_VD = (torch.randn(rows, D, generator=generator, dtype=torch.float64) for rows in (N, V))
    labels_N = torch.randint(0, vocabulary or V, (N,), generator=generator)
    labels_N[torch.rand(N, generator=generator) < ignored] = -100
    return hidden_ND, weight_VD, torch.randn(V, generator=generator, dtype=torch.float64), labels_N


def dense(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    labels_N: torch.Tensor,
    targets: SparseTargets | None,
    *,
    alpha: float,
    temperature: float,
    vocabulary: int | None = None,
) -> LossParts:
    logits_NV = torch.nn.functional.linear(hidden_ND, weight_VD, bias_V)
    if vocabulary is not None:
        padding_V = torch.arange(len(weight_VD)) >= vocabulary
        logits_NV = logits_NV.masked_fill(padding_V, -torch.inf)
    loss = LogitLoss(alpha=alpha, temperature=temperature)
    terms = loss.terms(logits_NV, labels_N, targets if alpha < 1 else None)
    total = torch.stack([loss.weights[name] * term for name, term in terms.items()]).sum()
    return LossParts(total=total, ce=terms["ce"].detach(), kd=terms["kd"].detach() if "kd" in terms else None)


def outcome(function: Callable[[list[torch.Tensor]], LossParts], inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return values and gradients."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    parts = function(leaves)
    gradients = torch.autograd.grad(1.7 * parts.total, leaves)
    return [parts.total.detach(), parts.ce, *([] if parts.kd is None else [parts.kd]), *gradients]


def compare(
    inputs: list[torch.Tensor], labels_N: torch.Tensor, targets: SparseTargets | None, chunk: int, **settings: object
) -> None:
    def call(function: Callable[..., LossParts], leaves: list[torch.Tensor], **further: object) -> LossParts:
        bias_V = leaves[2] if len(leaves) > 2 else None
        return function(leaves[0], leaves[1], bias_V, labels_N, targets, **settings, **further)

    found = outcome(lambda leaves: call(fused_linear_loss, leaves, chunk_elements=chunk), inputs)
    expected = outcome(lambda leaves: call(dense, leaves), inputs)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_fused_is_the_dense_reference(data: st.DataObject) -> None:
    N, V, D = (data.draw(st.integers(1, most), label=name) for name, most in (("N", 9), ("V", 13), ("D", 4)))
    vocabulary = data.draw(st.none() | st.integers(1, V), label="vocabulary")
    seed = data.draw(st.integers(0, 10_000), label="seed")
    hidden_ND, weight_VD, bias_V, labels_N = random_inputs(N, V, D, seed=seed, vocabulary=vocabulary)
    targets = None
    if data.draw(st.booleans(), label="teacher"):
        mass = data.draw(st.sampled_from([1.0, 0.8, 0.3]), label="mass")
        targets = random_targets(N, vocabulary or V, seed=seed, mass=mass)
    compare(
        [hidden_ND, weight_VD, bias_V][: data.draw(st.sampled_from([2, 3]), label="tensors")],
        labels_N,
        targets,
        data.draw(st.integers(1, 2 * N * V), label="chunk"),
        alpha=data.draw(st.sampled_from([0.0, 0.3, 1.0]), label="alpha"),
        temperature=data.draw(st.sampled_from([0.5, 1.0, 2.0, 5.0]), label="T"),
        vocabulary=vocabulary,
    )


@settings(deadline=None, max_examples=50)
@given(
    N=st.integers(1, 9),
    V=st.integers(1, 13),
    seed=st.integers(0, 10_000),
    alpha=st.sampled_from([0.3, 1.0]),
    data=st.data(),
)
def test_weights_of_rows_scale_their_cross_entropy(
    N: int, V: int, seed: int, alpha: float, data: st.DataObject
) -> None:
    hidden_ND, weight_VD, bias_V, labels_N = random_inputs(N, V, 3, seed=seed)
    weights_N = torch.rand(N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    chunk = data.draw(st.integers(1, 2 * N * V))

    def reference(leaves: list[torch.Tensor]) -> LossParts:
        logits_NV = torch.nn.functional.linear(*leaves)
        ce_N = torch.nn.functional.cross_entropy(logits_NV, labels_N, reduction="none", ignore_index=-100)
        ce = (ce_N * weights_N).sum()
        return LossParts(total=alpha * ce, ce=ce.detach(), kd=None)

    def fused(leaves: list[torch.Tensor]) -> LossParts:
        return fused_linear_loss(
            *leaves, labels_N, None, alpha=alpha, temperature=2.0, chunk_elements=chunk, weights_N=weights_N
        )

    inputs = [hidden_ND, weight_VD, bias_V]
    for one, other in zip(outcome(fused, inputs), outcome(reference, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_weights_beside_a_teacher_are_a_bug() -> None:
    hidden_ND, weight_VD, bias_V, labels_N = random_inputs(4, 7, 3, seed=1)
    targets, weights_N = random_targets(4, 7, seed=1), torch.ones(4)
    with pytest.raises(StageBug, match="weights"):
        fused_linear_loss(
            hidden_ND, weight_VD, bias_V, labels_N, targets, alpha=0.5, temperature=1.0, weights_N=weights_N
        )
    head = Head(weight_VD=weight_VD, bias_V=bias_V, vocabulary=7)
    with pytest.raises(StageBug, match="weights"):
        HeadLoss(logit=LogitLoss(alpha=0.5, temperature=1.0, divergence="jsd"))(
            hidden_ND, head, labels_N, targets, weights_N
        )


@pytest.mark.parametrize(
    ("chunk", "rows", "blocks"), [(70 * 7, 70, [7]), (256, 256, [1] * 7), (512 * 3, 219, [7]), (10**6, 142857, [7])]
)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_many_rows_in_each_way_of_cutting(chunk: int, rows: int, blocks: list[int], temperature: float) -> None:
    found_rows, found_blocks = plan_blocks(N=300, V=7, chunk_elements=chunk)
    assert (found_rows, [block.stop - block.start for block in found_blocks]) == (rows, blocks)
    hidden_ND, weight_VD, bias_V, labels_N = random_inputs(300, 7, 3, seed=1)
    targets = random_targets(300, 7, seed=1)
    compare([hidden_ND, weight_VD, bias_V], labels_N, targets, chunk, alpha=0.4, temperature=temperature)


@pytest.mark.parametrize("chunk", [3, 1000])
@pytest.mark.parametrize(("alpha", "temperature"), [(0.0, 2.0), (0.4, 1.0), (0.4, 3.0), (1.0, 1.0)])
def test_gradcheck_in_float64(chunk: int, alpha: float, temperature: float) -> None:
    hidden_ND, weight_VD, bias_V, labels_N = random_inputs(4, 6, 3, seed=2, vocabulary=5)
    targets = random_targets(4, 5, seed=2, mass=0.9)
    assert torch.autograd.gradcheck(
        lambda hidden, weight, bias: (
            fused_linear_loss(
                hidden,
                weight,
                bias,
                labels_N,
                targets,
                alpha=alpha,
                temperature=temperature,
                vocabulary=5,
                chunk_elements=chunk,
            ).total
        ),
        tuple(tensor.requires_grad_() for tensor in (hidden_ND, weight_VD, bias_V)),
    )


def test_tied_weight_gets_both_gradients() -> None:
    _, weight_VD, _, _ = random_inputs(5, 6, 3, seed=3)
    ids_N, labels_N = torch.tensor([0, 1, 2, 2, 5]), torch.tensor([1, 2, 2, 5, 0])
    targets = random_targets(5, 6, seed=3)
    found, expected = (
        torch.autograd.grad(
            function(weight[ids_N], weight, None, labels_N, targets, alpha=0.5, temperature=2.0).total, weight
        )[0]
        for function, weight in (
            (fused_linear_loss, weight_VD.clone().requires_grad_()),
            (dense, weight_VD.clone().requires_grad_()),
        )
    )
    torch.testing.assert_close(found, expected)


def test_bfloat16_is_accumulated_in_float32() -> None:
    """The loss of bfloat16 tensors is that of their float32 copies; only the gradients are rounded once."""
    hidden_ND, weight_VD, bias_V, labels_N = random_inputs(64, 50, 8, seed=4)
    low = [tensor.bfloat16() for tensor in (hidden_ND, weight_VD, bias_V)]
    targets = random_targets(64, 50, seed=4)

    def loss(leaves: list[torch.Tensor]) -> LossParts:
        return fused_linear_loss(*leaves, labels_N, targets, alpha=0.5, temperature=2.0)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = outcome(loss, low)
    exact = outcome(loss, [tensor.float() for tensor in low])
    assert [tensor.dtype for tensor in rounded] == [torch.float32] * 3 + [torch.bfloat16] * 3
    for one, other in zip(rounded[:3], exact[:3], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)
    for one, other in zip(rounded[3:], exact[3:], strict=True):
        torch.testing.assert_close(one.float(), other, rtol=2**-7, atol=1e-6)


def test_large_logits_stay_finite() -> None:
    hidden_ND = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    weight_VD = torch.tensor([[1.0], [0.0], [-1.0]])
    targets = SparseTargets(
        offsets_S=torch.tensor([0, 1, 2]), ids_K=torch.tensor([0, 1]), probabilities_K=torch.ones(2)
    )
    for chunk in (2, 100):
        parts = fused_linear_loss(
            hidden_ND,
            weight_VD,
            None,
            torch.tensor([0, 0]),
            targets,
            alpha=0.5,
            temperature=2.0,
            chunk_elements=chunk,
        )
        assert parts.kd is not None
        assert (float(parts.ce), float(parts.kd)) == (2e4, 2e4)
        (gradient_ND,) = torch.autograd.grad(parts.total, hidden_ND)
        assert gradient_ND.isfinite().all()


def test_nothing_to_learn_is_zero() -> None:
    hidden_ND, weight_VD, _, labels_N = random_inputs(3, 5, 2, seed=5, ignored=1.0)
    targets = random_targets(3, 5, seed=5)
    leaves = [hidden_ND.requires_grad_(), weight_VD.requires_grad_()]
    parts = fused_linear_loss(*leaves, None, labels_N, targets, alpha=0.5, temperature=2.0)
    assert parts.total.item() == 0
    assert all(not gradient.any() for gradient in torch.autograd.grad(parts.total, leaves))


def test_a_graph_may_be_used_twice() -> None:
    hidden_ND, weight_VD, _, labels_N = random_inputs(3, 5, 2, seed=6)
    hidden_ND.requires_grad_()
    total = fused_linear_loss(hidden_ND, weight_VD, None, labels_N, None, alpha=0.5, temperature=2.0).total
    (once,) = torch.autograd.grad(3 * total, hidden_ND, retain_graph=True)
    (again,) = torch.autograd.grad(total, hidden_ND)
    torch.testing.assert_close(once, 3 * again)


def test_ids_beyond_the_vocabulary_are_refused() -> None:
    hidden_ND, weight_VD, _, labels_N = random_inputs(4, 8, 2, seed=7, vocabulary=5, ignored=0)
    targets = random_targets(4, 8, seed=7)
    settings = {"alpha": 0.5, "temperature": 1.0}
    assert int(targets.ids_K.max()) == 7
    with pytest.raises(DataRejected, match="records name tokens outside of the vocabulary of 7"):
        fused_linear_loss(hidden_ND, weight_VD, None, labels_N, targets, vocabulary=7, **settings)
    with pytest.raises(DataRejected, match="labels name tokens outside"):
        fused_linear_loss(hidden_ND, weight_VD, None, labels_N + 4, None, vocabulary=5, **settings)


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("chunk", [100 * 90, 500])
def test_no_tensor_of_rows_times_vocabulary_exists(chunk: int) -> None:
    """Neither forward nor backward allocates more than a chunk or an argument, whatever the number of rows."""
    N, V, D = 400, 100, 4
    hidden_ND, weight_VD, bias_V, labels_N = random_inputs(N, V, D, seed=8)
    targets = random_targets(N, V, seed=8)
    leaves = [tensor.requires_grad_() for tensor in (hidden_ND, weight_VD, bias_V)]
    with LargestTensor() as seen:
        fused_linear_loss(*leaves, labels_N, targets, alpha=0.5, temperature=2.0, chunk_elements=chunk).total.backward()
    assert 0 < seen.elements <= max(chunk, N * D, len(targets.ids_K)) < N * V
    with LargestTensor() as seen:
        dense(*leaves, labels_N, targets, alpha=0.5, temperature=2.0).total.backward()
    assert seen.elements >= N * V * 0.6
