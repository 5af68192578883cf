from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import LABELS
from tiny_chain import subject
from tiny_language import tiny_causal
from tiny_training import tiny_job
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from stillhouse.compression.base import Calibration, Subject
from stillhouse.compression.channels import Anatomy
from stillhouse.compression.importance import measure_importance
from stillhouse.compression.width import WidthPruning
from stillhouse.contract import ConfigurationError
from stillhouse.models import count_parameters, load_model
from stillhouse.recipe.compression import HealConfig, WidthStep
from stillhouse.training import fit

SAMPLE = Calibration(ids=[[7, 9, 11, 8], [10, 12, 6], [9, 9, 20, 31, 8]])
IDS_BT = torch.tensor([[7, 9, 30, 8, 12]])
SIZE = {"vocab_size": 38, "max_position_embeddings": 64, "initializer_range": 0.3}
BERT_LIKE = SIZE | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
LLAMA_LIKE = BERT_LIKE | {"num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": 5, "pad_token_id": 0}
DISTILBERT = SIZE | {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}

ENCODERS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**BERT_LIKE)),
    "bert-mlm": lambda: BertForMaskedLM(BertConfig(**BERT_LIKE)),
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**BERT_LIKE)),
    "xlm-roberta-mlm": lambda: XLMRobertaForMaskedLM(XLMRobertaConfig(**BERT_LIKE)),
    "distilbert": lambda: DistilBertForSequenceClassification(DistilBertConfig(**DISTILBERT)),
    "distilbert-mlm": lambda: DistilBertForMaskedLM(DistilBertConfig(**DISTILBERT)),
}
DECODERS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: tiny_causal(width=32, attention_bias=True, mlp_bias=True),
    "llama-tied": lambda: tiny_causal(width=32, tie_word_embeddings=True),
    "llama-wide-heads": lambda: tiny_causal(width=32, head_dim=12),
    "llama-classifier": lambda: LlamaForSequenceClassification(LlamaConfig(**LLAMA_LIKE)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**LLAMA_LIKE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**LLAMA_LIKE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**LLAMA_LIKE, head_dim=8)),
}
MODELS = ENCODERS | DECODERS


def made(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name.lower():  # which are all 0 and 1 when new
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def pruning(**step: Any) -> WidthPruning:
    return WidthPruning(WidthStep.model_validate({"name": "narrow"} | step))


def cut(model: PreTrainedModel, **step: Any) -> PreTrainedModel:
    return pruning(**step).cut(subject(model), SAMPLE, turn=1, rounds=1).subject.model


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS_BT).logits


def widths(model: PreTrainedModel) -> tuple[int, int, int]:
    found = Anatomy(model).widths
    return found.groups, found.feed_forward, found.hidden


@torch.no_grad()
def silence(model: PreTrainedModel, *, groups: set[int], channels: list[int]) -> None:
    """Let heads and feed-forward channels of every layer hand on nothing."""
    anatomy = Anatomy(model)
    for _, _, values in anatomy.modules(("keys", "hidden")):
        for group in groups:
            rows = slice(group * anatomy.head_size, (group + 1) * anatomy.head_size)
            values.weight[rows] = 0
            if values.bias is not None:
                values.bias[rows] = 0
    for _, _, first in anatomy.modules(("feed_forward", "hidden")):
        first.weight[channels] = 0
        if first.bias is not None:
            first.bias[channels] = 0


@pytest.mark.parametrize("kind", MODELS)
def test_keeping_everything_changes_nothing(kind: str) -> None:
    model = made(kind)
    same = cut(model, heads=model.config.num_attention_heads, feed_forward=Anatomy(model).widths.feed_forward)
    torch.testing.assert_close(logits(same), logits(model))


@pytest.mark.parametrize("kind", MODELS)
def test_feed_forward_channels_that_are_silent_go_unnoticed(kind: str) -> None:
    model = made(kind)
    size = Anatomy(model).widths.feed_forward
    silence(model, groups=set(), channels=[0, 5, size - 1])
    narrow = cut(model, feed_forward=size - 3)
    assert widths(narrow)[1] == size - 3
    torch.testing.assert_close(logits(narrow), logits(model))


@pytest.mark.parametrize("kind", DECODERS)
def test_groups_of_heads_that_are_silent_go_unnoticed(kind: str) -> None:
    model = made(kind)
    silence(model, groups={0}, channels=[])
    narrow = cut(model, heads=2)
    assert (narrow.config.num_attention_heads, narrow.config.num_key_value_heads) == (2, 1)
    assert widths(narrow)[2] == 32
    torch.testing.assert_close(logits(narrow), logits(model))


@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_hidden_channels_that_are_silent_go_unnoticed(kind: str) -> None:
    model = made(kind)
    silent = [1, 7, 13, 30]
    for _, _, module in Anatomy(model).modules((None, "hidden")):
        if isinstance(module, nn.Embedding):
            module.weight[:, silent] = 0
    for axes in (("hidden", "queries"), ("hidden", "feed_forward")):
        for _, _, module in Anatomy(model).modules(axes):
            module.weight[silent] = 0
            if module.bias is not None:
                module.bias[silent] = 0
    narrow = cut(model, hidden=28)
    assert narrow.config.hidden_size == 28
    torch.testing.assert_close(logits(narrow), logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ENCODERS)
@torch.no_grad()
def test_an_encoder_keeps_its_most_active_heads_and_hidden_channels(kind: str) -> None:
    model = made(kind)
    silence(model, groups={1, 3}, channels=[])
    quiet = list(range(0, 32, 2))
    for _, _, norm in Anatomy(model).modules(("hidden",)):
        norm.weight[quiet], norm.bias[quiet] = 0, 0
    narrow = cut(model, heads=2)
    assert widths(narrow)[::2] == (2, 16)
    loud = list(range(1, 32, 2))
    rows = [*range(8), *range(16, 24)]
    for (_, _, after), (_, _, before) in zip(
        Anatomy(narrow).modules(("keys", "hidden")), Anatomy(model).modules(("keys", "hidden")), strict=True
    ):
        assert torch.equal(after.weight, before.weight[rows][:, loud])
        assert torch.equal(after.bias, before.bias[rows])
    assert logits(narrow).shape == logits(model).shape


@pytest.mark.parametrize("kind", MODELS)
def test_a_narrow_model_is_a_plain_one(kind: str, tmp_path: Path) -> None:
    model = made(kind)
    sizes = {"heads": 2, "feed_forward": 21} | ({"hidden": 18} if kind in DECODERS else {})
    operation = pruning(**sizes)
    after = operation.cut(subject(model), SAMPLE, turn=1, rounds=1)
    narrow = after.subject.model
    assert after.did.startswith("kept 2 of 4 heads, 21 of ")
    operation.write(after.subject, tmp_path)
    kinds = {"ForMaskedLM": "masked-lm", "ForCausalLM": "causal-lm"}
    task: Any = next((kinds[end] for end in kinds if type(model).__name__.endswith(end)), "text-classification")
    labels = tuple(model.config.id2label.values()) if task == "text-classification" else ()
    read = load_model(tmp_path, task=task, labels=labels)
    assert type(read) is type(model)
    written = narrow.state_dict()
    assert all(torch.equal(tensor, written[name]) for name, tensor in read.state_dict().items())
    torch.testing.assert_close(logits(read), logits(narrow))
    tied = model.get_input_embeddings().weight is getattr(model.get_output_embeddings(), "weight", None)
    assert tied == (read.get_input_embeddings().weight is getattr(read.get_output_embeddings(), "weight", None))


def test_importance_is_the_norm_over_documents_of_the_mean_over_tokens() -> None:
    model = made("llama")
    seen: dict[str, list[torch.Tensor]] = {"heads": [], "channels": []}
    layer = model.model.layers[1]
    layer.self_attn.o_proj.register_forward_pre_hook(lambda _module, inputs: seen["heads"].append(inputs[0][0]))
    layer.mlp.down_proj.register_forward_pre_hook(lambda _module, inputs: seen["channels"].append(inputs[0][0]))
    found = measure_importance(model, Anatomy(model), SAMPLE.ids)
    channels_BF = torch.stack([states_TF.abs().mean(0) for states_TF in seen["channels"]])
    torch.testing.assert_close(found.feed_forward_LF[1].float(), channels_BF.norm(dim=0))
    heads_BN = torch.stack([states_TQ.reshape(-1, 4, 8).norm(dim=-1).mean(0) for states_TQ in seen["heads"]])
    torch.testing.assert_close(found.groups_LG[1].float(), heads_BN.norm(dim=0).reshape(2, 2).sum(-1))


def test_only_the_first_documents_are_looked_at() -> None:
    model = made("bert")
    first = pruning(feed_forward=24, calibration_rows=1).cut(subject(model), SAMPLE, turn=1, rounds=1)
    alone = Calibration(ids=SAMPLE.ids[:1])
    again = pruning(feed_forward=24).cut(subject(model), alone, turn=1, rounds=1)
    torch.testing.assert_close(logits(first.subject.model), logits(again.subject.model))
    assert not torch.equal(logits(cut(model, feed_forward=24)), logits(first.subject.model))


@settings(max_examples=15)
@given(st.sampled_from(["bert", "llama-tied"]), st.floats(0.3, 0.98), st.booleans())
def test_rounds_leave_half_of_every_width_and_reach_the_target(kind: str, share: float, heals: bool) -> None:
    model = made(kind)
    operation = pruning(target={"share": share}, heal=HealConfig() if heals else None)
    now = subject(model)
    rounds = operation.rounds(now)
    assert heals or rounds == 1
    for turn in range(1, rounds + 1):
        after = operation.cut(now, SAMPLE, turn=turn, rounds=rounds).subject
        if heals:
            assert all(a >= b / 2 for a, b in zip(widths(after.model), widths(now.model), strict=True))
            assert count_parameters(after.model) >= count_parameters(now.model) / 2
        now = after
    assert count_parameters(now.model) <= share * count_parameters(model)


def test_a_target_shrinks_all_widths_alike_and_no_more_than_needed() -> None:
    model = tiny_causal(width=64, intermediate_size=128, num_attention_heads=8, num_key_value_heads=8)
    narrow = cut(model, target={"share": 0.5})
    groups, feed_forward, hidden = widths(narrow)
    assert feed_forward % 8 == hidden % groups == 0
    shares = (groups / 8, feed_forward / 128, hidden / 64)
    assert max(shares) - min(shares) <= 1 / 8
    assert 0.4 < count_parameters(narrow) / count_parameters(model) <= 0.5


def test_named_sizes_take_several_rounds_if_the_model_learns_between_them() -> None:
    model = made("llama")
    assert pruning(feed_forward=32, heal=HealConfig()).rounds(subject(model)) == 1
    assert pruning(feed_forward=8, heal=HealConfig()).rounds(subject(model)) == 3
    assert pruning(feed_forward=8).rounds(subject(model)) == 1
    assert pruning(feed_forward=32, hidden=16, heal=HealConfig()).rounds(subject(model)) == 2, "weights: a quarter"
    # The second of two rounds would halve the groups and most of the rest: too much.
    assert pruning(heads=2, feed_forward=32, hidden=16, heal=HealConfig()).rounds(subject(model)) == 3
    latency = {"measure": "latency", "share": 0.4}
    assert pruning(target=latency, heal=HealConfig()).rounds(subject(model)) == 2


@pytest.mark.parametrize(
    ("kind", "step", "reason"),
    [
        ("bert", {"hidden": 16}, "an encoder's hidden size is that of its heads; give heads instead of hidden"),
        ("bert", {"heads": 5}, "heads is 5 and the model has 4; lower heads"),
        ("bert", {"feed_forward": 49}, "feed_forward is 49 and the model has 48; lower feed_forward"),
        ("llama", {"hidden": 33}, "hidden is 33 and the model has 32; lower hidden"),
        ("llama", {"heads": 3}, "heads is 3 and 2 query heads share a key head; give a multiple of 2"),
        ("llama", {"hidden": 19}, r"transformers refuses .*hidden size \(19\) is not a multiple of .* heads \(4\)"),
        ("llama", {"target": {"share": 0.001}}, r"the smallest model that this step can make has 0\.\d\d of the param"),
    ],
)
@pytest.mark.parametrize("heal", [None, HealConfig()])
def test_sizes_that_can_not_be_are_refused_at_once(
    kind: str, step: dict[str, Any], reason: str, heal: HealConfig | None
) -> None:
    operation, now = pruning(**step, heal=heal), subject(made(kind))
    with pytest.raises(ConfigurationError, match=reason):
        operation.rounds(now) if heal else operation.cut(now, SAMPLE, turn=1, rounds=1)


def test_other_architectures_are_refused_and_the_known_ones_named() -> None:
    config = AlbertConfig(**BERT_LIKE, embedding_size=16)
    with pytest.raises(ConfigurationError, match=r"AlbertForMaskedLM of type albert .* supported are bert, roberta"):
        pruning(heads=2).rounds(subject(AlbertForMaskedLM(config)))
    model = made("llama")
    model.extra = nn.Linear(2, 2)
    with pytest.raises(ConfigurationError, match=r"\(extra is unknown\)"):
        pruning(heads=2).rounds(subject(model))


def test_without_documents_there_is_nothing_to_measure() -> None:
    with pytest.raises(ConfigurationError, match="needs documents"):
        pruning(heads=2).cut(subject(made("bert")), Calibration(ids=[[]]), turn=1, rounds=1)


def test_settings_of_generation_and_the_random_state_stay() -> None:
    model = made("llama")
    model.generation_config.eos_token_id = [5, 3]
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    narrow = cut(model, target={"share": 0.8})
    assert torch.equal(torch.rand(2), expected)
    assert narrow.generation_config.eos_token_id == [5, 3]


def test_the_engine_trains_what_was_cut(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, arm="sft")
    narrow = pruning(heads=1, feed_forward=40).cut(
        Subject(model=job.model, tokenizer=job.tokenizer, task=job.task, labels=LABELS), SAMPLE, turn=1, rounds=1
    )
    before = narrow.subject.model.classifier.weight.clone()
    outcome = fit(replace(job, model=narrow.subject.model))
    assert widths(outcome.model) == (1, 40, 16)
    assert not torch.equal(outcome.model.classifier.weight, before)
