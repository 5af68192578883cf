"""What the teacher's cache costs and how well it stands for the teacher.

    .venv/bin/python benchmarks/cache.py --teacher FOLDER --text FILE [--positions 1024] [--out cache.json]

First the default cache of a causal teacher's documents (paragraphs of a text file, UTF-8): bytes a token, and tokens a
second, written and read. Then ways to keep a distribution, each with as many entries as the default's bytes allow:

- ``systematic``, ``random``: see `stillhouse.teacher.sampling`,
- ``top-k``: with its true mass, and ``top-k renormalised`` to mass 1,
- ``head + tail``: the largest probabilities exact, the rest sampled systematically.

``target MSE`` is the sum over the vocabulary of the squared error, averaged over positions. ``angle`` is that between
the gradients of forward KL from the kept and from the whole distribution, over all parameters of a student of half the
teacher's layers (kept by block influence), summed over a batch of half the positions. The angles of both batches are
averaged. Everything is at temperature ``--temperature``.
"""

import argparse
import functools
import itertools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from stillhouse.losses import LogitLoss, SparseTargets
from stillhouse.losses.sparse import entry_positions, slice_positions, sparse_divergence_sum
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
from stillhouse.recipe import CacheConfig, StudentConfig
from stillhouse.student import initialise
from stillhouse.teacher import CacheIdentity, SparseCache, score_documents, shard_batches, write_sparse_cache
from stillhouse.teacher.codec import Codec
from stillhouse.teacher.sampling import Records, largest, sample, sample_points

ROWS = 128
BATCH = 8
HEAD = 3


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A way to keep distributions, at one size."""

    name: str
    size: str
    num_bytes: float
    """A position."""
    targets: SparseTargets


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--positions", type=int, default=1024)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    configure_torch(threads=arguments.threads, seed=0)
    teacher, tokenizer = load_model(arguments.teacher, task="causal-lm"), load_tokenizer(arguments.teacher)
    documents = read_documents(arguments.text, tokenizer, arguments.positions, arguments.max_tokens)
    vocabulary = vocabulary_size(teacher, tokenizer)
    speeds = measure_cache(teacher, documents, vocabulary, arguments.temperature)
    print_table([speeds])
    student = initialise(
        StudentConfig(layers=teacher.config.num_hidden_layers // 2, layer_map="block-influence"),
        teacher=teacher,
        sample=[document.ids_L.tolist() for document in documents[:16]],
    ).model
    rows = compare(teacher, student, documents, vocabulary, arguments.temperature)
    print_table(rows)
    if arguments.out:
        setting = {"positions": arguments.positions, "temperature": arguments.temperature, "vocabulary": vocabulary}
        arguments.out.write_text(json.dumps({**setting, "cache": speeds, "ways": rows}, indent=2) + "\n")


def read_documents(path: Path, tokenizer: Any, positions: int, max_tokens: int) -> list[Document]:
    """Return the first paragraphs that together have so many positions."""
    paragraphs = [part.strip() for part in path.read_text(encoding="utf-8").split("\n\n") if part.strip()]
    ids = [str(number) for number in range(len(paragraphs))]
    documents = causal_documents(tokenizer, ids, paragraphs, None, max_tokens=max_tokens)
    sums = itertools.accumulate(len(document.targets_P) for document in documents)
    return [document for document, so_far in zip(documents, sums, strict=True) if so_far <= positions]


def measure_cache(model: Any, documents: Sequence[Document], vocabulary: int, temperature: float) -> dict[str, Any]:
    """Write and read the default cache."""
    config = CacheConfig()
    identity = CacheIdentity(
        task="causal-lm",
        teacher_sha256="0" * 64,
        tokenizer_sha256="0" * 64,
        data_sha256="0" * 64,
        labels=(),
        max_tokens=max(len(document.ids_L) for document in documents),
        hidden=False,
        method=config.method,
        samples=config.samples,
        sampling_seed=config.seed,
        temperature=temperature,
        vocabulary_size=vocabulary,
    )
    tokens = sum(len(document.targets_P) for document in documents)
    batches = shard_batches([len(document.ids_L) for document in documents], BATCH, shard=0, num_shards=1)

    def body() -> None:
        with torch.inference_mode():
            for batch in batches:
                width = max(len(documents[index].ids_L) for index in batch)
                head_states(model, input_ids=torch.ones((len(batch), width), dtype=torch.int64), use_cache=False)

    options: dict[str, Any] = {"config": config, "temperature": temperature, "vocabulary": vocabulary}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def write() -> None:
            scored = score_documents(model, documents, batches, **options)
            write_sparse_cache(folder, scored, identity=identity, shard=0, num_shards=1)

        body_seconds, write_seconds = alternate(5, body, write)
        cache = SparseCache.open([folder], identity)
        found = [cache.find(document) for document in documents]

        def read() -> None:
            for start in range(0, len(found), BATCH):
                cache.targets(found[start : start + BATCH])

        (read_seconds,) = alternate(9, read)
        size = sum(path.stat().st_size for path in folder.iterdir())
        records = cache.records(found)
    return {
        "tokens": tokens,
        "documents": len(documents),
        "bytes/token": round(size / tokens, 2),
        "ids/token": round(len(records.ids_K) / tokens, 2),
        "body alone, tokens/s": round(tokens / body_seconds),
        "written, tokens/s": round(tokens / write_seconds),
        "read, tokens/s": round(tokens / read_seconds),
    }


def alternate(rounds: int, *ways: Callable[[], None]) -> list[float]:
    """Return each way's median seconds."""
    seconds: list[list[float]] = [[] for _ in ways]
    for way in ways:
        way()
    for _ in range(rounds):
        for place, way in enumerate(ways):
            started = time.perf_counter()
            way()
            seconds[place].append(time.perf_counter() - started)
    return [statistics.median(part) for part in seconds]


def compare(
    teacher: Any, student: Any, documents: Sequence[Document], vocabulary: int, temperature: float
) -> list[dict[str, Any]]:
    """Return a row for each way to keep distributions."""
    half = len(documents) // 2
    sums: dict[str, dict[str, Any]] = {}
    for batch in (documents[:half], documents[half : 2 * half]):
        with torch.inference_mode():
            logits_NV = target_logits(teacher, batch, vocabulary)
        probabilities_NV = (logits_NV / temperature).softmax(-1).clone()
        graph = StudentGraph(student, batch, vocabulary)
        exact = graph.gradient(functools.partial(dense_loss, logits_NV=logits_NV, temperature=temperature))
        for kept in ways(probabilities_NV, batch, vocabulary):
            found = graph.gradient(functools.partial(sparse_loss, targets=kept.targets, temperature=temperature))
            row = sums.setdefault(kept.name, {"way": kept.name, "size": kept.size, "parts": []})
            row["parts"].append((kept.num_bytes, *errors(kept.targets, probabilities_NV), angle(found, exact)))
    return [
        {
            "way": row["way"],
            "size": row["size"],
            "bytes/token": round(float(np.mean(parts[0])), 2),
            "ids/token": round(float(np.mean(parts[1])), 2),
            "mass": round(float(np.mean(parts[2])), 4),
            "target MSE": round(float(np.mean(parts[3])), 6),
            "angle, degrees": round(float(np.mean(parts[4])), 2),
        }
        for row in sums.values()
        for parts in [list(zip(*row["parts"], strict=True))]
    ]


def target_logits(model: Any, documents: Sequence[Document], vocabulary: int) -> torch.Tensor:
    """Return logits_NV at the documents' targets."""
    head = output_head(model)
    states_ND = torch.cat(target_states(model, documents))
    return functional.linear(states_ND, head.weight_VD)[:, :vocabulary]


def target_states(model: Any, documents: Sequence[Document]) -> list[torch.Tensor]:
    """Return what enters the head at each document's targets."""
    return [
        head_states(model, input_ids=torch.from_numpy(d.ids_L).long()[None], use_cache=False)[0, d.targets_P]
        for d in documents
    ]


class StudentGraph:
    """The student's forward pass over a batch, from which several losses' gradients are taken."""

    def __init__(self, student: Any, documents: Sequence[Document], vocabulary: int) -> None:
        self._parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
        self._weight_VD = output_head(student).weight_VD
        self._vocabulary = vocabulary
        self._states_ND = torch.cat(target_states(student.eval(), documents))

    def gradient(self, loss: Callable[[torch.Tensor, int], torch.Tensor]) -> list[torch.Tensor]:
        """Return the gradient of a loss, called with logits_RV of some rows and the first row's number."""
        states_ND = self._states_ND.detach().requires_grad_()
        weight_VD = self._weight_VD.detach().requires_grad_()
        for start in range(0, len(states_ND), ROWS):
            part = loss(functional.linear(states_ND[start : start + ROWS], weight_VD)[:, : self._vocabulary], start)
            part.backward()
        through = torch.autograd.grad(
            self._states_ND, self._parameters, grad_outputs=states_ND.grad, retain_graph=True, allow_unused=True
        )
        gradients = [torch.zeros(()) if value is None else value for value in through]
        head = next(place for place, value in enumerate(self._parameters) if value is self._weight_VD)
        assert weight_VD.grad is not None
        gradients[head] = gradients[head] + weight_VD.grad
        return gradients


def dense_loss(part_RV: torch.Tensor, start: int, *, logits_NV: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return forward KL from the whole distributions."""
    teacher_RV = logits_NV[start : start + len(part_RV)].clone()
    labels_R = torch.zeros(len(part_RV), dtype=torch.int64)
    loss = LogitLoss(alpha=0.0, temperature=temperature, divergence="forward-kl")
    return loss.terms(part_RV, labels_R, teacher_RV)["kd"] / temperature**2


def sparse_loss(part_RV: torch.Tensor, start: int, *, targets: SparseTargets, temperature: float) -> torch.Tensor:
    """Return forward KL from kept distributions."""
    chosen = slice_positions(targets, start, start + len(part_RV))
    return sparse_divergence_sum(part_RV, chosen, temperature=temperature, divergence="forward-kl", mixture=0.5)


def ways(probabilities_NV: torch.Tensor, documents: Sequence[Document], vocabulary: int) -> list[Kept]:
    """Keep distributions in every way at as many bytes as the default takes."""

    def sampled(method: Any, samples: int, of_NV: torch.Tensor = probabilities_NV) -> tuple[Records, float]:
        points = [
            sample_points(method, samples=samples, seed=0, document_id=d.id, positions_N=d.targets_P) for d in documents
        ]
        records = sample(of_NV, np.concatenate(points))
        return records, size_of(records, Codec(method=method, samples=samples, vocabulary=vocabulary))

    def top(k: int) -> tuple[Records, float]:
        records = largest(probabilities_NV, k)
        return records, size_of(records, Codec(method="top-k", samples=k, vocabulary=vocabulary))

    default = CacheConfig().samples
    base, budget = sampled("systematic", default)
    kept = [Kept(name="systematic", size=f"N={default}", num_bytes=budget, targets=targets_of(base, default))]
    draws, records, size = fill(budget, lambda count: sampled("random", count))
    kept.append(Kept(name="random", size=f"N={draws}", num_bytes=size, targets=targets_of(records, draws)))
    k, records, size = fill(budget, top)
    whole = targets_of(records, 1)
    kept.append(Kept(name="top-k renormalised", size=f"k={k}", num_bytes=size, targets=renormalised(whole)))
    kept.append(Kept(name="top-k", size=f"k={k}", num_bytes=size, targets=whole))
    head, head_size = top(HEAD)
    rest_NV = probabilities_NV.clone()
    rest_NV[positions_of(head), torch.from_numpy(head.ids_K)] = 0
    tail, records, size = fill(budget - head_size, lambda count: sampled("systematic", count, rest_NV))
    kept.append(
        Kept(
            name="head + tail",
            size=f"{HEAD} + N={tail}",
            num_bytes=size + head_size,
            targets=joined(targets_of(head, 1), targets_of(records, tail), rest_NV.sum(-1)),
        )
    )
    return kept


def fill(budget: float, keep: Callable[[int], tuple[Records, float]]) -> tuple[int, Records, float]:
    """Return the size at which a way's bytes come nearest to the budget."""
    best = (1, *keep(1))
    for count in range(2, 200):
        records, size = keep(count)
        if abs(size - budget) < abs(best[2] - budget):
            best = (count, records, size)
        if size > budget:
            break
    return best


def size_of(records: Records, codec: Codec) -> float:
    """Return the bytes of a position."""
    return len(codec.encode(records)) / (len(records.offsets_S) - 1)


def positions_of(records: Records) -> torch.Tensor:
    """Return each entry's position."""
    return torch.from_numpy(np.repeat(np.arange(len(records.offsets_S) - 1), np.diff(records.offsets_S)))


def targets_of(records: Records, samples: int) -> SparseTargets:
    """Return what a loss is given."""
    return SparseTargets(
        offsets_S=torch.from_numpy(records.offsets_S.astype(np.int64)),
        ids_K=torch.from_numpy(records.ids_K),
        probabilities_K=torch.from_numpy(records.values_K.astype(np.float32) / samples),
    )


def masses(targets: SparseTargets) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each entry's position, and each position's mass."""
    positions_K = entry_positions(targets)
    return positions_K, torch.zeros(targets.num_positions).index_add_(0, positions_K, targets.probabilities_K)


def renormalised(targets: SparseTargets) -> SparseTargets:
    """Return targets of mass 1."""
    positions_K, masses_N = masses(targets)
    return SparseTargets(
        offsets_S=targets.offsets_S,
        ids_K=targets.ids_K,
        probabilities_K=targets.probabilities_K / masses_N[positions_K],
    )


def joined(head: SparseTargets, tail: SparseTargets, tail_mass_N: torch.Tensor) -> SparseTargets:
    """Return both parts' entries; the tail's share is its true mass."""
    (head_K, _), (tail_K, _) = masses(head), masses(tail)
    positions = torch.cat([head_K, tail_K])
    values = torch.cat([head.probabilities_K, tail.probabilities_K * tail_mass_N[tail_K]])
    order = torch.argsort(positions, stable=True)
    return SparseTargets(
        offsets_S=head.offsets_S + tail.offsets_S,
        ids_K=torch.cat([head.ids_K, tail.ids_K])[order],
        probabilities_K=values[order],
    )


def errors(targets: SparseTargets, probabilities_NV: torch.Tensor) -> tuple[float, float, float]:
    """Return entries a position, mean mass, and mean squared error."""
    positions_K, masses_N = masses(targets)
    p_K = probabilities_NV[positions_K, targets.ids_K]
    squares = probabilities_NV.square().sum() + ((targets.probabilities_K - p_K).square() - p_K.square()).sum()
    count = targets.num_positions
    return len(p_K) / count, float(masses_N.mean()), float(squares) / count


def angle(found: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> float:
    """Return the angle between two gradients, in degrees."""

    def dot(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
        return sum(float((a.double() * b.double()).sum()) for a, b in zip(one, other, strict=True))

    cosine = dot(found, exact) / math.sqrt(dot(found, found) * dot(exact, exact))
    return math.degrees(math.acos(min(1.0, cosine)))


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as a Markdown table."""
    names = list(rows[0])
    print("\n| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join(str(row[name]) for name in names) + " |")
    print(flush=True)


if __name__ == "__main__":
    main()
