"""Other libraries' distillation as sides of a comparison: ``python benchmarks/peers/sides.py SIDE ...``.

Runs in an environment of its own (see benchmarks/README.md); nothing of Stillhouse is imported. Each is written as its
library's documentation shows: the teacher runs at every step, batches come in random order and are padded to their
longest row. Optimizer (AdamW, one fused kernel), clipping and precision (float32) are the same everywhere.

``--tokens`` is an .npz file with ``ids`` (all rows, one after the other), ``lengths`` of the rows and, for classifiers,
``labels``.
"""

import argparse
import importlib.abc
import importlib.machinery
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from gate import Gate
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
)

Rows = list[dict[str, Any]]
LEARNING_RATE, WEIGHT_DECAY, MAX_NORM, FOREVER = 5e-5, 0.01, 1.0, 100_000


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


class PlainTrainer(Trainer):
    """The few lines that everybody writes."""

    teacher: Any
    alpha: float
    temperature: float

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        """Weigh cross-entropy and distillation."""
        output = model(**inputs)
        with torch.no_grad():
            teacher_logits = self.teacher(**inputs).logits
        kd = functional.kl_div(
            functional.log_softmax(output.logits / self.temperature, -1),
            functional.softmax(teacher_logits / self.temperature, -1),
            reduction="batchmean",
        )
        loss = self.alpha * output.loss + (1 - self.alpha) * self.temperature**2 * kd
        return (loss, output) if return_outputs else loss


def options(arguments: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Return what transformers' trainers are told: no recomputation, nothing written or logged."""
    return {
        "output_dir": folder,
        "max_steps": FOREVER,
        "per_device_train_batch_size": arguments.batch,
        "learning_rate": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY,
        "max_grad_norm": MAX_NORM,
        "optim": "adamw_torch_fused",
        "save_strategy": "no",
        "report_to": [],
        "logging_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "remove_unused_columns": False,
        "bf16": False,
        "activation_checkpointing": False,
        "train_sampling_strategy": "group_by_length" if arguments.side == "plain, grouped" else "random",
    }


def plain(arguments: argparse.Namespace, rows: Rows, collate: Collate, student: Any, teacher: Any) -> None:
    """Train with ``transformers.Trainer``."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = PlainTrainer(
            model=student,
            args=TrainingArguments(**options(arguments, folder)),
            train_dataset=rows,  # type: ignore[arg-type]
            data_collator=collate,
        )
        trainer.teacher, trainer.alpha, trainer.temperature = teacher, arguments.alpha, arguments.temperature
        trainer.train()


def trl_gkd(arguments: argparse.Namespace, rows: Rows, collate: Collate, student: Any, teacher: Any) -> None:
    """Train with TRL's GKD trainer on the rows themselves: nothing is generated, forward KL at T = 1 alone."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    with tempfile.TemporaryDirectory() as folder:
        GKDTrainer(
            model=student,
            teacher_model=teacher,
            args=GKDConfig(**options(arguments, folder), lmbda=0.0, beta=0.0, max_length=None),
            train_dataset=Dataset.from_list(rows),
            data_collator=collate,
            processing_class=AutoTokenizer.from_pretrained(arguments.student),
        ).train()


def textbrewer(arguments: argparse.Namespace, rows: Rows, collate: Collate, student: Any, teacher: Any) -> None:
    """Train with TextBrewer's general distiller."""
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig

    def adapt(_: Any, output: Any) -> dict[str, Any]:
        return {"logits": output.logits, "losses": output.loss}

    with tempfile.TemporaryDirectory() as folder:
        GeneralDistiller(
            train_config=TrainingConfig(device="cpu", output_dir=folder, log_dir=None, ckpt_steps=10**9),
            distill_config=DistillationConfig(
                temperature=arguments.temperature,
                hard_label_weight=arguments.alpha,
                kd_loss_weight=1 - arguments.alpha,
            ),
            model_T=teacher,
            model_S=student,
            adaptor_T=adapt,
            adaptor_S=adapt,
        ).train(
            torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True),
            DataLoader(rows, batch_size=arguments.batch, shuffle=True, collate_fn=collate),  # type: ignore[arg-type]
            num_steps=FOREVER,
            max_grad_norm=MAX_NORM,
        )


def torchdistill(arguments: argparse.Namespace, rows: Rows, collate: Collate, student: Any, teacher: Any) -> None:
    """Train with torchdistill's box, as its text classification example does."""
    sys.meta_path.append(_NoTorchvision())
    import torchvision.datasets  # noqa: F401, listed by torchdistill without being imported
    from torch.utils.data import RandomSampler
    from torchdistill.core.distillation import get_distillation_box
    from torchdistill.core.interfaces.registry import register_forward_proc_func
    from torchdistill.datasets.registry import register_collate_func

    @register_collate_func(key="collate")
    def with_targets(batch: Any) -> Any:
        inputs = collate([row for row, *_ in batch])
        return inputs, inputs.pop("labels"), {}

    @register_forward_proc_func(key="logits")
    def logits(model: Any, sample: Any, *_: Any, **__: Any) -> Any:
        return model(**sample).logits

    side = {"forward_proc": "logits", "requires_grad": True}
    loss = {
        f"{role}_module_{part}": at for role in ("student", "teacher") for part, at in (("path", "."), ("io", "output"))
    }
    box = get_distillation_box(
        teacher,
        student,
        {"train": [(row, row["labels"]) for row in rows]},
        {
            "num_epochs": FOREVER,
            "train_data_loader": {
                "dataset_id": "train",
                "sampler": {"class_or_func": RandomSampler},
                "collate_fn": "collate",
                "kwargs": {"batch_size": arguments.batch},
            },
            "teacher": side | {"requires_grad": False},
            "student": side,
            "optimizer": {
                "key": "AdamW",
                "kwargs": {"lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, "fused": True},
                "max_grad_norm": MAX_NORM,
            },
            "criterion": {
                "key": "WeightedSumLoss",
                "kwargs": {
                    "sub_terms": {
                        "kd": {
                            "criterion": {
                                "key": "KDLoss",
                                "kwargs": loss | {"temperature": arguments.temperature, "alpha": arguments.alpha},
                            },
                            "weight": 1.0,
                        }
                    }
                },
            },
        },
        torch.device("cpu"),
        None,
        False,
        1.0,
    )
    for epoch in range(FOREVER):
        box.pre_epoch_process(epoch=epoch)
        for sample, targets, supplement in box.train_data_loader:
            box.post_forward_process(box.forward_process(sample, targets, supplement))


class _NoTorchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets torchdistill import without torchvision: its image models are there by name, and nothing works."""

    def find_spec(self, name: str, *_: Any) -> Any:
        if name.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> ModuleType:
        return _Hollow(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Hollow(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (torch.nn.Module,), {})


def read_rows(path: Path) -> Rows:
    """Return the rows of a file; see above."""
    with np.load(path, allow_pickle=False) as file:
        parts = np.split(file["ids"], np.cumsum(file["lengths"])[:-1])
        labels = file.get("labels")
    return [
        {"input_ids": ids.tolist()} | ({} if labels is None else {"labels": int(labels[place])})
        for place, ids in enumerate(parts)
    ]


SIDES = {
    "plain": plain,
    "plain, grouped": plain,
    "trl-gkd": trl_gkd,
    "textbrewer": textbrewer,
    "torchdistill": torchdistill,
}


def main() -> None:
    """Train until the gate has had enough."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("--student", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--alpha", type=float, default=0.0)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rows = read_rows(arguments.tokens)
    causal = "labels" not in rows[0]
    loader = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    student = loader.from_pretrained(arguments.student, dtype=torch.float32)
    teacher = loader.from_pretrained(arguments.teacher, dtype=torch.float32).eval().requires_grad_(False)
    collate = Collate(AutoTokenizer.from_pretrained(arguments.student).pad_token_id or 0, causal=causal)
    Gate(student)
    SIDES[arguments.side](arguments, rows, collate, student, teacher)


if __name__ == "__main__":
    main()
