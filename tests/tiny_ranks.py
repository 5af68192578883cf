"""A tiny training in one of several processes: ``torchrun tiny_ranks.py OUT SHARDING [STEP]``, dying after STEP."""

import os
import signal
import sys
from pathlib import Path

from safetensors.torch import save_file
from tiny_language import texts, tiny_causal, tiny_tokenizer

from stillhouse.contract import HistoryPoint, pretty_json
from stillhouse.losses import build_loss
from stillhouse.models import configure_torch, model_shape
from stillhouse.recipe import CkaTerm, DistillationConfig, HiddenTerm, TrainingConfig
from stillhouse.training import TrainingJob, fit, parallel


def main(out: Path, sharding: str, step: int = 0) -> None:
    """Train a student beside its teacher, and write history and weights."""
    configure_torch(threads=1, seed=0)

    def die(point: HistoryPoint) -> None:
        if point.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    student, teacher = tiny_causal(tie_word_embeddings=True), tiny_causal(layers=3, width=24, seed=1)
    # The term among documents sees those of one process: its weight is next to nothing.
    config = DistillationConfig(alpha=1.0, features=(HiddenTerm(weight=0.3, layers="all"), CkaTerm(weight=1e-9)))
    outcome = fit(
        TrainingJob(
            model=student,
            tokenizer=tiny_tokenizer(),
            rows=texts(),
            task="causal-lm",
            config=TrainingConfig(
                epochs=3,
                batch_size=5,
                learning_rate=3e-3,
                max_tokens=24,
                checkpoint_seconds=0,
                sharding=sharding,
                validation_points=4,
            ),
            # Three batches of held-out texts: one process has one less than the other.
            validation=texts(14, seed=9),
            loss=build_loss(config, "kd", student=model_shape(student), teacher=model_shape(teacher)),
            teacher=teacher,
            workspace=out / "workspace",
            on_point=die,
        )
    )
    if parallel.rank() == 0:
        weights = {name: tensor.detach().contiguous() for name, tensor in outcome.model.named_parameters()}
        (out / "history.json").write_bytes(pretty_json(outcome.history))
        save_file(weights, out / "weights.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
