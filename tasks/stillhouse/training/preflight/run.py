"""All probes of a recipe, each done once, and what follows from them."""

import io
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset
from pydantic import ValidationError

from stillhouse.contract import (
    Preflight,
    PreflightPointer,
    canonical_json,
    code_version,
    content_key,
    latest_key,
    preflight_key,
    pretty_json,
    sha256_of,
    sha256_of_file,
    subject_of,
)
from stillhouse.data import freeze, load_frozen, load_tables, reject_if_critical
from stillhouse.evaluation import write_records
from stillhouse.models import configure_torch
from stillhouse.recipe import Config, Recipe, Sha256
from stillhouse.store import ObjectStore, fetch_source, fingerprint_source
from stillhouse.training.preflight.candidates import Candidate, candidates
from stillhouse.training.preflight.forecast import foretell
from stillhouse.training.preflight.meter import Meter, OnProgress
from stillhouse.training.preflight.probe import Measured, Sample, run_probe

logger = logging.getLogger(__name__)

CODE = ("models", "losses", "data", "teacher", "student", "evaluation", "training")
"""Rooms whose code can change what a probe finds."""
DISTRIBUTIONS = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "accelerate", "peft", "gguf", "scipy")


class ProbeRecord(Config):
    """A finished probe in the store; its evaluation records lie beside it."""

    schema_id: Literal["stillhouse/probe/1"] = "stillhouse/probe/1"
    records_sha256: Sha256
    teacher_parameters: int
    student_parameters: int
    student_layers: int


@dataclass(frozen=True, kw_only=True)
class _Task:
    """One probe to be done."""

    candidate: Candidate
    sample: Sample
    prefix: str
    """Of its objects in the store: decided by everything that it depends on."""


def preflight(recipe: Recipe, *, store: ObjectStore, work: Path, on_progress: OnProgress | None = None) -> Preflight:
    """Say whether distillation is likely to beat fine-tuning alone, and which teacher to use.

    Trains copies of the recipe with a few of its training rows and measures them on the validation set, which no
    stage of a run learns from. Whatever was done before, by an equal recipe or before a kill, is read from the store.

    Args:
        recipe: What to try, within the budget of its section ``preflight``.
        store: Keeps finished probes and the prediction below ``preflight/RECIPE/``.
        work: Folder on this machine for checkpoints and models, which survive a kill. One process at a time.
        on_progress: Told about once a second.

    Raises:
        DataRejected: The data fails its checks, or a training fails.
        ConfigurationError: A model doesn't fit.
        TryAgain: A server or the disk stands in the way.
    """
    configure_torch(threads=recipe.preflight.cpus, seed=recipe.preflight.seed)
    home = work / "preflight" / recipe.name
    train, items = _data(recipe, home)
    found = candidates(recipe, home / "sources")
    samples = [_sample(recipe, train, items, home, repeat) for repeat in range(recipe.preflight.repeats)]
    tasks = [
        _Task(candidate=c, sample=s, prefix=f"preflight/{recipe.name}/probes/{_probe_key(recipe, c, s)}")
        for s in samples
        for c in sorted(found, key=lambda c: [other.teacher for other in found].index(c.teacher))  # share a teacher
    ]
    parts = [
        subject_of(recipe),
        recipe.evaluation.confidence,
        *((task.candidate.teacher, task.prefix) for task in tasks),
    ]
    key = sha256_of(canonical_json(parts))
    place = preflight_key(recipe.name, key)
    prediction = _finished(store, place)
    if prediction is None:
        measured = _measure(recipe, tasks, store, home / key, on_progress)
        prediction = foretell(
            recipe,
            [(candidate, [measured[candidate, repeat] for repeat in range(len(samples))]) for candidate in found],
            rows=len(samples[0].rows),
            train_rows=len(train),
        )
        store.put(place, pretty_json(prediction))
    pointer = PreflightPointer(key=key, sha256=sha256_of(pretty_json(prediction)))
    store.put(latest_key(recipe.name), pretty_json(pointer))
    shutil.rmtree(home / key, ignore_errors=True)
    return prediction


def _data(recipe: Recipe, folder: Path) -> tuple[Dataset, Dataset]:
    """Freeze and return the training set and the validation items. The test set is not kept."""
    from stillhouse.data.suites import validate  # Great Expectations takes seconds to import

    tables = load_tables(recipe.data, fetch_source)
    reject_if_critical(validate(tables, recipe.data))
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "validation"):
        freeze(tables[name], folder / f"{name}.parquet")
    train, validation = (load_frozen(folder / f"{name}.parquet") for name in ("train", "validation"))
    return train, validation.select(_draw(recipe, validation, recipe.preflight.items, "items", 0))


def _sample(recipe: Recipe, train: Dataset, items: Dataset, folder: Path, repeat: int) -> Sample:
    chosen = _draw(recipe, train, recipe.preflight.rows, "rows", repeat)
    digest = sha256_of(canonical_json([sha256_of_file(folder / "train.parquet"), chosen]))
    return Sample(rows=train.select(chosen), rows_sha256=digest, items=items, repeat=repeat)


def _draw(recipe: Recipe, rows: Dataset, most: int, stream: str, repeat: int) -> list[int]:
    """Return the places of at most ``most`` rows, in their order."""
    salt = int.from_bytes(stream.encode(), "big")
    order = np.random.default_rng([recipe.preflight.seed, salt, repeat]).permutation(len(rows))
    return sorted(order[:most].tolist())


def _probe_key(recipe: Recipe, candidate: Candidate, sample: Sample) -> str:
    plain = candidate.recipe_of(recipe, sample.repeat).model_dump(mode="json")
    part: dict[str, Any] = {name: plain[name] for name in ("task", "teacher", "student", "distillation", "training")}
    sources = {"teacher": candidate.source}
    if recipe.student.source is not None:
        sources["student"] = recipe.student.source
    return content_key(
        stage="probe",
        code=code_version(CODE, DISTRIBUTIONS),
        recipe_part=part,
        parameters={
            "keep": candidate.keep,
            "cpus": recipe.preflight.cpus,
            "batch_size": recipe.evaluation.batch_size,
            "labels": recipe.data.labels,
            "rows": sample.rows_sha256,
            "items": sha256_of(canonical_json(sample.items.to_list())),
        },
        inputs={},
        sources={name: fingerprint_source(source) for name, source in sources.items()},
    )


def _measure(
    recipe: Recipe, tasks: Sequence[_Task], store: ObjectStore, workspace: Path, on_progress: OnProgress | None
) -> dict[tuple[Candidate, int], Measured]:
    """Do what was not done before."""
    measured: dict[tuple[Candidate, int], Measured] = {}
    left = []
    for task in tasks:
        if (done := _stored(store, task.prefix)) is None:
            left.append(task)
        else:
            measured[task.candidate, task.sample.repeat] = done
    meter = Meter(sum(_work(recipe, task) for task in left), on_progress)
    for task in left:
        sample = task.sample
        folder = workspace / f"repeat-{sample.repeat}"
        found = run_probe(recipe, task.candidate, sample, workspace=folder, meter=meter)
        _keep(store, task.prefix, found, folder)
        measured[task.candidate, sample.repeat] = found
    return measured


def _work(recipe: Recipe, task: _Task) -> float:
    own = task.candidate.recipe_of(recipe, task.sample.repeat)
    parts = task.candidate.work(own, len(task.sample.rows), len(task.sample.items))
    return sum(parts.values()) + parts["arm"] + parts["measuring-arm"]  # there are two arms


def _keep(store: ObjectStore, prefix: str, found: Measured, folder: Path) -> None:
    path = folder / "records.parquet"
    write_records([found.records], path)
    record = ProbeRecord(
        records_sha256=sha256_of_file(path),
        teacher_parameters=found.teacher_parameters,
        student_parameters=found.student_parameters,
        student_layers=found.student_layers,
    )
    store.put_file(f"{prefix}.parquet", path)
    store.put(f"{prefix}.json", pretty_json(record))


def _stored(store: ObjectStore, prefix: str) -> Measured | None:
    try:
        record = ProbeRecord.model_validate_json(store.get(f"{prefix}.json"))
        data = store.get(f"{prefix}.parquet")
        whole = sha256_of(data) == record.records_sha256
    except FileNotFoundError:
        return None
    except ValidationError:
        whole = False
    if not whole:
        logger.warning("%s is damaged; the probe runs again", store.uri(prefix))
        return None
    return Measured(
        records=pq.read_table(io.BytesIO(data)),
        teacher_parameters=record.teacher_parameters,
        student_parameters=record.student_parameters,
        student_layers=record.student_layers,
    )


def _finished(store: ObjectStore, place: str) -> Preflight | None:
    try:
        return Preflight.model_validate_json(store.get(place))
    except FileNotFoundError:
        return None
    except ValidationError:
        logger.warning("%s is no prediction of this version; it is made again", store.uri(place))
        return None
