"""What a student learns from each kind of teacher signal at equal steps: held-out loss, calibration, fidelity.

    .venv/bin/python benchmarks/quality.py WORKSPACE [--steps 40] [--documents 60] [--seeds 0,1] [--signals ce,full]
        [--teach 0.4] [--threads 2] [--out quality.json]

SmolLM2-135M into 15 of its layers, on the recipe `dags/recipes/editorials.yaml`, one pack of 256 tokens a step. Every
student starts from the same weights and sees the same packs in the same order; only the signal differs (alpha = 0, T =
1, but for ``ce``). The held-out documents are the recipe's test set. ``KL`` is that of teacher and student, whole
distributions; ``ECE`` is of the most likely token in 15 bins of equal mass; ``+-`` is a standard error over documents.
Below the table each signal is compared with the first one, paired by document. With ``--teach`` the teacher first
learns so many epochs of the training texts itself, by cross-entropy.

With several seeds (of the order of the packs and of the sampling) a second table compares each signal with the first
one in pairs: the same seed has the same order. There ``+-`` is a standard error over seeds.
"""

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import bootstrap

from stillhouse.contract import sha256_of_file
from stillhouse.data import freeze, load_frozen, load_tables
from stillhouse.losses import build_loss
from stillhouse.models import configure_torch, head_states, load_tokenizer, output_head, vocabulary_size
from stillhouse.recipe import CacheConfig, DistillationConfig, Recipe, load_recipe
from stillhouse.store import fetch_source
from stillhouse.training import TrainingJob, fit, open_cache, prepare_teacher, start_student, write_shard
from stillhouse.training.knowledge import recipe_documents

RECIPE = Path(__file__).parents[1] / "dags" / "recipes" / "editorials.yaml"
METHODS = ("systematic", "random", "top-k")
SIGNALS = ("ce", *METHODS, "full")
BINS = 15
RESAMPLES = 9999


@torch.no_grad()
def measure(model: Any, teacher: Any, documents: list[Any], vocabulary: int) -> dict[str, Any]:
    """Return loss, calibration error and distance from the teacher on held-out documents, and the loss of each."""
    losses, divergences, confidences, hits = [], [], [], []
    for document in documents:
        inputs = {"input_ids": torch.from_numpy(document.ids_L.astype(np.int64))[None], "use_cache": False}
        targets_P = torch.from_numpy(document.targets_P)
        labels_P = torch.from_numpy(document.labels_L[document.targets_P].astype(np.int64))
        logs = []
        for each in (model, teacher):
            states_PD = head_states(each.eval(), **inputs)[0, targets_P]
            logs.append((states_PD @ output_head(each).weight_VD[:vocabulary].T).float().log_softmax(-1))
        own_PV, its_PV = logs
        losses.append(float(-own_PV.gather(1, labels_P[:, None]).mean()))
        divergences.append(float((its_PV.exp() * (its_PV - own_PV)).sum(-1).mean()))
        top_P = own_PV.max(-1)
        confidences += top_P.values.exp().tolist()
        hits += (top_P.indices == labels_P).tolist()
    order = np.argsort(confidences)
    bins = np.array_split(order, BINS)
    gaps = [abs(np.mean(np.take(confidences, b)) - np.mean(np.take(hits, b))) * len(b) for b in bins]
    error = np.std(losses, ddof=1) / np.sqrt(len(losses))
    return {
        "loss": float(np.mean(losses)),
        "losses": losses,
        "standard_error": float(error),
        "ece": float(np.sum(gaps) / len(order)),
        "kl": float(np.mean(divergences)),
        "tokens": float(len(order)),
    }


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0])
    parser.add_argument("--signals", type=lambda text: text.split(","), default=list(SIGNALS))
    parser.add_argument("--teach", type=float, default=0.0, metavar="EPOCHS")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    configure_torch(threads=options.threads, seed=0)
    recipe = load_recipe(RECIPE, {"training.batch_size": 1, "training.micro_batch_size": 1})
    if options.teach:
        lessons = recipe.training.model_copy(update={"epochs": options.teach, "learning_rate": 5e-5})
        recipe = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"finetune": lessons})})
    options.workspace.mkdir(parents=True, exist_ok=True)
    tables = load_tables(recipe.data, fetch_source)
    for name in ("train", "test"):
        freeze(tables[name], options.workspace / f"{name}.parquet")
    rows, held_out = (load_frozen(options.workspace / f"{name}.parquet") for name in ("train", "test"))
    teacher, _ = prepare_teacher(recipe, rows, options.workspace / "teacher", options.workspace)
    tokenizer = load_tokenizer(options.workspace / "teacher")
    start, _ = start_student(recipe, teacher, tokenizer, rows, options.workspace)
    documents = recipe_documents(recipe, tokenizer, held_out)[: options.documents]
    # About 250 tokens a step, and what the steps need is all that is scored.
    needed = recipe_documents(recipe, tokenizer, rows)
    count = int(np.searchsorted(np.cumsum([len(d.ids_L) for d in needed]), 250 * options.steps)) + 1
    rows = rows.select(range(min(count, len(rows))))
    vocabulary = vocabulary_size(teacher, tokenizer)
    anchors = {
        "teacher": measure(teacher, teacher, documents, vocabulary),
        "start": measure(start.model, teacher, documents, vocabulary),
    }
    runs = []
    for seed in options.seeds:
        results = dict(anchors)
        for name in options.signals:
            began = time.monotonic()
            student = copy.deepcopy(start.model)
            results[name] = train(with_seed(recipe, seed), name, student, teacher, tokenizer, rows, options) | measure(
                student, teacher, documents, vocabulary
            )
            print(f"seed {seed}, {name}: {time.monotonic() - began:.0f} s in all", flush=True)
        print(table(results, documents=len(documents)), flush=True)
        print(paired(results, options.signals), flush=True)
        runs.append({"seed": seed, "results": results})
        if options.out:
            options.out.write_text(json.dumps({"steps": options.steps, "runs": runs}, indent=1))
    if len(runs) > 1:
        print(over_seeds([run["results"] for run in runs], options.signals))


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """Return the recipe with another order of the packs and other samples."""
    cache = recipe.teacher.cache.model_copy(update={"seed": seed})
    return recipe.model_copy(
        update={
            "teacher": recipe.teacher.model_copy(update={"cache": cache}),
            "training": recipe.training.model_copy(update={"seed": seed}),
        }
    )


def train(
    recipe: Recipe, name: str, student: Any, teacher: Any, tokenizer: Any, rows: Any, options: argparse.Namespace
) -> dict[str, float]:
    """Train a student on one signal; return bytes a token and tokens a second."""
    workspace, cache, size = options.workspace / f"{name}-{recipe.training.seed}", None, 0.0
    distillation = DistillationConfig(alpha=1.0 if name == "ce" else 0.0, temperature=1.0)
    if name in METHODS:
        method = CacheConfig.model_validate(recipe.teacher.cache.model_dump() | {"method": name})
        plain = recipe.model_copy(
            update={
                "teacher": recipe.teacher.model_copy(update={"cache": method}),
                "distillation": distillation,
            }
        )
        digests = {"teacher_sha256": "0" * 64, "data_sha256": sha256_of_file(options.workspace / "train.parquet")}
        manifest = write_shard(plain, teacher, tokenizer, rows, workspace / "cache", **digests)
        cache = open_cache(plain, [workspace / "cache"], teacher, tokenizer, rows, **digests).scores
        written = sum(path.stat().st_size for path in (workspace / "cache").iterdir())
        size = written / (manifest.num_targets or 1)
    training = recipe.training.model_copy(update={"checkpoint_seconds": 3600.0})
    outcome = fit(
        TrainingJob(
            model=student,
            tokenizer=tokenizer,
            rows=rows,
            task=recipe.task,
            config=training,
            loss=build_loss(distillation, "kd" if name != "ce" else "sft"),
            cache=cache,
            teacher=teacher if name == "full" else None,
            workspace=workspace,
        )
    )
    return {
        "bytes_per_token": size,
        "tokens_per_second": outcome.tokens_per_second,
        "steps": float(outcome.history.total_steps),
    }


def table(results: dict[str, dict[str, Any]], *, documents: int) -> str:
    """Return a Markdown table."""
    tokens = results["teacher"]["tokens"]
    lines = [
        f"{documents} held-out documents, {tokens:.0f} tokens; {list(results.values())[-1]['steps']:.0f} steps",
        "",
        "| signal | held-out loss, nats | ECE | KL from the teacher | bytes a token | tokens/s |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, found in results.items():
        size = f"{found['bytes_per_token']:.1f}" if found.get("bytes_per_token") else ""
        rate = f"{found['tokens_per_second']:.0f}" if "tokens_per_second" in found else ""
        lines.append(
            f"| {name} | {found['loss']:.3f} +- {found['standard_error']:.3f} | {found['ece']:.3f} | {found['kl']:.3f} "
            f"| {size} | {rate} |"
        )
    return "\n".join(lines)


def paired(results: dict[str, dict[str, Any]], signals: list[str]) -> str:
    """Return each signal's loss minus the first one's, with a 95 % interval (BCa) over documents, as a list."""
    lines = []
    for name in signals[1:]:
        gaps = np.subtract(results[name]["losses"], results[signals[0]]["losses"])
        found = bootstrap((gaps,), np.mean, n_resamples=RESAMPLES, method="BCa", rng=0).confidence_interval
        lines.append(f"- {name} minus {signals[0]}: {gaps.mean():+.3f} [{found.low:+.3f}, {found.high:+.3f}] nats")
    return "\n".join(lines)


def over_seeds(runs: list[dict[str, dict[str, Any]]], signals: list[str]) -> str:
    """Return a Markdown table of the differences from the first signal, over seeds."""
    lines = [f"{len(runs)} seeds, each minus {signals[0]}", "", "| signal | loss | KL | ECE |", "|---|---:|---:|---:|"]
    for name in signals[1:]:
        cells = []
        for figure in ("loss", "kl", "ece"):
            gaps = [run[name][figure] - run[signals[0]][figure] for run in runs]
            cells.append(f"{np.mean(gaps):+.3f} +- {np.std(gaps, ddof=1) / np.sqrt(len(gaps)):.3f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
