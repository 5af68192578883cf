"""Whether the model behind infra/SCALING.md foretells what this machine does.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/scaling.py --teacher FOLDER [--layers 6,15,30] [--tokens 512]

SmolLM2, or another causal teacher, cut to some of its layers: the speed of the smallest says how many operations a
second this machine reaches in scoring and in training; from that and the number of parameters the model foretells the
others.
One thread, in CPU seconds, since other programs share the machine. Nothing here runs on a GPU.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from stillhouse.models import (
    Document,
    configure_torch,
    head_states,
    load_model,
    load_tokenizer,
    output_head,
    vocabulary_size,
)
from stillhouse.models.documents import causal_documents
from stillhouse.orchestration.estimate import CACHE_BYTES, HOUR, Hardware, Job, estimate
from stillhouse.recipe import CacheConfig, StudentConfig
from stillhouse.student import initialise
from stillhouse.teacher import CacheIdentity, score_documents, shard_batches, write_sparse_cache

LENGTH = 128
BATCH = 4
ROUNDS = 3


def main() -> None:
    """Measure, foretell, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--layers", default="6,15,30")
    parser.add_argument("--tokens", type=int, default=512)
    arguments = parser.parse_args()
    configure_torch(threads=1, seed=0)
    teacher, tokenizer = load_model(arguments.teacher, task="causal-lm"), load_tokenizer(arguments.teacher)
    documents = read_documents(tokenizer, arguments.tokens)
    vocabulary = vocabulary_size(teacher, tokenizer)
    found = []
    for layers in map(int, arguments.layers.split(",")):
        model = initialise(StudentConfig(layers=layers, layer_map="spaced"), teacher=teacher, sample=()).model
        scored, cache_bytes = score(model, documents, vocabulary)
        found.append((layers, model.num_parameters(), scored, train(model, documents, vocabulary), cache_bytes))
        del model
    print_comparison(found)


def read_documents(tokenizer: Any, tokens: int) -> list[Document]:
    """Return documents of `LENGTH` tokens from this project's own pages."""
    pages = sorted(Path(__file__).parents[1].glob("*.md"))
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    pieces = causal_documents(tokenizer, ["pages"], [text], None, max_tokens=LENGTH)
    return [piece for piece in pieces if len(piece.ids_L) == LENGTH][: tokens // LENGTH]


def score(model: Any, documents: Sequence[Document], vocabulary: int) -> tuple[float, float]:
    """Return tokens a CPU second with which the default cache is written, and its bytes a token."""
    config = CacheConfig()
    identity = CacheIdentity(
        task="causal-lm", teacher_sha256="0" * 64, tokenizer_sha256="0" * 64, data_sha256="0" * 64, labels=(),
        max_tokens=LENGTH, hidden=False, method=config.method, samples=config.samples, sampling_seed=config.seed,
        temperature=1.0, vocabulary_size=vocabulary,
    )  # fmt: skip
    batches = shard_batches([len(document.ids_L) for document in documents], BATCH, shard=0, num_shards=1)
    tokens = sum(len(document.targets_P) for document in documents)
    sizes = []

    def write() -> None:
        with tempfile.TemporaryDirectory() as name:
            scored = score_documents(model, documents, batches, config=config, temperature=1.0, vocabulary=vocabulary)
            write_sparse_cache(Path(name), scored, identity=identity, shard=0, num_shards=1)
            sizes.append(sum(path.stat().st_size for path in Path(name).iterdir()))

    return tokens / median_seconds(write), sizes[-1] / tokens


def train(model: Any, documents: Sequence[Document], vocabulary: int) -> float:
    """Return tokens a CPU second of plain training with AdamW: the loss that learns from a cache costs as much."""
    head = output_head(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    batches = [documents[start : start + BATCH] for start in range(0, len(documents), BATCH)][:1]
    tokens = sum(len(document.targets_P) for batch in batches for document in batch)

    def steps() -> None:
        for batch in batches:
            ids_BT = torch.stack([torch.from_numpy(document.ids_L[:LENGTH]).long() for document in batch])
            states_BTD = head_states(model, input_ids=ids_BT, use_cache=False)
            logits_NV = functional.linear(states_BTD[:, :-1].flatten(0, 1), head.weight_VD)[:, :vocabulary]
            functional.cross_entropy(logits_NV, ids_BT[:, 1:].flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()

    return tokens / median_seconds(steps)


def median_seconds(work: Callable[[], None]) -> float:
    """Return the median of some rounds' CPU seconds, after one that does not count."""
    work()
    seconds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds)


def print_comparison(found: Sequence[tuple[int, int, float, float, float]]) -> None:
    """Print what was measured beside what the model says, calibrated on the first."""
    _, parameters, scored, trained, _ = found[0]
    fastest = max(2 * parameters * scored, 6 * parameters * trained)
    machine = Hardware(
        name="one thread here", operations=fastest, scoring=2 * parameters * scored / fastest,
        training=6 * parameters * trained / fastest, memory=1e9, link=1e9, download=1e9, price=0,
    )  # fmt: skip
    print(f"calibrated on {found[0][0]} layers: {machine.operations / 1e9:.0f} GFLOP/s at best\n")
    print("| layers | parameters, M | scoring, tokens/s | foretold | ratio | training, tokens/s | foretold | ratio |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for layers, size, scored, trained, _ in found:
        job = Job(name="here", tokens=1e6, teacher=size, student=size, devices=1, shards=1, arms=1)
        told = estimate(job, machine)
        scoring, training = (1e6 / (hours * HOUR) for hours in (told.score_hours, told.train_hours))
        print(
            f"| {layers} | {size / 1e6:.1f} | {scored:.0f} | {scoring:.0f} | {scored / scoring:.2f} "
            f"| {trained:.0f} | {training:.0f} | {trained / training:.2f} |"
        )
    print(f"\ncache: {found[-1][4]:.1f} bytes a token with all layers, foretold {CACHE_BYTES}")


if __name__ == "__main__":
    main()
