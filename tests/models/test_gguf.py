"""A file of the format's own writer, read back."""

from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny_language import tiny_causal
from transformers import LlamaForCausalLM

from stillhouse.contract import ConfigurationError
from stillhouse.models import load_model, load_tokenizer, obtain_model_folder
from stillhouse.models.gguf import convert_gguf

TEMPLATE = "{% for message in messages %}{{ message['content'] }}<end>{% endfor %}"
NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Weights of a layer, as the format and as transformers call them."""


def in_pairs(weight_ND: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Reorder a projection's rows as the format does: rotary pairs beside one another."""
    return weight_ND.reshape(heads, 2, -1, weight_ND.shape[1]).swapaxes(1, 2).reshape(weight_ND.shape)


def write_gguf(model: LlamaForCausalLM, path: Path, *, without: str = "") -> Path:
    config = model.config
    weights = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    tensors = {
        "token_embd.weight": weights["model.embed_tokens.weight"],
        "output_norm.weight": weights["model.norm.weight"],
        "output.weight": weights["lm_head.weight"],
    }
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for layer in range(config.num_hidden_layers):
        for theirs, ours in NAMES.items():
            weight = weights[f"model.layers.{layer}.{ours}.weight"]
            tensors[f"blk.{layer}.{theirs}.weight"] = in_pairs(weight, heads[theirs]) if theirs in heads else weight
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    letters = ["<end>", *"abcdefgh", "ab"]
    writer.add_token_list(letters + [f"<unused{i}>" for i in range(config.vocab_size - len(letters))])
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (config.vocab_size - 1))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in tensors.items():
        if name != without:
            writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_becomes_a_folder_with_the_same_model(tmp_path: Path) -> None:
    original = tiny_causal()
    for parameter in original.parameters():
        parameter.data = parameter.data.bfloat16().float()
    file = write_gguf(original, tmp_path / "tiny.gguf")
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    folder = obtain_model_folder(file, tmp_path)
    assert torch.equal(torch.rand(2), expected)
    model, tokenizer = load_model(folder, task="causal-lm"), load_tokenizer(folder)
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".jinja", ".safetensors"}
    ids = torch.tensor([[1, 5, 3, 9]])
    with torch.inference_mode():
        torch.testing.assert_close(model(input_ids=ids).logits, original(input_ids=ids).logits)
    assert tokenizer("abc", add_special_tokens=False)["input_ids"] == [9, 3]
    assert tokenizer.eos_token == "<end>"
    assert tokenizer.chat_template == TEMPLATE


def test_a_file_is_converted_once_and_a_folder_is_left_as_it_is(tmp_path: Path) -> None:
    file = write_gguf(tiny_causal(), tmp_path / "tiny.gguf")
    (tmp_path / "converted.unfinished").mkdir()
    (tmp_path / "converted.unfinished" / "leftover.json").write_text("of a killed try")
    folder = obtain_model_folder(file, tmp_path)
    assert not (folder / "leftover.json").exists()
    file.unlink()
    assert obtain_model_folder(file, tmp_path) == folder
    assert obtain_model_folder(folder, tmp_path / "elsewhere") == folder


@pytest.mark.parametrize("size", [10, 3000])
def test_a_damaged_file_is_a_one_line_error(tmp_path: Path, size: int) -> None:
    file = write_gguf(tiny_causal(), tmp_path / "tiny.gguf")
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ConfigurationError, match="can't be read as GGUF") as caught:
        convert_gguf(file, tmp_path / "folder")
    assert "\n" not in str(caught.value)


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    file = write_gguf(tiny_causal(), tmp_path / "tiny.gguf", without="blk.1.ffn_up.weight")
    with pytest.raises(ConfigurationError, match=r"lacks 1 weights \(model\.layers\.1\.mlp\.up_proj\.weight\)"):
        convert_gguf(file, tmp_path / "folder")
