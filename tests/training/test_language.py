import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_language import texts, tiny_causal, tiny_masked, tiny_tokenizer

from stillhouse.contract import ConfigurationError, DataRejected
from stillhouse.losses import Count, build_loss
from stillhouse.models import Document, documents_of, head_states, likelihoods
from stillhouse.models.documents import IGNORED, causal_documents
from stillhouse.recipe import DistillationConfig, OnPolicyConfig, TrainingConfig
from stillhouse.training import TrainingJob, fit
from stillhouse.training.batches import StepLoader, pack_plan
from stillhouse.training.module import DistillationModel
from stillhouse.training.samples import LanguageSamples, language_batch

CONFIG = {"epochs": 3, "batch_size": 4, "learning_rate": 3e-3, "max_tokens": 24, "checkpoint_seconds": 3600}


def job(folder: Path, *, masked: bool = False, config: dict[str, Any] | None = None, **changes: Any) -> TrainingJob:
    plain = TrainingJob(
        model=tiny_masked() if masked else tiny_causal(),
        tokenizer=tiny_tokenizer(masked=masked),
        rows=texts(),
        task="masked-lm" if masked else "causal-lm",
        config=TrainingConfig.model_validate(CONFIG | (config or {})),
        loss=build_loss(DistillationConfig(), "sft"),
        workspace=folder,
    )
    return dataclasses.replace(plain, **changes)


def documents(*lengths: int) -> list[Document]:
    rng = np.random.default_rng(3)
    made = []
    for number, length in enumerate(lengths):
        ids_L = rng.integers(6, 40, size=length).astype(np.int32)
        made.append(Document(id=f"d{number}", ids_L=ids_L, labels_L=np.append(ids_L[1:], IGNORED).astype(np.int32)))
    return made


def test_packed_documents_have_the_logits_that_they_have_alone() -> None:
    model = tiny_causal()
    three = documents(5, 9, 3)
    packed = language_batch([three[:2], three[2:]], 0, causal=True)
    states_BTD = head_states(model, **packed.inputs, use_cache=False)
    for number, document in enumerate(three):
        alone_TD = head_states(model, **language_batch([[document]], 0, causal=True).inputs, use_cache=False)[0]
        torch.testing.assert_close(states_BTD[packed.segments_BT == number], alone_TD, rtol=1e-5, atol=1e-5)


def test_padding_changes_nothing_for_the_tokens_before_it() -> None:
    model = tiny_causal()
    short, long = documents(4, 11)
    batch = language_batch([[short], [long]], 0, causal=True)
    assert "attention_mask" not in batch.inputs
    states_BTD = head_states(model, **batch.inputs, use_cache=False)
    alone_TD = head_states(model, input_ids=torch.from_numpy(short.ids_L.astype(np.int64))[None], use_cache=False)[0]
    torch.testing.assert_close(states_BTD[0, :4], alone_TD, rtol=1e-5, atol=1e-5)


def test_prompt_tokens_carry_no_loss() -> None:
    tokenizer = tiny_tokenizer()
    (document,) = causal_documents(tokenizer, ["a"], ["good film"], ["the plot was bad"], max_tokens=24)
    carried = document.labels_L[document.targets_P].tolist()
    assert carried == tokenizer.convert_tokens_to_ids(["good", "film", "<end>"])
    assert document.targets_P.tolist() == [3, 4, 5]


def test_chat_template_frames_prompt_and_answer() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'the ' if m.role == 'user' else 'story ' }}{{ m.content }}<end>{% endfor %}"
        "{% if add_generation_prompt %}story {% endif %}"
    )
    (document,) = causal_documents(tokenizer, ["a"], ["good film"], ["plot"], max_tokens=24)
    assert tokenizer.decode(document.ids_L) == "the plot <end> story good film <end>"
    assert tokenizer.decode(document.labels_L[document.targets_P]) == "good film <end>"


def test_long_texts_are_cut_into_pieces_that_keep_every_token() -> None:
    tokenizer = tiny_tokenizer()
    text = " ".join(["good", "film"] * 12)
    pieces = causal_documents(tokenizer, ["a"], [text], None, max_tokens=10)
    assert [piece.id for piece in pieces] == ["a", "a#1", "a#2"]
    assert np.concatenate([piece.ids_L for piece in pieces]).tolist() == [
        *tokenizer(text)["input_ids"],
        tokenizer.eos_token_id,
    ]


def test_masks_depend_on_the_document_alone() -> None:
    tokenizer, rows = tiny_tokenizer(masked=True), texts(12)
    options: dict[str, Any] = {"max_tokens": 24, "mask_share": 0.3, "seed": 5}
    forward = {d.id: d for d in documents_of("masked-lm", tokenizer, rows, **options)}
    backward = {d.id: d for d in documents_of("masked-lm", tokenizer, rows.select(range(11, 2, -1)), **options)}
    for name, document in backward.items():
        assert document.ids_L.tolist() == forward[name].ids_L.tolist()
        assert document.labels_L.tolist() == forward[name].labels_L.tolist()
    shares = [len(d.targets_P) / (len(d.ids_L) - 2) for d in forward.values()]
    assert 0.2 < np.mean(shares) < 0.5


def test_each_epoch_packs_every_document_once_and_none_too_tightly() -> None:
    lengths = [length % 23 + 1 for length in range(0, 700, 7)]
    plan = pack_plan(lengths, max_tokens=24, batch_size=4, epochs=1, seed=2)
    assert sorted(d for step in plan for pack in step for d in pack) == list(range(100))
    rooms = [sum(lengths[d] for d in pack) for step in plan for pack in step]
    assert max(rooms) <= 24
    assert np.mean(rooms) > 0.85 * 24


@pytest.mark.parametrize("masked", [False, True])
def test_language_models_learn(tmp_path: Path, masked: bool) -> None:
    outcome = fit(job(tmp_path, masked=masked, config={"epochs": 12, "learning_rate": 1e-2}))
    points = outcome.history.points
    assert points[-1].terms["ce"] < 0.85 * points[0].terms["ce"]
    assert outcome.tokens_per_second > 0


def gradients(
    config: dict[str, Any], *, processes: int = 1, weights: dict[str, float] | None = None
) -> dict[str, torch.Tensor]:
    """Return the gradients of the first step, added up over micro-batches and processes."""
    model, tokenizer = tiny_causal(), tiny_tokenizer()
    made = documents_of("causal-lm", tokenizer, texts(), max_tokens=24, mask_share=0.15, seed=0)
    module = DistillationModel(
        model, build_loss(DistillationConfig(), "sft"), precision=torch.float32, vocabulary=len(tokenizer)
    )
    training = TrainingConfig.model_validate(CONFIG | config)
    for rank in range(processes):
        samples = LanguageSamples(made, 0, causal=True, cache=None, with_hidden=None, weights=weights)
        loader = StepLoader(samples, training, packed=True, rank=rank, num_processes=processes)
        step = loader.step(0)
        assert step.count == Count(targets=step.count.targets, documents=step.count.documents)
        for sequences in step.sequences:
            batch = samples.micro_batch(sequences)
            module(batch, step.count, module.loss.weights).total.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def weights_of(rows: Dataset, *, seed: int = 4) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    return {name: float(rng.uniform(0.2, 3.0)) for name in rows["id"]}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("config", "processes"), [({"micro_batch_size": 1}, 1), ({"micro_batch_size": 3}, 1), ({}, 3)])
def test_micro_batches_and_processes_add_up_to_the_gradient_of_one_batch(
    config: dict[str, Any], processes: int, weighted: bool
) -> None:
    weights = weights_of(texts()) if weighted else None
    whole, parts = gradients({}, weights=weights), gradients(config, processes=processes, weights=weights)
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-6)


def test_a_weighted_loss_is_the_weighted_mean_of_the_documents_means(tmp_path: Path) -> None:
    """Documents of a row cut into pieces share its weight by their labels, so its mean is over all of them."""
    rows = texts(6)
    weights = weights_of(rows)
    made = job(
        tmp_path,
        rows=rows.add_column("weight", list(weights.values())),
        config={"epochs": 1, "batch_size": 50, "max_tokens": 8, "learning_rate": 1e-9},
    )
    loss = fit(made).history.points[0].terms["ce"]
    pieces = documents_of("causal-lm", made.tokenizer, rows, max_tokens=8, mask_share=0.15, seed=0)
    assert len(pieces) > len(rows)
    found = likelihoods(made.model, made.tokenizer, pieces, batch_size=4, max_tokens=8)
    expected = 0.0
    for row_id, weight in weights.items():
        own = [number for number, piece in enumerate(pieces) if piece.id.split("#")[0] == row_id]
        expected += weight * found.losses_N[own].sum() / found.targets_N[own].sum()
    assert loss == pytest.approx(expected / sum(weights.values()), rel=1e-4)


def test_weights_equal_to_the_number_of_labels_change_nothing(tmp_path: Path) -> None:
    rows, plain = texts(), job(tmp_path / "plain")
    documents_ = documents_of("causal-lm", plain.tokenizer, rows, max_tokens=24, mask_share=0.15, seed=0)
    labels = [float(len(document.targets_P)) for document in documents_]
    assert len(labels) == len(rows)
    weighted = fit(job(tmp_path / "weighted", rows=rows.add_column("weight", labels)))
    unweighted = fit(plain)
    assert weighted.history == unweighted.history
    for one, other in zip(weighted.model.parameters(), unweighted.model.parameters(), strict=True):
        assert torch.equal(one, other)
    twice = rows.add_column("weight", [2 * label for label in labels])
    assert fit(job(tmp_path / "twice", rows=twice)).history.points[-1].loss == pytest.approx(
        unweighted.history.points[-1].loss, rel=1e-5
    )


def test_other_weights_are_another_training(tmp_path: Path) -> None:
    rows = texts()
    first = fit(job(tmp_path, rows=rows.add_column("weight", list(weights_of(rows).values()))))
    again = fit(job(tmp_path, rows=rows.add_column("weight", list(weights_of(rows, seed=5).values()))))
    assert again.resumed_from is None
    assert again.history != first.history


def test_weights_that_the_loss_has_no_place_for_are_refused(tmp_path: Path) -> None:
    rows = texts().add_column("weight", [1.0] * 40)
    loss = build_loss(DistillationConfig(alpha=0.5), "kd")
    with pytest.raises(ConfigurationError, match=r"the rows have weights.*distillation\.alpha to 1"):
        fit(job(tmp_path, rows=rows, loss=loss, teacher=tiny_causal(seed=1)))
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(DataRejected, match="row t3 has weight"):
            fit(job(tmp_path, rows=texts().add_column("weight", [1.0] * 3 + [bad] + [1.0] * 36)))


def test_student_writes_and_the_teacher_judges(tmp_path: Path) -> None:
    config = DistillationConfig(
        alpha=0.0,
        temperature=1.0,
        divergence="jsd",
        on_policy=OnPolicyConfig(share=1.0, prompt_tokens=3, new_tokens=6),
    )
    teacher = tiny_causal(seed=1, layers=3)
    made = job(tmp_path, config={"epochs": 8, "learning_rate": 1e-2}, loss=build_loss(config, "kd"), teacher=teacher)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    points = fit(made).history.points
    assert np.mean([p.terms["kd"] for p in points[-5:]]) < 0.9 * np.mean([p.terms["kd"] for p in points[:5]])
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_bfloat16_trains_close_to_float32(tmp_path: Path) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        made = job(tmp_path / precision, config={"precision": precision})
        losses[precision] = [point.loss for point in fit(made).history.points]
        assert made.model.lm_head.weight.dtype == torch.float32
    assert losses["bfloat16"] != losses["float32"]
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.02)
