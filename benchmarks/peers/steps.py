"""Seconds of each training step of another library, on given models and given tokens.

Runs in an environment of its own, with ``trl`` and ``textbrewer`` beside ``torch`` and ``transformers``; nothing of
Stillhouse is imported. A benchmark calls it as a program:

    python benchmarks/peers/steps.py trl-gkd --student FOLDER --teacher FOLDER --tokens rows.npz --out steps.json

``rows.npz`` holds ``ids`` (all rows, one after the other), ``lengths`` of the rows and, for classifiers, ``labels``.
Rows are taken in order, ``--batch`` at a time, padded to the longest. The first step is warm-up and left out.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, SequentialSampler
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

Rows = list[dict[str, Any]]
TEMPERATURE = 2.0


class Clock(TrainerCallback):
    """Notes when each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Called by the trainers."""
        self.ends.append(time.perf_counter())


class InOrder:
    """Mixed into a trainer, so that every side gets the same batches."""

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # type: ignore[attr-defined]


class Collate:
    """Stack rows, padded on the right; a language model's labels are its ids."""

    def __init__(self, pad: int, *, causal: bool) -> None:
        self._pad, self._causal = pad, causal

    def __call__(self, rows: Rows) -> dict[str, torch.Tensor]:
        """Return ids and mask (B, T), and labels (B, T) or (B,)."""
        shape = (len(rows), max(len(row["input_ids"]) for row in rows))
        ids_BT, mask_BT = torch.full(shape, self._pad), torch.zeros(shape, dtype=torch.int64)
        for place, row in enumerate(rows):
            ids_BT[place, : len(row["input_ids"])] = torch.as_tensor(row["input_ids"], dtype=torch.int64)
            mask_BT[place, : len(row["input_ids"])] = 1
        labels = ids_BT.masked_fill(mask_BT == 0, -100) if self._causal else torch.tensor([r["labels"] for r in rows])
        return {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": labels}


class DistillingTrainer(InOrder, Trainer):
    """The few lines that everybody writes: the teacher runs at every step."""

    teacher: Any

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        """Weigh cross-entropy and distillation alike."""
        output = model(**inputs)
        with torch.no_grad():
            teacher_logits = self.teacher(**inputs).logits
        kd = functional.kl_div(
            functional.log_softmax(output.logits / TEMPERATURE, -1),
            functional.softmax(teacher_logits / TEMPERATURE, -1),
            reduction="batchmean",
        )
        loss = 0.5 * output.loss + 0.5 * TEMPERATURE**2 * kd
        return (loss, output) if return_outputs else loss


class PlainTrainer(InOrder, Trainer):
    """Cross-entropy without any teacher."""


def options(arguments: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Return what all trainers are told: float32, no recomputation, nothing written or logged."""
    return {
        "output_dir": folder,
        "max_steps": arguments.steps,
        "per_device_train_batch_size": arguments.batch,
        "learning_rate": 5e-5,
        "save_strategy": "no",
        "report_to": [],
        "logging_steps": 10_000,
        "disable_tqdm": True,
        "use_cpu": True,
        "remove_unused_columns": False,
        "bf16": False,
        "activation_checkpointing": False,
        "seed": 0,
    }


def hugging_face(arguments: argparse.Namespace, rows: Rows, collate: Collate, student: Any, teacher: Any) -> Clock:
    """Time ``transformers.Trainer``, with the teacher or without."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        kind = PlainTrainer if teacher is None else DistillingTrainer
        trainer = kind(
            model=student,
            args=TrainingArguments(**options(arguments, folder)),
            train_dataset=rows,
            data_collator=collate,
            callbacks=[clock],
        )
        if teacher is not None:
            trainer.teacher = teacher
        trainer.train()
    return clock


def trl_gkd(arguments: argparse.Namespace, rows: Rows, collate: Collate, student: Any, teacher: Any) -> Clock:
    """Time TRL's GKD trainer on the rows themselves: nothing is generated, forward KL."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    class InOrderGKDTrainer(InOrder, GKDTrainer):
        pass

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        config = GKDConfig(**options(arguments, folder), lmbda=0.0, beta=0.0, temperature=TEMPERATURE, max_length=None)
        InOrderGKDTrainer(
            model=student,
            teacher_model=teacher,
            args=config,
            train_dataset=Dataset.from_list(rows),
            data_collator=collate,
            processing_class=AutoTokenizer.from_pretrained(arguments.student),
            callbacks=[clock],
        ).train()
    return clock


def textbrewer(arguments: argparse.Namespace, rows: Rows, collate: Collate, student: Any, teacher: Any) -> Clock:
    """Time TextBrewer's general distiller on logits and labels."""
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig

    def adapt(_: Any, output: Any) -> dict[str, Any]:
        return {"logits": output.logits, "losses": output.loss}

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        optimizer = torch.optim.AdamW(student.parameters(), lr=5e-5)
        optimizer.register_step_post_hook(lambda *_: clock.on_step_end())
        GeneralDistiller(
            train_config=TrainingConfig(device="cpu", output_dir=folder, log_dir=None, ckpt_steps=10**9),
            distill_config=DistillationConfig(temperature=TEMPERATURE, hard_label_weight=0.5, kd_loss_weight=0.5),
            model_T=teacher,
            model_S=student,
            adaptor_T=adapt,
            adaptor_S=adapt,
        ).train(
            optimizer,
            DataLoader(rows, batch_size=arguments.batch, collate_fn=collate),  # type: ignore[arg-type]
            num_steps=arguments.steps,
            max_grad_norm=1.0,
        )
    return clock


def read_rows(path: Path) -> Rows:
    """Return the rows of a file; see above."""
    with np.load(path, allow_pickle=False) as file:
        parts = np.split(file["ids"], np.cumsum(file["lengths"])[:-1])
        labels = file.get("labels")
    return [
        {"input_ids": ids.tolist()} | ({} if labels is None else {"labels": int(labels[i])})
        for i, ids in enumerate(parts)
    ]


def main() -> None:
    """Time one side and write its figures."""
    sides = {"trl-gkd": trl_gkd, "hf-ce": hugging_face, "hf-kd": hugging_face, "textbrewer": textbrewer}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=sides)
    parser.add_argument("--student", type=Path, required=True)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.side != "hf-ce" and arguments.teacher is None:
        parser.error("--teacher is needed")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rows = read_rows(arguments.tokens)
    causal = "labels" not in rows[0]
    loader = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    student = loader.from_pretrained(arguments.student, dtype=torch.float32)
    teacher = None
    if arguments.side != "hf-ce":
        teacher = loader.from_pretrained(arguments.teacher, dtype=torch.float32).eval().requires_grad_(False)
    collate = Collate(AutoTokenizer.from_pretrained(arguments.student).pad_token_id or 0, causal=causal)
    ends = sides[arguments.side](arguments, rows, collate, student, teacher).ends
    seconds = np.diff(ends).tolist()
    used = rows[arguments.batch : arguments.batch * len(ends)]
    result = {
        "side": arguments.side,
        "seconds": seconds,
        "rows": len(used),
        "tokens": sum(len(row["input_ids"]) for row in used),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
