"""Feature losses: on numbers, then on real small models of two architectures."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from stillhouse.contract import ConfigurationError, StageBug
from stillhouse.losses.features import FeatureLoss, HiddenLoss, build_features, layer_pairs
from stillhouse.models.layers import ModelShape, model_shape
from stillhouse.models.taps import Captured, Tap
from stillhouse.recipe.distillation import (
    AttentionTerm,
    CkaTerm,
    FeatureTerm,
    HiddenTerm,
    QkvRelationTerm,
    RelationalTerm,
    SimilarityTerm,
)

TERMS: dict[str, FeatureTerm] = {
    "cosine": HiddenTerm(distance="cosine"),
    "hidden-mse": HiddenTerm(distance="mse"),
    "attention-kl": AttentionTerm(distance="kl"),
    "attention-mse": AttentionTerm(distance="mse"),
    "qkv-relation": QkvRelationTerm(heads=2),
    "rkd": RelationalTerm(),
    "cka": CkaTerm(),
    "similarity": SimilarityTerm(),
}
BY_TOKEN = ["cosine", "hidden-mse", "attention-kl", "attention-mse", "qkv-relation"]
AMONG_DOCUMENTS = ["rkd", "cka", "similarity"]
SEGMENTS_BT = torch.tensor([[0, 0, 0, 0, -1], [1, 1, 2, 2, 2], [3, 3, -1, -1, -1]])
SHAPE = ModelShape(layers=1, width=4, heads=2)


def states(segments_BT: torch.Tensor, *, seed: int, width: int = 4, heads: int = 2) -> Captured:
    """Random states of layer 1 in float64; attention stays within documents."""
    generator = torch.Generator().manual_seed(seed)
    B, T = segments_BT.shape
    drawn = [torch.randn(B, T, width, generator=generator, dtype=torch.float64) for _ in range(4)]
    scores_BHTT = torch.randn(B, heads, T, T, generator=generator, dtype=torch.float64)
    other_BTT = segments_BT[:, :, None] != segments_BT[:, None, :]
    weights_BHTT = scores_BHTT.masked_fill(other_BTT[:, None], -torch.inf).softmax(-1)
    return Captured(
        hidden={1: drawn[0]},
        attention={1: weights_BHTT},
        queries={1: drawn[1]},
        keys={1: drawn[2]},
        values={1: drawn[3]},
    )


def change(captured: Captured, transform: Callable[[torch.Tensor], torch.Tensor]) -> Captured:
    """Apply a function to everything captured but the maps."""
    return Captured(
        hidden={1: transform(captured.hidden[1])},
        attention=captured.attention,
        queries={1: transform(captured.queries[1])},
        keys={1: transform(captured.keys[1])},
        values={1: transform(captured.values[1])},
    )


def build(name: str, student: ModelShape = SHAPE, teacher: ModelShape = SHAPE) -> FeatureLoss:
    (loss,) = build_features([TERMS[name]], student=student, teacher=teacher, seed=0)
    assert isinstance(loss, FeatureLoss)
    return loss


@pytest.mark.parametrize("name", TERMS)
def test_gradcheck_in_float64(name: str) -> None:
    student, teacher = states(SEGMENTS_BT, seed=1), states(SEGMENTS_BT, seed=2)
    loss = build(name).double()
    leaves = [student.hidden[1], student.attention[1], student.queries[1], student.keys[1], student.values[1]]

    def value(*parts: torch.Tensor) -> torch.Tensor:
        # Maps at 0 are hidden keys: they must stay where they are while the check shakes the others.
        maps = torch.where(leaves[1] > 0, parts[1], 0)
        named = zip(("hidden", "attention", "queries", "keys", "values"), (parts[0], maps, *parts[2:]), strict=True)
        return loss(Captured(**{key: {1: part} for key, part in named}), teacher, SEGMENTS_BT)

    assert torch.autograd.gradcheck(value, [leaf.clone().requires_grad_() for leaf in leaves])


@pytest.mark.parametrize("name", TERMS)
def test_zero_where_the_student_is_the_teacher_and_above_elsewhere(name: str) -> None:
    student, teacher = states(SEGMENTS_BT, seed=1), states(SEGMENTS_BT, seed=2)
    loss = build(name)
    assert float(loss(student, student, SEGMENTS_BT)) == pytest.approx(0, abs=1e-12)
    assert float(loss(student, teacher, SEGMENTS_BT)) > 0.01


@pytest.mark.parametrize("name", TERMS)
def test_padding_is_ignored(name: str) -> None:
    student, teacher = states(SEGMENTS_BT, seed=1), states(SEGMENTS_BT, seed=2)
    padding_BT1 = (SEGMENTS_BT < 0)[..., None]
    loss = build(name)
    value = loss(student, teacher, SEGMENTS_BT)
    noisy = change(student, lambda part: torch.where(padding_BT1, 1e3, part))
    wild = change(teacher, lambda part: torch.where(padding_BT1, torch.nan, part))
    torch.testing.assert_close(loss(noisy, wild, SEGMENTS_BT), value)


@pytest.mark.parametrize("name", TERMS)
def test_packed_documents_are_as_alone(name: str) -> None:
    packed = torch.tensor([[0, 0, 1, 1, 1, -1], [2, 2, 2, 2, 3, 3]])
    places = [(0, 0, 2), (0, 2, 5), (1, 0, 4), (1, 4, 6)]
    alone = torch.full((4, 4), -1)
    for row, (_, start, stop) in enumerate(places):
        alone[row, : stop - start] = row

    def unpack(captured: Captured) -> Captured:
        def rows(part: torch.Tensor) -> torch.Tensor:
            cut = [part[row, start:stop] for row, start, stop in places]
            return torch.stack([torch.nn.functional.pad(one, (0, 0, 0, 4 - len(one))) for one in cut])

        maps = torch.zeros(4, 2, 4, 4, dtype=torch.float64)
        for row, (packed_row, start, stop) in enumerate(places):
            maps[row, :, : stop - start, : stop - start] = captured.attention[1][packed_row, :, start:stop, start:stop]
        moved = change(captured, rows)
        return Captured(
            hidden=moved.hidden, attention={1: maps}, queries=moved.queries, keys=moved.keys, values=moved.values
        )

    student, teacher = states(packed, seed=1), states(packed, seed=2)
    loss = build(name)
    torch.testing.assert_close(loss(student, teacher, packed), loss(unpack(student), unpack(teacher), alone))


@pytest.mark.parametrize("name", BY_TOKEN)
def test_a_batch_is_the_sum_of_its_rows(name: str) -> None:
    student, teacher = states(SEGMENTS_BT, seed=1), states(SEGMENTS_BT, seed=2)
    loss = build(name)

    def row(captured: Captured, i: int) -> Captured:
        part = change(captured, lambda states_BTD: states_BTD[i : i + 1])
        maps = {1: captured.attention[1][i : i + 1]}
        return Captured(hidden=part.hidden, attention=maps, queries=part.queries, keys=part.keys, values=part.values)

    segments = [SEGMENTS_BT[:1], (SEGMENTS_BT[1:2] - 1), torch.tensor([[0, 0, -1, -1, -1]])]
    total = sum(loss(row(student, i), row(teacher, i), segments[i]) for i in range(3))
    torch.testing.assert_close(total, loss(student, teacher, SEGMENTS_BT))


@pytest.mark.parametrize("name", AMONG_DOCUMENTS)
@pytest.mark.parametrize("states_BTD", [torch.ones(1, 3, 4), torch.zeros(1, 3, 4)], ids=["ones", "zeros"])
def test_a_single_document_has_nothing_to_be_compared_with(name: str, states_BTD: torch.Tensor) -> None:
    leaf = states_BTD.clone().requires_grad_()
    segments_BT = torch.zeros(1, 3, dtype=torch.int64)
    teacher = Captured(hidden={1: torch.tensor([[[1.0, 0, 2, 0]]]).expand(1, 3, 4)})
    value = build(name)(Captured(hidden={1: leaf}), teacher, segments_BT)
    value.backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()
    if states_BTD.any():
        assert float(value.detach()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["cosine", "hidden-mse", *AMONG_DOCUMENTS])
def test_equal_and_zero_states_give_finite_gradients(name: str) -> None:
    teacher = states(SEGMENTS_BT, seed=2)
    for value in (0.0, 1.0):
        leaf = torch.full((3, 5, 4), value, dtype=torch.float64, requires_grad=True)
        build(name)(Captured(hidden={1: leaf}), teacher, SEGMENTS_BT).backward()
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100), name=st.sampled_from(AMONG_DOCUMENTS))
def test_losses_among_documents_are_blind_to_rotation_and_scale(seed: int, scale: float, name: str) -> None:
    student, teacher = states(SEGMENTS_BT, seed=seed), states(SEGMENTS_BT, seed=seed + 1)
    generator = torch.Generator().manual_seed(seed)
    rotation_DD = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q
    turned = change(student, lambda part: scale * part @ rotation_DD)
    loss = build(name)
    torch.testing.assert_close(loss(turned, teacher, SEGMENTS_BT), loss(student, teacher, SEGMENTS_BT))
    assert float(loss(turned, student, SEGMENTS_BT)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", ["rkd", "cka"])
def test_distances_and_alignment_are_blind_to_translation(name: str) -> None:
    student, teacher = states(SEGMENTS_BT, seed=1), states(SEGMENTS_BT, seed=2)
    moved, loss = change(student, lambda part: part + 3), build(name)
    torch.testing.assert_close(loss(moved, teacher, SEGMENTS_BT), loss(student, teacher, SEGMENTS_BT))


def test_relational_loss_is_the_papers() -> None:
    vectors, teacher = ([[0.0, 0], [3, 4], [0, 8]], [[0.0, 0], [1, 0], [0, 2]])

    def parts(points: list[list[float]]) -> tuple[list[float], list[float]]:
        distances = [math.dist(points[i], points[j]) for i, j in itertools.permutations(range(3), 2)]
        angles = []
        for i, j, k in itertools.permutations(range(3), 3):
            a = [x - y for x, y in zip(points[i], points[j], strict=True)]
            b = [x - y for x, y in zip(points[k], points[j], strict=True)]
            angles.append(sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b))
        mean = sum(distances) / 6
        return [one / mean for one in distances], angles

    def huber(one: list[float], other: list[float]) -> float:
        gaps = [abs(a - b) for a, b in zip(one, other, strict=True)]
        return sum(gap**2 / 2 if gap <= 1 else gap - 0.5 for gap in gaps) / len(gaps)

    (distance, angle), (of_teacher, angle_of_teacher) = parts(vectors), parts(teacher)
    expected = 0.33 * huber(distance, of_teacher) + 0.67 * huber(angle, angle_of_teacher)
    (loss,) = build_features([TERMS["rkd"]], student=SHAPE, teacher=SHAPE, seed=0)
    value = loss(
        *(Captured(hidden={1: torch.tensor(points, dtype=torch.float64)[:, None]}) for points in (vectors, teacher)),
        torch.arange(3)[:, None],
    )
    assert float(value) == pytest.approx(3 * expected)


def test_attention_loss_is_kl_of_rows() -> None:
    p, q = [0.5, 0.5], [0.9, 0.1]
    maps = [torch.tensor([[[row, [0.3, 0.7]]]], dtype=torch.float64) for row in (q, p)]
    student, teacher = (Captured(attention={1: one}) for one in maps)
    segments_BT = torch.zeros(1, 2, dtype=torch.int64)
    kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert float(build("attention-kl")(student, teacher, segments_BT)) == pytest.approx(kl / 2)
    assert float(build("attention-mse")(student, teacher, segments_BT)) == pytest.approx(2 * 0.4**2 / 2)


def test_dropped_attention_weights_are_left_out() -> None:
    """Dropout zeroes weights and scales the others: the kept ones still compare as equal."""
    teacher = states(SEGMENTS_BT, seed=2)
    kept = torch.rand(3, 2, 5, 5, generator=torch.Generator().manual_seed(0)) > 0.3
    student = Captured(attention={1: teacher.attention[1] * kept / 0.7})
    assert float(build("attention-kl")(student, teacher, SEGMENTS_BT)) == pytest.approx(0, abs=1e-12)


def test_relation_loss_is_the_papers() -> None:
    generator = torch.Generator().manual_seed(0)
    a_LD, b_LD = (torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = 0.0
    for head in (slice(0, 2), slice(2, 4)):
        q_LL, p_LL = ((x[:, head] @ x[:, head].T / math.sqrt(2)).softmax(-1) for x in (a_LD, b_LD))
        expected += float((p_LL * (p_LL / q_LL).log()).sum()) / 3 / 2
    student, teacher = (Captured(queries={1: x[None]}, keys={1: x[None]}, values={1: x[None]}) for x in (a_LD, b_LD))
    value = build("qkv-relation")(student, teacher, torch.zeros(1, 3, dtype=torch.int64))
    assert float(value) == pytest.approx(3 * expected)


def test_relation_heads_that_do_not_divide_are_refused() -> None:
    (loss,) = build_features([QkvRelationTerm(heads=3)], student=SHAPE, teacher=SHAPE, seed=0)
    student = states(SEGMENTS_BT, seed=1)
    with pytest.raises(ConfigurationError, match="student's queries are 4 wide, which 3 relation heads"):
        loss(student, student, SEGMENTS_BT)


def test_projector_is_seeded_learned_and_leaves_random_state_alone() -> None:
    wide = ModelShape(layers=1, width=6, heads=2)
    before = torch.random.get_rng_state()
    first, second = (build("cosine", SHAPE, wide) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert isinstance(first, HiddenLoss)
    assert isinstance(second, HiddenLoss)
    assert first.projector_ED is not None
    assert second.projector_ED is not None
    assert torch.equal(first.projector_ED, second.projector_ED)
    student, teacher = states(SEGMENTS_BT, seed=1), states(SEGMENTS_BT, seed=2, width=6)
    first.double()(student, teacher, SEGMENTS_BT).backward()
    assert first.projector_ED.grad is not None
    assert first.projector_ED.grad.norm() > 0
    assert not list(build("cosine").parameters())


def test_missing_states_are_a_bug() -> None:
    whole = states(SEGMENTS_BT, seed=1)
    with pytest.raises(StageBug, match="no hidden of layer 1"):
        build("cosine")(whole, Captured(attention=whole.attention), SEGMENTS_BT)


def test_layer_pairs() -> None:
    assert layer_pairs("last", student=3, teacher=12) == ((3, 12),)
    assert layer_pairs("all", student=3, teacher=12) == ((1, 4), (2, 8), (3, 12))
    assert layer_pairs("all", student=6, teacher=2)[0] == (1, 1)
    assert layer_pairs(((0, 0), (2, 7)), student=3, teacher=12, lowest=0) == ((0, 0), (2, 7))


@given(student=st.integers(1, 40), teacher=st.integers(1, 40))
def test_all_pairs_rise_and_end_at_the_last(student: int, teacher: int) -> None:
    pairs = layer_pairs("all", student=student, teacher=teacher)
    assert [i for i, _ in pairs] == list(range(1, student + 1))
    of_teacher = [j for _, j in pairs]
    assert of_teacher == sorted(of_teacher)
    assert of_teacher[0] >= 1
    assert of_teacher[-1] == teacher


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (HiddenTerm(layers=((2, 1),)), "student layer 2; it has layers 0 to 1"),
        (HiddenTerm(layers=((1, 5),)), "teacher layer 5"),
        (CkaTerm(layers=((-1, 1),)), "student layer -1"),
        (AttentionTerm(layers=((0, 0),)), "student layer 0; it has layers 1 to 1"),
        (QkvRelationTerm(layers=((1, 0),)), "teacher layer 0"),
    ],
)
def test_layers_that_are_not_there_are_refused(term: FeatureTerm, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build_features([term], student=SHAPE, teacher=SHAPE, seed=0)


def tiny(kind: str, *, layers: int, width: int, heads: int) -> PreTrainedModel:
    size: dict[str, Any] = {
        "vocab_size": 40,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 24,
    }
    if kind == "encoder":
        return BertForSequenceClassification(BertConfig(**size))
    return LlamaForCausalLM(LlamaConfig(**size, num_key_value_heads=heads // 2))


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("layers", ["last", "all"])
def test_matrix_of_losses_and_architectures(name: str, kind: str, layers: str) -> None:
    """Other depth, width and number of heads; the student in training mode, dropout on."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = tiny(kind, layers=2, width=16, heads=4).train()
        teacher = tiny(kind, layers=5, width=24, heads=6).eval()
    term = TERMS[name].model_copy(update={"layers": layers})
    (loss,) = build_features([term], student=model_shape(student), teacher=model_shape(teacher), seed=0)
    assert isinstance(loss, FeatureLoss)
    ids_BT = torch.randint(3, 40, (4, 6), generator=torch.Generator().manual_seed(1))
    mask_BT = torch.arange(6)[None] < torch.tensor([6, 4, 2, 5])[:, None]
    segments_BT = torch.where(mask_BT, torch.arange(4)[:, None], -1)
    with Tap(student, loss.student_taps) as tap, Tap(teacher, loss.teacher_taps) as teacher_tap:
        kernels = {model.config._attn_implementation for model in (student, teacher)}
        assert kernels == ({"eager"} if name.startswith("attention") else {"sdpa"})
        inputs = {"input_ids": ids_BT, "attention_mask": mask_BT.long()}
        student(**inputs)
        teacher(**inputs)
        value = loss(tap.take(), teacher_tap.take(), segments_BT)
    value.backward()
    assert float(value.detach()) > 0
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.norm() > 0 for gradient in gradients)
    assert student.get_input_embeddings().weight.grad is not None
    assert all(p.grad is None for p in teacher.parameters())
