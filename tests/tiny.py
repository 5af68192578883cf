"""A whole workflow in miniature: real models, data and stages, small enough for seconds on a CPU."""

import random
from pathlib import Path
from typing import Any

import yaml

POSITIVE = "good great lovely fine superb bright charming warm".split()
NEGATIVE = "bad awful dull poor weak cold clumsy grim".split()
NEUTRAL = "the a film plot actor scene music with and of this that was is story end".split()
SHIFTED = "battery screen cable phone box price parcel the a with and of this was is".split()
LABELS = ("negative", "positive")


def sentence(rng: random.Random, label: int, filler: list[str]) -> str:
    """Return a few words of filler with two that carry the label, and sometimes one that contradicts it."""
    told, other = (POSITIVE, NEGATIVE) if label else (NEGATIVE, POSITIVE)
    words = rng.choices(filler, k=rng.randint(3, 12)) + rng.sample(told, 2)
    if rng.random() < 0.3:
        words.append(rng.choice(other))
    rng.shuffle(words)
    return " ".join(words)


def write_csv(path: Path, *, rows: int, seed: int, filler: list[str] = NEUTRAL, prefix: str = "r") -> Path:
    """Write a table of distinct labelled sentences with columns ``id``, ``text``, ``label``."""
    rng = random.Random(seed)
    texts: dict[str, int] = {}
    while len(texts) < rows:
        label = rng.randint(0, 1)
        texts.setdefault(sentence(rng, label, filler), label)
    lines = ["id,text,label", *(f"{prefix}{i},{text},{LABELS[label]}" for i, (text, label) in enumerate(texts.items()))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_teacher(folder: Path, *, layers: int = 4, seed: int = 0) -> Path:
    """Write a small BERT with random weights and a word tokenizer, as safetensors."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = sorted({*POSITIVE, *NEGATIVE, *NEUTRAL, *SHIFTED})
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
    )
    torch.manual_seed(seed)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
            num_labels=2,
            id2label=dict(enumerate(LABELS)),
            label2id={label: i for i, label in enumerate(LABELS)},
        )
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


POLICY = """\
schema_id: stillhouse/policy/2
name: tiny
description: "For tests, the student must keep most of the skill and reach a modest accuracy."
rules:
  - {kind: bound, name: good-enough, metric: accuracy, at_least: 0.6}
  - {kind: retention, name: keeps-the-skill, floor: 0.8}
"""


def write_workflow(folder: Path, *, rows: int = 600, **sections: Any) -> Path:
    """Write teacher, data, policy and recipe into ``folder`` and return the recipe's path.

    Args:
        folder: An existing, empty folder.
        rows: Size of the training table.
        **sections: Sections of the recipe that replace the ones here.
    """
    write_teacher(folder / "teacher")
    write_csv(folder / "films.csv", rows=rows, seed=1)
    write_csv(folder / "goods.csv", rows=200, seed=2, filler=SHIFTED, prefix="g")
    (folder / "policy.yaml").write_text(POLICY)
    terms = {"licence": "CC0-1.0", "origin": "generated for tests"}
    table = {"format": "csv", "id_column": "id", **terms}
    training = {"epochs": 5, "batch_size": 16, "learning_rate": 1e-3, "max_tokens": 32, "checkpoint_seconds": 0.2}
    recipe = {
        "name": folder.name.replace("_", "-").lower(),
        "description": "A whole workflow in miniature.",
        "task": "text-classification",
        "data": {
            "domain": "films",
            "labels": list(LABELS),
            "splits": {"validation": 0.1, "test": 0.3},
            "checks": {"min_rows": 50},
            "train": {"source": {"kind": "path", "path": "films.csv"}, **table},
            "ood": [{"name": "goods", "table": {"source": {"kind": "path", "path": "goods.csv"}, **table}}],
        },
        "teacher": {
            "source": {"kind": "path", "path": "teacher"},
            "licence": "CC0-1.0",
            "finetune": training,
            "shards": 2,
        },
        "student": {"layers": 2},
        "distillation": {"features": [{"kind": "hidden", "weight": 0.1}]},
        "training": training,
        "evaluation": {"resamples": 200, "latency_items": 10},
        "gate": {"policy": "policy.yaml"},
        "promotion": {"model": "tiny-student", "approval": "auto"},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | sections, sort_keys=False))
    return path
