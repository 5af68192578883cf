from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_language import save, tiny_causal, tiny_masked, tiny_tokenizer
from transformers import BertModel

from stillhouse.contract import ConfigurationError
from stillhouse.models import load_model, load_tokenizer, save_model, template_sha256, tokenizer_sha256

IDS = torch.tensor([[7, 9, 11, 12]])


@pytest.fixture
def causal(tmp_path: Path) -> Path:
    return save(tiny_causal(), tiny_tokenizer(), tmp_path / "causal")


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    return save(tiny_masked(), tiny_tokenizer(masked=True), tmp_path / "masked")


def remove(folder: Path, name: str) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop(name)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("tied", [True, False])
def test_causal_models_come_back_with_tied_and_untied_heads(tmp_path: Path, tied: bool) -> None:
    original = tiny_causal(tie_word_embeddings=tied)
    folder = save(original, tiny_tokenizer(), tmp_path / "model")
    model = load_model(folder, task="causal-lm")
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    assert not model.training
    with torch.inference_mode():
        assert torch.equal(model(input_ids=IDS).logits, original(input_ids=IDS).logits)


def test_masked_models_come_back(masked: Path) -> None:
    with torch.inference_mode():
        assert torch.equal(
            load_model(masked, task="masked-lm")(input_ids=IDS).logits, tiny_masked()(input_ids=IDS).logits
        )


def test_weights_are_held_in_the_wanted_type(causal: Path) -> None:
    assert {p.dtype for p in load_model(causal, task="causal-lm", precision="bfloat16").parameters()} == {
        torch.bfloat16
    }


def test_a_head_is_not_made_up(tmp_path: Path, causal: Path) -> None:
    remove(causal, "lm_head.weight")
    with pytest.raises(ConfigurationError, match=r"lacks 1 weights \(lm_head\.weight\)"):
        load_model(causal, task="causal-lm")
    body = save(BertModel(tiny_masked().config), tiny_tokenizer(masked=True), tmp_path / "body")
    with pytest.raises(ConfigurationError, match=r"lacks \d+ weights \(cls\."):
        load_model(body, task="masked-lm")


def test_who_is_about_to_be_taught_gets_a_new_head_and_nothing_else(tmp_path: Path) -> None:
    body = BertModel(tiny_masked().config)
    folder = save(body, tiny_tokenizer(masked=True), tmp_path / "body")
    one, other = (load_model(folder, task="masked-lm", new_head=True) for _ in range(2))
    assert torch.equal(one.cls.predictions.transform.dense.weight, other.cls.predictions.transform.dense.weight)
    assert torch.equal(one.bert.embeddings.word_embeddings.weight, body.embeddings.word_embeddings.weight)
    assert one.cls.predictions.decoder.weight is one.bert.embeddings.word_embeddings.weight
    remove(folder, "encoder.layer.1.output.dense.bias")
    with pytest.raises(ConfigurationError, match=r"lacks 1 weights \(bert\.encoder\.layer\.1\.output\.dense\.bias\)"):
        load_model(folder, task="masked-lm", new_head=True)


def test_a_masked_model_becomes_a_classifier_with_the_same_body(masked: Path) -> None:
    before = load_model(masked, task="masked-lm").bert.encoder.state_dict()
    classifier = load_model(masked, task="text-classification", labels=("no", "yes"))
    assert classifier.config.num_labels == 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.bert.encoder.state_dict().items())


def test_a_lacking_layer_weight_is_named(masked: Path) -> None:
    remove(masked, "bert.encoder.layer.1.output.dense.bias")
    with pytest.raises(ConfigurationError, match=r"lacks 1 weights \(bert\.encoder\.layer\.1\.output\.dense\.bias\)"):
        load_model(masked, task="masked-lm")


def test_an_encoder_that_sees_the_answer_is_no_causal_model(masked: Path, causal: Path) -> None:
    with pytest.raises(ConfigurationError, match="is a BertForMaskedLM, not for causal-lm"):
        load_model(masked, task="causal-lm")
    with pytest.raises(ConfigurationError, match="is a LlamaForCausalLM, not for masked-lm"):
        load_model(causal, task="masked-lm")


def test_a_decoder_pads_with_its_end(causal: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(causal)
    loaded = load_tokenizer(causal)
    assert loaded.pad_token == loaded.eos_token == "<end>"
    save_model(load_model(causal, task="causal-lm"), loaded, tmp_path / "copy")
    assert tokenizer_sha256(load_tokenizer(tmp_path / "copy")) == tokenizer_sha256(loaded)


def test_template_digest_survives_saving_and_sees_every_change(causal: Path) -> None:
    tokenizer = load_tokenizer(causal)
    digests = [template_sha256(tokenizer)]
    for template in ("{{ messages[0]['content'] }}", "{{ messages[0]['content'] }} "):
        tokenizer.chat_template = template
        digests.append(template_sha256(tokenizer))
        tokenizer.save_pretrained(causal)
        assert template_sha256(load_tokenizer(causal)) == digests[-1]
    tokenizer.eos_token = "[SEP]"
    digests.append(template_sha256(tokenizer))
    assert len(set(digests)) == 4
