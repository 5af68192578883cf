"""What waiting threads cost: ``python benchmarks/openmp.py [RECIPE]``.

Fine-tunes the recipe's teacher for a few steps with two threads in fresh processes, alternating between OpenMP's
default, in which waiting threads spin, and ``OMP_WAIT_POLICY=PASSIVE``, in which they sleep. Prints samples per second,
the medians, and their ratio.
"""

import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROUNDS = 3
STEPS = 16


def main() -> None:
    """Alternate between both policies and print what each gave."""
    recipe = sys.argv[1] if len(sys.argv) > 1 else "dags/recipes/quickstart.yaml"
    rates: dict[str, list[float]] = {"default": [], "PASSIVE": []}
    for _ in range(ROUNDS):
        for policy, found in rates.items():
            found.append(rate(recipe, policy))
            print(f"{policy:>8} {found[-1]:6.1f} samples/s", flush=True)
    default, passive = (statistics.median(found) for found in rates.values())
    print(f"median: default {default:.1f}, PASSIVE {passive:.1f} samples/s, ratio {passive / default:.2f}")


def rate(recipe: str, policy: str) -> float:
    """Return the samples per second of one fresh process."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if policy != "default":
        environment["OMP_WAIT_POLICY"] = policy
    command = [sys.executable, __file__, "--measure", recipe]
    return float(
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()[-1]
    )


def measure(recipe_file: str) -> None:
    """Train for a few steps and print the samples per second."""
    from datasets import Dataset

    from stillhouse.data import load_tables
    from stillhouse.data.frozen import FEATURES
    from stillhouse.losses import build_loss
    from stillhouse.models import configure_torch, load_model, load_tokenizer
    from stillhouse.recipe import TrainingConfig, load_recipe
    from stillhouse.store import fetch_source
    from stillhouse.training import TrainingJob, fit

    recipe = load_recipe(Path(recipe_file))
    config = (recipe.teacher.finetune or TrainingConfig()).model_copy(update={"epochs": 1.0})
    frame = load_tables(recipe.data, fetch_source)["train"][: STEPS * config.batch_size]
    configure_torch(threads=2, seed=config.seed)
    folder = fetch_source(recipe.teacher.source)
    with TemporaryDirectory() as workspace:
        outcome = fit(
            TrainingJob(
                model=load_model(folder, task=recipe.task, labels=recipe.data.labels),
                tokenizer=load_tokenizer(folder),
                rows=Dataset.from_pandas(frame, features=FEATURES, preserve_index=False),
                config=config,
                loss=build_loss(recipe.distillation, arm="sft"),
                workspace=Path(workspace),
            )
        )
    print(outcome.samples_per_second)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2])
    else:
        main()
