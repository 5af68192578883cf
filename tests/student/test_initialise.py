from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import LABELS, write_teacher
from tiny_language import tiny_causal, tiny_tokenizer
from transformers import DistilBertConfig, DistilBertForSequenceClassification, PreTrainedModel

from stillhouse.contract import ConfigurationError, StageBug
from stillhouse.models import load_model, load_tokenizer, save_model
from stillhouse.recipe import LoraConfig, PathSource, StudentConfig
from stillhouse.student import (
    add_lora,
    block_influence,
    check_same_tokenizer,
    initialise,
    layer_map,
    merge_lora,
)


@pytest.fixture
def teacher(tmp_path: Path) -> PreTrainedModel:
    return load_model(write_teacher(tmp_path / "teacher", layers=4), task="text-classification", labels=LABELS)


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([[2, 7, 9, 11, 3], [2, 8, 3, 0, 0]])).logits


def test_spaced_map_is_that_of_distilbert() -> None:
    assert layer_map(12, StudentConfig(layers=6)) == (0, 2, 4, 7, 9, 11)
    assert layer_map(6, StudentConfig(layers=3)) == (0, 2, 5)
    assert layer_map(6, StudentConfig(layers=1)) == (0,)


@given(st.integers(1, 48).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_spaced_map_rises_from_first_to_last(sizes: tuple[int, int]) -> None:
    num_teacher, num_student = sizes
    chosen = layer_map(num_teacher, StudentConfig(layers=num_student))
    assert list(chosen) == sorted(set(chosen))
    assert len(chosen) == num_student
    assert chosen[0] == 0
    assert chosen[-1] == (num_teacher - 1 if num_student > 1 else 0)


@pytest.mark.parametrize(
    ("name", "layers"),
    [("alternate", (0, 2, 4, 6, 8, 10)), ("lower", (0, 1, 2, 3, 4, 5)), ("upper", (6, 7, 8, 9, 10, 11))],
)
def test_named_maps(name: Any, layers: tuple[int, ...]) -> None:
    assert layer_map(12, StudentConfig(layers=6, layer_map=name)) == layers


def test_without_a_teacher_a_checkpoint_of_its_own_takes_its_place() -> None:
    own = tiny_causal(layers=3)
    start = initialise(StudentConfig(layers=1, layer_map="upper"), teacher=None, source=own)
    assert start.layers == (2,)
    assert "teacher" not in start.summary
    changed = StudentConfig(architecture={"num_hidden_layers": 1})
    assert initialise(changed, teacher=None, source=own).model.config.num_hidden_layers == 1
    with pytest.raises(StageBug, match="checkpoint of its own"):
        initialise(StudentConfig(layers=1), teacher=None)


def test_deeper_student_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"more layers than the model it comes from \(7 and 6\)"):
        layer_map(6, StudentConfig(layers=7))


def test_layer_that_the_teacher_lacks_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="names layer 6 and the model ends at 5"):
        layer_map(6, StudentConfig(layers=2, layer_map=(0, 6)))


def test_student_with_all_layers_is_the_teacher(teacher: PreTrainedModel) -> None:
    student = initialise(StudentConfig(layers=4), teacher=teacher).model
    assert torch.equal(logits(student), logits(teacher))


def test_layers_are_copies_of_the_chosen_ones(teacher: PreTrainedModel) -> None:
    student = initialise(StudentConfig(layers=2, layer_map=(1, 3)), teacher=teacher).model
    assert student.config.num_hidden_layers == 2
    assert teacher.config.num_hidden_layers == 4
    for new, old in enumerate((1, 3)):
        theirs = teacher.bert.encoder.layer[old].state_dict()
        for name, tensor in student.bert.encoder.layer[new].state_dict().items():
            assert torch.equal(tensor, theirs[name])
    before = logits(teacher)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert torch.equal(logits(teacher), before)


def test_random_state_of_the_caller_is_left_alone(teacher: PreTrainedModel) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    initialise(StudentConfig(layers=2), teacher=teacher)
    assert torch.equal(torch.rand(2), expected)


def test_student_survives_saving(teacher: PreTrainedModel, tmp_path: Path) -> None:
    student = initialise(StudentConfig(layers=2), teacher=teacher).model
    save_model(student, load_tokenizer(tmp_path / "teacher"), tmp_path / "student")
    assert torch.equal(
        logits(load_model(tmp_path / "student", task="text-classification", labels=LABELS)), logits(student)
    )


def test_distilbert_has_its_layers_elsewhere() -> None:
    config = DistilBertConfig(vocab_size=60, dim=16, n_layers=4, n_heads=2, hidden_dim=32, max_position_embeddings=64)
    teacher = DistilBertForSequenceClassification(config).eval()
    student = initialise(StudentConfig(layers=2), teacher=teacher).model
    assert len(student.distilbert.transformer.layer) == student.config.num_hidden_layers == 2
    whole = initialise(StudentConfig(layers=4), teacher=teacher).model
    assert torch.equal(logits(whole), logits(teacher))


SAMPLE = [[7, 9, 11, 8], [10, 12, 6]]


def test_layers_that_change_little_have_little_influence() -> None:
    model = tiny_causal(layers=4)
    with torch.no_grad():
        for part in ("self_attn.o_proj", "mlp.down_proj"):
            model.get_submodule(f"model.layers.2.{part}").weight.mul_(1e-4)
    influences = block_influence(model, SAMPLE)
    assert influences[2] == pytest.approx(0, abs=1e-6)
    assert min(influences[:2] + influences[3:]) > 1e-3
    start = initialise(StudentConfig(layers=3), teacher=model, sample=SAMPLE)
    assert start.layers == (0, 1, 3)
    found, wanted = (m(input_ids=torch.tensor([SAMPLE[0]])).logits for m in (start.model, model))
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2)


def test_encoders_are_spaced_by_default(teacher: PreTrainedModel) -> None:
    assert initialise(StudentConfig(layers=2), teacher=teacher, sample=SAMPLE).layers == (0, 3)


def test_decoder_without_documents_to_measure_on_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="needs documents"):
        initialise(StudentConfig(layers=1), teacher=tiny_causal())


@pytest.mark.parametrize("tied", [True, False])
def test_heads_follow_whether_tied_or_not(tied: bool) -> None:
    model = tiny_causal(layers=4, tie_word_embeddings=tied)
    student = initialise(StudentConfig(layers=2, layer_map="lower"), teacher=model).model
    assert torch.equal(student.lm_head.weight, model.lm_head.weight)
    assert (student.lm_head.weight is student.model.embed_tokens.weight) == tied


def test_own_checkpoint_takes_the_place_of_the_teacher() -> None:
    own = tiny_causal(layers=3, seed=5)
    start = initialise(
        StudentConfig(layers=2, layer_map="upper", source=PathSource(path="own")), teacher=tiny_causal(), source=own
    )
    assert torch.equal(start.model.model.layers[0].mlp.up_proj.weight, own.model.layers[1].mlp.up_proj.weight)
    assert "from checkpoint layers 1, 2" in start.summary


def test_random_weights_depend_on_the_seed_alone() -> None:
    made = [
        initialise(
            StudentConfig(architecture={"hidden_size": 8, "num_hidden_layers": 1}, seed=seed), teacher=tiny_causal()
        )
        for seed in (1, 1, 2)
    ]
    first, second, third = (start.model.model.layers[0].mlp.up_proj.weight for start in made)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert first.shape == (32, 8)
    assert made[0].layers is None


@pytest.mark.parametrize(
    ("architecture", "reason"), [({"hidden_sise": 8}, "no 'hidden_sise'"), ({"vocab_size": 99}, "changes vocab_size")]
)
def test_unfit_architecture_is_refused(architecture: dict[str, int], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        initialise(StudentConfig(architecture=architecture), teacher=tiny_causal())


def test_other_tokenizer_is_refused_and_the_difference_named() -> None:
    check_same_tokenizer(tiny_tokenizer(), tiny_tokenizer())
    other = tiny_tokenizer()
    other.add_tokens(["more"])
    with pytest.raises(ConfigurationError, match=r"different tokenizers \(39 and 38 tokens\)"):
        check_same_tokenizer(other, tiny_tokenizer())


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_adapters_change_nothing_at_first_and_are_merged_exactly(kind: str, teacher: PreTrainedModel) -> None:
    model = teacher if kind == "encoder" else tiny_causal()
    before = logits(model)
    adapted = add_lora(model, LoraConfig(rank=4), seed=1)
    assert torch.equal(logits(adapted), before)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name or "classifier" in name for name in trained)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    changed = logits(adapted)
    assert not torch.allclose(changed, before)
    merged = merge_lora(adapted)
    assert type(merged) is type(model)
    torch.testing.assert_close(logits(merged), changed, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "config", [StudentConfig(layers=1, layer_map="lower"), StudentConfig(architecture={"num_hidden_layers": 1})]
)
def test_a_student_stops_writing_where_its_teacher_stops(config: StudentConfig, tmp_path: Path) -> None:
    teacher = tiny_causal(layers=2)
    teacher.generation_config.eos_token_id = [3, 7]

    student = initialise(config, teacher=teacher, sample=[[5, 6, 7]]).model

    assert student.generation_config.eos_token_id == [3, 7]
    save_model(student, tiny_tokenizer(), tmp_path / "student")
    assert load_model(tmp_path / "student", task="causal-lm").generation_config.eos_token_id == [3, 7]
