"""A tiny world of language: a word tokenizer, texts with a pattern, and causal or masked models of random weights."""

import json
import random
from pathlib import Path
from typing import Any

import torch
import yaml
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


QUIZ = """\
task: Tiny_Quiz
dataset_path: json
dataset_kwargs: {data_files: {train: lessons.jsonl, test: quiz.jsonl}}
training_split: train
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
"""


def write_quiz(folder: Path, *, items: int = 40) -> Path:
    """Write a task of the lm-evaluation-harness into ``folder``: its file and its data."""
    rng = random.Random(5)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "quiz.yaml").write_text(QUIZ)
    for name, count in (("lessons", 5), ("quiz", items)):
        rows = [
            {
                "question": " ".join(rng.sample(WORDS, 4)),
                "choices": [" ".join(rng.sample(WORDS, rng.randint(1, 3))) for _ in range(3)],
                "answer": rng.randrange(3),
            }
            for _ in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


LANGUAGE_POLICY = """\
name: tiny-language
description: For tests, the student must learn something and stay near its teacher.
rules:
  - {kind: teacher-gap, name: near-the-teacher, ceiling: 2.0}
  - {kind: beats-start, name: learned-something}
  - {kind: minimum-items, name: enough-items, suites: every, items: 30}
"""


def write_language_workflow(folder: Path, *, masked: bool = False, **sections: Any) -> Path:
    """Write teacher, data, policy and recipe of a language model into ``folder`` and return the recipe's path.

    A causal model answers prompts, a masked one reads plain texts.
    """
    model = tiny_masked(layers=3) if masked else tiny_causal(layers=3)
    save(model, tiny_tokenizer(masked=masked), folder / "teacher")
    rows = texts(300)
    lines = [f"{row['id']},{' '.join(row['text'].split()[:2])},{row['text']}" for row in rows]
    (folder / "texts.csv").write_text("\n".join(["id,question,text", *lines]) + "\n")
    (folder / "policy.yaml").write_text(LANGUAGE_POLICY)
    training = {"epochs": 3, "batch_size": 8, "learning_rate": 3e-3, "max_tokens": 32, "checkpoint_seconds": 0.2}
    table = {
        "source": {"kind": "path", "path": "texts.csv"},
        "format": "csv",
        "id_column": "id",
        "duplicates": "drop",
        "licence": "CC0-1.0",
        "origin": "generated for tests",
    }
    recipe = {
        "name": folder.name.replace("_", "-").lower(),
        "description": "A language model's workflow in miniature.",
        "task": "masked-lm" if masked else "causal-lm",
        "data": {
            "domain": "words",
            "splits": {"validation": 0.1, "test": 0.3},
            "checks": {"min_rows": 20},
            "contamination": None,
            "train": table if masked else table | {"prompt_column": "question"},
        },
        "teacher": {
            "source": {"kind": "path", "path": "teacher"},
            "licence": "CC0-1.0",
            "finetune": training,
            "shards": 2,
        },
        "student": {"layers": 2},
        "training": training,
        "evaluation": {"resamples": 200, "latency_items": 10}
        | ({} if masked else {"generation": {"max_new_tokens": 4, "samples": 2, "metric": "nll"}}),
        "gate": {"policy": "policy.yaml"},
        "promotion": {"model": "tiny-language", "approval": "auto"},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | sections, sort_keys=False))
    return path
