"""Every way from texts to numbers that a stage without training takes, on whatever device the process has.

Run as a program, it goes them on a pretended accelerator: ``python placed.py FOLDER OUT``.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import write_teacher
from tiny_language import save, texts, tiny_causal, tiny_masked, tiny_tokenizer

from stillhouse.data.synthetic.embedding import TeacherEmbedding
from stillhouse.models import (
    Document,
    Sampling,
    documents_of,
    inference_device,
    last_logits,
    likelihoods,
    load_model,
    load_tokenizer,
    predict,
    stream_continuations,
    vocabulary_size,
)
from stillhouse.recipe import CacheConfig, StudentConfig, Task
from stillhouse.student import initialise, trim_vocabulary
from stillhouse.teacher import score_documents

Arrays = dict[str, Any]
LABELS = ("negative", "positive")
MAX_TOKENS = 12


def write_models(folder: Path) -> None:
    """Write a model of each task."""
    write_teacher(folder / "text-classification")
    save(tiny_causal(), tiny_tokenizer(), folder / "causal-lm")
    save(tiny_masked(), tiny_tokenizer(masked=True), folder / "masked-lm")


def loaded(folder: Path, task: Task) -> tuple[Any, Any]:
    """Return a model as the stages load it, and its tokenizer."""
    model = load_model(folder / task, task=task, labels=LABELS if task == "text-classification" else ())
    assert model.device.type == inference_device().type
    return model, load_tokenizer(folder / task)


def documents(tokenizer: Any, task: Task) -> list[Document]:
    return documents_of(task, tokenizer, texts(), max_tokens=MAX_TOKENS, mask_share=0.3, seed=5)


def classified(folder: Path) -> Arrays:
    found = predict(
        *loaded(folder, "text-classification"), texts()["text"], batch_size=7, max_tokens=MAX_TOKENS, hidden=True
    )
    return {"logits_NC": found.logits_NC, "hidden": np.concatenate(found.hidden or [])}


def _likely(folder: Path, task: Task) -> Arrays:
    model, tokenizer = loaded(folder, task)
    found = likelihoods(model, tokenizer, documents(tokenizer, task), batch_size=7, max_tokens=MAX_TOKENS)
    last_NV = last_logits(model, tokenizer, texts()["text"], batch_size=7, max_tokens=MAX_TOKENS)
    return {"losses_N": found.losses_N, "hits_N": found.hits_N, "last_NV": last_NV}


def likely_causal(folder: Path) -> Arrays:
    return _likely(folder, "causal-lm")


def likely_masked(folder: Path) -> Arrays:
    return _likely(folder, "masked-lm")


def _scored(folder: Path, task: Task, method: Any) -> Arrays:
    model, tokenizer = loaded(folder, task)
    docs = documents(tokenizer, task)
    scored = list(
        score_documents(
            model,
            docs,
            [[0, 1, 2], [3, 4]],
            config=CacheConfig(method=method, samples=50),
            temperature=1.5,
            vocabulary=vocabulary_size(model, tokenizer),
            hidden=True,
        )
    )
    parts = {"ids": "ids_K", "values": "values_K"}
    joined = {name: np.concatenate([getattr(one.records, field) for one in scored]) for name, field in parts.items()}
    return {**joined, "hidden": np.concatenate([one.hidden_LD for one in scored])}


def sampled_causal(folder: Path) -> Arrays:
    return _scored(folder, "causal-lm", "systematic")


def sampled_masked(folder: Path) -> Arrays:
    return _scored(folder, "masked-lm", "top-k")


def written(folder: Path) -> Arrays:
    """Greedy and drawn continuations of prompts, some of which start alike for long enough to be read once."""
    model, tokenizer = loaded(folder, "causal-lm")
    start = np.arange(6, 16, dtype=np.int32)
    prompts = [np.append(start, last).astype(np.int32) for last in range(20, 26)]
    keys = [str(number) for number in range(len(prompts))]
    found: Arrays = {}
    for name, sampling in {"greedy": None, "drawn": Sampling(seed=3, temperature=0.9, top_p=0.9)}.items():
        streamed = stream_continuations(
            model, tokenizer, prompts, keys=keys, max_new_tokens=30, sampling=sampling, batch_size=3
        )
        found[name] = np.concatenate([tokens for _, tokens in sorted(streamed, key=lambda pair: pair[0])])
    return found


def embedded(folder: Path) -> Arrays:
    return {"states_ND": TeacherEmbedding(folder / "causal-lm", batch_size=7, max_tokens=MAX_TOKENS)(texts()["text"])}


def started(folder: Path) -> Arrays:
    """A student of the layers that change most."""
    model, tokenizer = loaded(folder, "causal-lm")
    sample = tokenizer(list(texts()["text"][:8]))["input_ids"]
    start = initialise(StudentConfig(layers=1, layer_map="block-influence"), teacher=model, sample=sample)
    return {"layers": np.asarray(start.layers), **_weights(start.model)}


def trimmed(folder: Path) -> Arrays:
    model, tokenizer = loaded(folder, "text-classification")
    ids = tokenizer(list(texts()["text"]))["input_ids"]
    return _weights(trim_vocabulary(model, tokenizer, ids, 30)[0])


def _weights(model: Any) -> Arrays:
    return {name.replace(".", "-"): tensor.cpu().numpy() for name, tensor in model.state_dict().items()}


WAYS: dict[str, Callable[[Path], Arrays]] = {
    way.__name__: way
    for way in (
        classified,
        likely_causal,
        likely_masked,
        sampled_causal,
        sampled_masked,
        written,
        embedded,
        started,
        trimmed,
    )
}


def main(folder: Path, out: Path) -> None:
    """Write what each way finds on the pretended accelerator, into ``out``."""
    from pretend_accelerator import install

    out.mkdir()
    torch.use_deterministic_algorithms(True)
    with install():
        for name, way in WAYS.items():
            np.savez(out / f"{name}.npz", **way(folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
