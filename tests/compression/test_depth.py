from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import LABELS, write_teacher
from tiny_chain import subject
from tiny_language import tiny_causal
from transformers import PreTrainedModel

from stillhouse.compression.base import Calibration, Subject
from stillhouse.compression.depth import DepthPruning
from stillhouse.compression.rounds import halvings, next_size
from stillhouse.contract import ConfigurationError
from stillhouse.models import count_parameters, load_model, load_tokenizer
from stillhouse.recipe.compression import DepthStep, HealConfig

SAMPLE = Calibration(ids=[[7, 9, 11, 8], [10, 12, 6]])


def pruning(**step: Any) -> DepthPruning:
    return DepthPruning(DepthStep.model_validate({"name": "shallow"} | step))


def all_rounds(operation: DepthPruning, model: PreTrainedModel) -> list[int]:
    now, sizes = subject(model), []
    rounds = operation.rounds(now)
    for turn in range(1, rounds + 1):
        now = operation.cut(now, SAMPLE, turn=turn, rounds=rounds).subject
        sizes.append(now.model.config.num_hidden_layers)
    return sizes


@given(st.integers(1, 200).flatmap(lambda now: st.tuples(st.just(now), st.integers(1, now))))
def test_rounds_leave_at_least_half_and_end_at_the_goal(sizes: tuple[int, int]) -> None:
    now, goal = sizes
    rounds = halvings(now, goal)
    assert 2**rounds * goal >= now
    assert rounds == 1 or 2 ** (rounds - 1) * goal < now
    for left in range(rounds, 0, -1):
        after = next_size(now, goal, left)
        assert now / 2 <= after <= now
        now = after
    assert now == goal


def test_layers_of_least_influence_go_and_the_rest_computes_the_same() -> None:
    model = tiny_causal(layers=4)
    with torch.no_grad():
        for part in ("self_attn.o_proj", "mlp.down_proj"):
            model.get_submodule(f"model.layers.2.{part}").weight.zero_()
    cut = pruning(layers=3).cut(subject(model), SAMPLE, turn=1, rounds=1)
    assert cut.did == "kept 3 of 4 layers by block influence: 0, 1, 3"
    ids_BT = torch.tensor(SAMPLE.ids[:1])
    torch.testing.assert_close(cut.subject.model(ids_BT).logits, model(ids_BT).logits)


def test_keeping_every_layer_changes_nothing() -> None:
    model = tiny_causal(layers=2)
    cut = pruning(layers=2).cut(subject(model), SAMPLE, turn=1, rounds=1)
    ids_BT = torch.tensor(SAMPLE.ids[:1])
    torch.testing.assert_close(cut.subject.model(ids_BT).logits, model(ids_BT).logits)


def test_large_cuts_take_several_rounds_if_the_model_learns_between_them() -> None:
    assert all_rounds(pruning(layers=1, heal=HealConfig()), tiny_causal(layers=6)) == [4, 2, 1]
    assert all_rounds(pruning(layers=1), tiny_causal(layers=6)) == [1]
    assert all_rounds(pruning(layers=3, heal=HealConfig()), tiny_causal(layers=6)) == [3]


@pytest.mark.parametrize("heal", [None, HealConfig()])
@pytest.mark.parametrize("measure", ["parameters", "bytes"])
def test_a_share_is_one_of_what_the_first_round_started_from(measure: str, heal: HealConfig | None) -> None:
    model = tiny_causal(layers=8)
    each = (count_parameters(model) - count_parameters(tiny_causal(layers=1))) / 7
    fixed = count_parameters(model) - 8 * each
    share = (fixed + 3.5 * each) / count_parameters(model)
    found = all_rounds(pruning(target={"measure": measure, "share": share}, heal=heal), model)
    assert found == ([5, 3] if heal else [3])


def test_a_share_of_latency_is_halved_round_by_round() -> None:
    operation = pruning(target={"measure": "latency", "share": 0.2}, heal=HealConfig())
    assert operation.rounds(subject(tiny_causal(layers=8))) == 3


def test_targets_out_of_reach_say_what_can_be_reached() -> None:
    with pytest.raises(ConfigurationError, match=r"target.share is 0.01 and the smallest .* has 0\.\d\d of the param"):
        pruning(target={"share": 0.01}).cut(subject(tiny_causal(layers=4)), SAMPLE, turn=1, rounds=1)
    with pytest.raises(ConfigurationError, match=r"target.share is 0.01"):
        pruning(target={"share": 0.01}, heal=HealConfig()).rounds(subject(tiny_causal(layers=4)))
    with pytest.raises(ConfigurationError, match="as small as this step can make it"):
        pruning(target={"share": 0.9}).cut(subject(tiny_causal(layers=1)), SAMPLE, turn=1, rounds=1)


def test_more_layers_than_there_are_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="layers is 5 and the model has 4; lower layers"):
        pruning(layers=5).cut(subject(tiny_causal(layers=4)), SAMPLE, turn=1, rounds=1)


def test_settings_of_generation_and_the_random_state_stay() -> None:
    model = tiny_causal(layers=3)
    model.generation_config.eos_token_id = [5, 3]
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    cut = pruning(target={"share": 0.9}).cut(subject(model), SAMPLE, turn=1, rounds=1)
    assert torch.equal(torch.rand(2), expected)
    assert cut.subject.model.generation_config.eos_token_id == [5, 3]


def test_encoder_is_written_and_read_back(tmp_path: Path) -> None:
    folder = write_teacher(tmp_path / "before", layers=4)
    before = Subject(
        model=load_model(folder, task="text-classification", labels=LABELS),
        tokenizer=load_tokenizer(folder),
        task="text-classification",
        labels=LABELS,
    )
    operation = pruning(layers=2)
    after = operation.cut(before, SAMPLE, turn=1, rounds=1).subject
    operation.write(after, tmp_path / "after")
    read = load_model(tmp_path / "after", task="text-classification", labels=LABELS)
    written = after.model.state_dict()
    assert all(torch.equal(tensor, written[name]) for name, tensor in read.state_dict().items())
    assert read.config.num_hidden_layers == 2
