"""Taps on real models of many architectures, small and random."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertForSequenceClassification,
    BloomConfig,
    BloomForCausalLM,
    DebertaV2Config,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from stillhouse.contract import ConfigurationError, StageBug
from stillhouse.models.layers import ModelShape, find_layers, layers_prefix, model_shape
from stillhouse.models.taps import Captured, Tap, TapRequest

SIZE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 24,
}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**SIZE)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**SIZE)),
    "distilbert": lambda: DistilBertForMaskedLM(
        DistilBertConfig(vocab_size=40, dim=16, n_layers=3, n_heads=4, hidden_dim=24)
    ),
    "modernbert": lambda: ModernBertForMaskedLM(ModernBertConfig(**SIZE, **IDS, cls_token_id=1, sep_token_id=2)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZE, num_key_value_heads=2)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=3, n_head=4, **IDS)),
    "gpt-neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZE, **IDS)),
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=40, hidden_size=16, n_layer=3, n_head=4)),
}
OUTPUTS = {"attn.Wo", "attn.c_proj", "attention.dense", "self_attention.dense", "self_attn.o_proj", "attention.out_lin"}
HEAD_WIDTH = 4
IDS_BT = torch.arange(3, 13).reshape(2, 5)


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[request.param]().eval()


def test_layers_are_found_in_any_architecture(model: PreTrainedModel) -> None:
    assert model_shape(model) == ModelShape(layers=3, width=16, heads=4)
    assert len(find_layers(model)) == 3
    assert find_layers(model)[1] is model.get_submodule(f"{layers_prefix(model)}1")


def test_a_model_with_shared_layers_is_refused() -> None:
    albert = AlbertModel(AlbertConfig(**SIZE, embedding_size=8))
    with pytest.raises(ConfigurationError, match="AlbertModel has 0 lists of 3 layers"):
        find_layers(albert)


def test_hidden_states_are_those_of_transformers(model: PreTrainedModel) -> None:
    with Tap(model, TapRequest(hidden=frozenset({0, 1, 2, 3}))) as tap:
        expected = model(input_ids=IDS_BT, output_hidden_states=True).hidden_states
        captured = tap.take()
    for number in (0, 1, 2):
        assert torch.equal(captured.hidden[number], expected[number])
    assert captured.hidden[3].requires_grad


def test_the_last_layer_is_taken_before_the_final_norm() -> None:
    bert, llama = MODELS["bert"]().eval(), MODELS["llama"]().eval()
    last = TapRequest(hidden=frozenset({3}))
    with Tap(bert, last) as of_bert, Tap(llama, last) as of_llama:
        expected = [model(input_ids=IDS_BT, output_hidden_states=True).hidden_states[3] for model in (bert, llama)]
        assert torch.equal(of_bert.take().hidden[3], expected[0])
        assert torch.equal(llama.get_submodule("model.norm")(of_llama.take().hidden[3]), expected[1])


def test_maps_times_values_are_what_attention_hands_on(model: PreTrainedModel) -> None:
    """Pins maps and values, and how fused projections are cut: the input of the output projection is A V."""
    given: list[torch.Tensor] = []
    layer = find_layers(model)[1]
    for name, module in layer.named_modules():
        if name in OUTPUTS:
            module.register_forward_pre_hook(lambda _module, args: given.append(args[0]))
        elif name == "attention.self":
            module.register_forward_hook(lambda _module, _args, output: given.append(output[0]))
    layers = frozenset({2})
    with Tap(model, TapRequest(attention=layers, qkv=layers)) as tap:
        model(input_ids=IDS_BT)
        captured = tap.take()
    weights_BHTT = captured.attention[2]
    torch.testing.assert_close(weights_BHTT.sum(dim=-1), torch.ones(2, 4, 5))
    values_BHTd = captured.values[2].unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2)
    values_BHTd = values_BHTd.repeat_interleave(4 // values_BHTd.shape[1], dim=1)
    torch.testing.assert_close((weights_BHTT @ values_BHTd).transpose(1, 2).flatten(2), given[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "gpt2"])
def test_queries_and_keys_make_the_maps(name: str) -> None:
    """Where positions enter at the embeddings alone, a map is the softmax of the queries times the keys."""
    model = MODELS[name]().eval()
    layers = frozenset({3})
    with Tap(model, TapRequest(attention=layers, qkv=layers)) as tap:
        model(input_ids=IDS_BT)
        captured = tap.take()
    q_BHTd, k_BHTd = (
        part[3].unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2) for part in (captured.queries, captured.keys)
    )
    scores_BHTT = q_BHTd @ k_BHTd.mT / HEAD_WIDTH**0.5
    if name == "gpt2":
        scores_BHTT = scores_BHTT.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(scores_BHTT.softmax(-1), captured.attention[3])


def test_grouped_keys_and_values_are_narrower() -> None:
    with Tap(MODELS["llama"]().eval(), TapRequest(qkv=frozenset({1}))) as tap:
        tap._model(input_ids=IDS_BT)
        captured = tap.take()
    assert captured.queries[1].shape == (2, 5, 16)
    assert captured.keys[1].shape == captured.values[1].shape == (2, 5, 8)


def test_only_maps_turn_the_fast_kernel_off_and_only_while_tapped(model: PreTrainedModel) -> None:
    fast = model.config._attn_implementation
    assert fast == ("eager" if model.config.model_type == "bloom" else "sdpa")
    with Tap(model, TapRequest(hidden=frozenset({1}), qkv=frozenset({1}))):
        assert model.config._attn_implementation == fast
    with Tap(model, TapRequest(attention=frozenset({1}))):
        assert model.config._attn_implementation == "eager"
    assert model.config._attn_implementation == fast


def test_a_closed_tap_leaves_no_hook(model: PreTrainedModel) -> None:
    layers = frozenset({1, 3})
    tap = Tap(model, TapRequest(hidden=layers | {0}, attention=layers, qkv=layers))
    assert any(module._forward_hooks for module in model.modules())
    tap.close()
    tap.close()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_taking_twice_is_a_bug() -> None:
    with Tap(MODELS["bert"](), TapRequest(hidden=frozenset({2}))) as tap:
        tap._model(input_ids=IDS_BT)
        tap.take()
        with pytest.raises(StageBug, match="no hidden of layer 2"):
            tap.take()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (TapRequest(hidden=frozenset({4})), "layer 4 was asked for"),
        (TapRequest(hidden=frozenset({-1, 2})), "layer -1 was asked for"),
        (TapRequest(qkv=frozenset({0})), "layer 0"),
    ],
)
def test_layers_that_are_not_there_are_refused(request_: TapRequest, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Tap(MODELS["bert"](), request_)


def test_unknown_projections_are_refused_and_leave_no_hook() -> None:
    phi = Phi3ForCausalLM(Phi3Config(**SIZE, num_key_value_heads=2, **IDS))
    with pytest.raises(ConfigurationError, match="layer 2 of a Phi3ForCausalLM has 0 modules that look like its proj"):
        Tap(phi, TapRequest(hidden=frozenset({1}), qkv=frozenset({2})))
    assert not any(module._forward_hooks for module in phi.modules())


def test_a_model_without_maps_is_refused() -> None:
    deberta = DebertaV2Model(DebertaV2Config(**SIZE)).eval()
    with (
        Tap(deberta, TapRequest(attention=frozenset({1}))),
        pytest.raises(ConfigurationError, match="DebertaV2Model hands out no attention maps"),
    ):
        deberta(input_ids=IDS_BT)


def test_requests_unite() -> None:
    one, two = TapRequest(hidden=frozenset({1})), TapRequest(hidden=frozenset({2}), qkv=frozenset({3}))
    assert one | two == TapRequest(hidden=frozenset({1, 2}), qkv=frozenset({3}))


def test_detached_values_have_no_history() -> None:
    captured = Captured(hidden={1: torch.ones(1, 1, 1, requires_grad=True)})
    assert not captured.detached().hidden[1].requires_grad
