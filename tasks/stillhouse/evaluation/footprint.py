"""How much memory a model takes while it serves: measured in processes that do nothing else.

Run as a module it is the measuring side: it loads the libraries once, reads what to measure from its standard input,
and forks a process for each model. A fork starts with what the libraries take, so what it has at its peak beyond that
is the model's: its weights, what loading them needs for a moment, and what its answers need.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillhouse.contract import StageBug, be_quiet
from stillhouse.recipe import Task

TIMEOUT_SECONDS = 1800


def peak_memory(
    folders: Mapping[str, Path],
    texts: Sequence[str],
    *,
    task: Task,
    labels: Sequence[str],
    batch_size: int,
    max_tokens: int,
    threads: int,
) -> dict[str, int]:
    """Return the peak resident bytes of each model while it is loaded and answers ``texts`` in batches.

    On an accelerator, the peak of what is allocated there, which is scarcer. Only on Linux, whose processes know their
    own peak; elsewhere nothing is returned.

    Args:
        folders: Of the models, by name.
        texts: What they are asked.
        task: Of all models.
        labels: Of classifiers.
        batch_size: Texts that are answered together.
        max_tokens: Longer texts are truncated.
        threads: Of the numerical libraries.

    Raises:
        StageBug: A model could be loaded before, and not there.
    """
    if sys.platform != "linux":
        return {}
    job = {
        "folders": {name: str(folder) for name, folder in folders.items()},
        "texts": list(texts),
        "task": task,
        "labels": list(labels),
        "batch_size": batch_size,
        "max_tokens": max_tokens,
        "threads": threads,
    }
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps(job),
        stdout=subprocess.PIPE,  # what it says when it fails belongs into the log
        text=True,
        timeout=TIMEOUT_SECONDS,
        # Several processes may do this stage together; each of these is alone.
        env={name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")},
    )
    if done.returncode != 0:
        raise StageBug(f"the memory of models could not be measured (exit code {done.returncode}); see the log")
    found: dict[str, int] = json.loads(done.stdout)
    return found


def _measure_all(job: Mapping[str, Any]) -> dict[str, int]:
    be_quiet()
    import torch  # before the fork: loaded once, and no part of any model's peak

    from stillhouse.models import is_onnx_folder

    if any(is_onnx_folder(Path(folder)) for folder in job["folders"].values()):
        import onnxruntime

        del onnxruntime
    del torch
    return {name: _in_a_fork(Path(folder), job) for name, folder in job["folders"].items()}


def _in_a_fork(folder: Path, job: Mapping[str, Any]) -> int:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            os.write(writer, str(_measure(folder, job)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    if not answer:
        raise SystemExit(1)
    return int(answer)


def _measure(folder: Path, job: Mapping[str, Any]) -> int:
    import torch

    from stillhouse.models import last_logits, load_model, load_tokenizer, predict

    torch.set_num_threads(job["threads"])
    before = _resident()
    model = load_model(folder, task=job["task"], labels=job["labels"])
    answer = predict if job["task"] == "text-classification" else last_logits
    how = {"batch_size": job["batch_size"], "max_tokens": job["max_tokens"]}
    answer(model, load_tokenizer(folder), job["texts"], **how)
    if model.device.type != "cpu":
        return torch.accelerator.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_measure_all(json.load(sys.stdin))))
