"""A tiny world of written data: problems of addition, a recipe about them, and answers such as a teacher gives."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from stillhouse.contract import FinishReason
from stillhouse.models.answers import Answer, Prompt

TABLE = {
    "format": "jsonl",
    "text_column": "answer",
    "prompt_column": "question",
    "id_column": "id",
    "licence": "CC0-1.0",
    "origin": "generated for tests",
}
TEACHER = {
    "api": {"base_url": "http://127.0.0.1:9/v1", "model": "oracle"},
    "licence": "CC0-1.0",
    "terms": {"provider": "self-hosted"},
}


def answer(
    row: str,
    text: str,
    *,
    sample: int = 0,
    finish: FinishReason = "stop",
    review: str | None = None,
    tokens: int | None = None,
) -> Answer:
    """Return an answer with as many tokens as words, unless told otherwise."""
    return Answer(
        prompt=Prompt(row=row, sample=sample, text=f"asked about {row}"),
        text=text,
        finish=finish,
        prompt_tokens=3,
        answer_tokens=len(text.split()) if tokens is None else tokens,
        review=review,
    )


def problems(count: int, *, seed: int = 1, prefix: str = "p") -> list[dict[str, str]]:
    """Return different sums of three numbers, as rows with ``id``, ``question`` and ``answer``."""
    rng = random.Random(seed)
    terms = dict.fromkeys(tuple(rng.randint(10, 9999) for _ in range(3)) for _ in range(count))
    return [
        {"id": f"{prefix}{number}", "question": f"What is {a} + {b} + {c}?", "answer": str(a + b + c)}
        for number, (a, b, c) in enumerate(terms)
    ]


def trace(question: str, *, wrong: bool = False, words: str = "") -> str:
    """Return a chain of thought about one of `problems`."""
    a, b, c = (int(term) for term in question.removeprefix("What is ").rstrip("?").split(" + "))
    total = a + b + c + wrong
    return f"{words}First {a} + {b} = {a + b}. Then {a + b} + {c} = {total}.\nAnswer: {total}"


def write_recipe(
    folder: Path, synthesis: dict[str, Any], rows: Sequence[dict[str, str]], *, prompted: bool = True, **data: Any
) -> Path:
    """Write a recipe whose teacher writes about ``rows``, with held-out sets beside them, and return its path."""
    columns = TABLE if prompted else {**TABLE, "text_column": "question", "prompt_column": None}
    sets = {"train": list(rows), "validation": problems(30, seed=8, prefix="v"), "test": problems(30, seed=9)}
    tables = {}
    for name, content in sets.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
        tables[name] = columns | {"source": {"kind": "path", "path": f"{name}.jsonl"}}
    (folder / "policy.yaml").write_text("name: p\ndescription: d\nrules: [{kind: beats-start, name: better}]\n")
    (folder / "student").mkdir()
    recipe = {
        "name": "tiny-synthesis",
        "description": "A teacher writes in miniature.",
        "task": "causal-lm",
        "data": {"domain": "sums", "checks": {"min_rows": 10}} | tables | data,
        "teacher": TEACHER,
        "synthesis": synthesis,
        "student": {"source": {"kind": "path", "path": "student"}},
        "distillation": {"alpha": 1.0},
        "gate": {"policy": "policy.yaml"},
        "promotion": {"model": "tiny", "approval": "auto"},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path
