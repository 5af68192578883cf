from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    CohereConfig,
    CohereForCausalLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from stillhouse.contract import ConfigurationError, StageBug
from stillhouse.models.heads import HeadTap, check_head, head_states, output_head

SIZE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}


def llama(*, tied: bool) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**SIZE, num_key_value_heads=1, tie_word_embeddings=tied))


MODELS = {
    "llama": lambda: llama(tied=False),
    "llama-tied": lambda: llama(tied=True),
    "gpt-neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZE)),
    "bert": lambda: BertForMaskedLM(BertConfig(**SIZE)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**SIZE)),
    "distilbert": lambda: DistilBertForMaskedLM(
        DistilBertConfig(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=64)
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_states_and_head_give_the_models_logits_and_gradients(kind: str) -> None:
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    ids_BT = torch.randint(2, 50, (3, 7))
    check_head(model)
    head = output_head(model)
    if head.bias_V is not None:
        torch.nn.init.normal_(head.bias_V)
    states_BTD = head_states(model, input_ids=ids_BT)
    logits_BTV = torch.nn.functional.linear(states_BTD, head.weight_VD, head.bias_V)
    torch.testing.assert_close(logits_BTV, model(input_ids=ids_BT).logits)

    def gradients(logits_BTV: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(logits_BTV.square().sum(), parameters))

    parameters = [value for name, value in model.named_parameters() if "pooler" not in name]
    for own, expected in zip(gradients(logits_BTV), gradients(model(input_ids=ids_BT).logits), strict=True):
        torch.testing.assert_close(own, expected)


def test_model_computes_no_logits_under_the_tap() -> None:
    model = llama(tied=True)
    with HeadTap(model) as tap:
        assert model(input_ids=torch.ones((2, 5), dtype=torch.int64)).logits.numel() == 0
        assert tap.take().shape == (2, 5, 16)
        with pytest.raises(StageBug, match="no forward pass"):
            tap.take()
    assert model(input_ids=torch.ones((2, 5), dtype=torch.int64)).logits.shape == (2, 5, 50)


@pytest.mark.parametrize(
    "model",
    [
        Gemma2ForCausalLM(Gemma2Config(**SIZE, num_key_value_heads=1, head_dim=8, final_logit_softcapping=30.0)),
        CohereForCausalLM(CohereConfig(**SIZE, logit_scale=0.0625)),
    ],
    ids=["capped", "scaled"],
)
def test_models_that_change_their_logits_are_refused(model: Any) -> None:
    model.train()
    with pytest.raises(ConfigurationError, match="scales or caps the logits"):
        check_head(model)
    assert model.training


def test_check_leaves_no_hook_behind() -> None:
    model = llama(tied=False)
    check_head(model)
    assert not model.lm_head._forward_pre_hooks


def test_model_without_a_vocabulary_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no linear output head"):
        output_head(BertForSequenceClassification(BertConfig(**SIZE)))


def test_head_in_bfloat16_is_accepted() -> None:
    check_head(llama(tied=True).to(torch.bfloat16))
