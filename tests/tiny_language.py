"""A tiny world of language: a word tokenizer, texts with a pattern, and causal or masked models of random weights."""

import random
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tiny import NEGATIVE, NEUTRAL, POSITIVE
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = sorted({*POSITIVE, *NEGATIVE, *NEUTRAL})
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<end>"]


def tiny_tokenizer(*, masked: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token for each word, of a masked or of a causal model."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if not masked:
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", eos_token="<end>"
        )
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{f"{key}_token": name for key, name in names.items()})


def tiny_causal(*, layers: int = 2, width: int = 16, seed: int = 0, **config: Any) -> LlamaForCausalLM:
    """Return a Llama-like model of random weights."""
    torch.manual_seed(seed)
    shape = {
        "vocab_size": len(SPECIAL) + len(WORDS),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": None,
        "eos_token_id": SPECIAL.index("<end>"),
        "pad_token_id": 0,
        "initializer_range": 0.3,
    }
    return LlamaForCausalLM(LlamaConfig(**(shape | config))).eval()


def tiny_masked(*, layers: int = 2, width: int = 16, seed: int = 0) -> BertForMaskedLM:
    """Return a BERT-like masked language model of random weights, without dropout."""
    torch.manual_seed(seed)
    return BertForMaskedLM(
        BertConfig(
            vocab_size=len(SPECIAL) + len(WORDS),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            max_position_embeddings=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.3,
        )
    ).eval()


def texts(count: int = 40, *, seed: int = 1) -> Dataset:
    """Return texts of varied length in which words alternate between two halves of the vocabulary."""
    rng = random.Random(seed)
    half = len(WORDS) // 2
    rows = [
        " ".join(rng.choice(WORDS[:half] if i % 2 else WORDS[half:]) for i in range(rng.randint(2, 20)))
        for _ in range(count)
    ]
    return Dataset.from_dict({"id": [f"t{i}" for i in range(count)], "text": rows})


def save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    """Write a model folder."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
