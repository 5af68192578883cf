from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import LABELS, write_teacher
from transformers import DistilBertConfig, DistilBertForSequenceClassification, PreTrainedModel

from stillhouse.contract import ConfigurationError
from stillhouse.models import load_model, load_tokenizer, save_model
from stillhouse.recipe import StudentConfig
from stillhouse.student import layer_map, student_from_teacher


@pytest.fixture
def teacher(tmp_path: Path) -> PreTrainedModel:
    return load_model(write_teacher(tmp_path / "teacher", layers=4), task="text-classification", labels=LABELS)


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([[2, 7, 9, 11, 3], [2, 8, 3, 0, 0]])).logits


def test_alternate_map_is_that_of_distilbert() -> None:
    assert layer_map(12, StudentConfig(layers=6)) == (0, 2, 4, 7, 9, 11)
    assert layer_map(6, StudentConfig(layers=3)) == (0, 2, 5)
    assert layer_map(6, StudentConfig(layers=1)) == (0,)


@given(st.integers(1, 48).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_alternate_map_rises_from_first_to_last(sizes: tuple[int, int]) -> None:
    num_teacher, num_student = sizes
    chosen = layer_map(num_teacher, StudentConfig(layers=num_student))
    assert list(chosen) == sorted(set(chosen))
    assert len(chosen) == num_student
    assert chosen[0] == 0
    assert chosen[-1] == (num_teacher - 1 if num_student > 1 else 0)


def test_deeper_student_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"more layers than the teacher \(7 and 6\)"):
        layer_map(6, StudentConfig(layers=7))


def test_layer_that_the_teacher_lacks_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="names layer 6 and the teacher ends at 5"):
        layer_map(6, StudentConfig(layers=2, layer_map=(0, 6)))


def test_student_with_all_layers_is_the_teacher(teacher: PreTrainedModel) -> None:
    student = student_from_teacher(teacher, StudentConfig(layers=4))
    assert torch.equal(logits(student), logits(teacher))


def test_layers_are_copies_of_the_chosen_ones(teacher: PreTrainedModel) -> None:
    student = student_from_teacher(teacher, StudentConfig(layers=2, layer_map=(1, 3)))
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
    student_from_teacher(teacher, StudentConfig(layers=2))
    assert torch.equal(torch.rand(2), expected)


def test_student_survives_saving(teacher: PreTrainedModel, tmp_path: Path) -> None:
    student = student_from_teacher(teacher, StudentConfig(layers=2))
    save_model(student, load_tokenizer(tmp_path / "teacher"), tmp_path / "student")
    assert torch.equal(
        logits(load_model(tmp_path / "student", task="text-classification", labels=LABELS)), logits(student)
    )


def test_distilbert_has_its_layers_elsewhere() -> None:
    config = DistilBertConfig(vocab_size=60, dim=16, n_layers=4, n_heads=2, hidden_dim=32, max_position_embeddings=64)
    teacher = DistilBertForSequenceClassification(config).eval()
    student = student_from_teacher(teacher, StudentConfig(layers=2))
    assert len(student.distilbert.transformer.layer) == student.config.num_hidden_layers == 2
    whole = student_from_teacher(teacher, StudentConfig(layers=4))
    assert torch.equal(logits(whole), logits(teacher))
