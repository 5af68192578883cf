"""Distilling an encoder, here and elsewhere: ``python benchmarks/encoder.py --peers PYTHON [--out FILE]``.

The quickstart's job without its hidden-state term: MiniLM's 6 layers teach 3 of them on film reviews of natural length
(at most 64 tokens, 32 a step), by labels and logits. Here the teacher's outputs are cached and batches are of similar
length; the others run the teacher at every step on batches in random order: transformers' Trainer with a loss of ten
lines (``plain``), TextBrewer and torchdistill. ``plain, grouped`` is the first with transformers' own grouping by
length, which begins with the longest of 50 batches: its early rounds are not its mean. Tokens are those of the texts,
without padding, since rounds differ in the length of their texts. Only steps are timed, in alternating rounds. PYTHON
is that of the peers' environment; see benchmarks/README.md.
"""

import argparse
import json
import tempfile
from pathlib import Path

import ours
from alternating import alternate, compare, print_table

from stillhouse.data import load_tables
from stillhouse.models import configure_torch
from stillhouse.recipe import load_recipe
from stillhouse.store import fetch_source

HERE = Path(__file__).resolve().parent
PEERS = ("plain", "plain, grouped", "textbrewer", "torchdistill")


def main() -> None:
    """Compare all sides and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", required=True, metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="of a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    configure_torch(threads=arguments.threads, seed=0)
    changes = {"teacher.finetune": None, "distillation.features": []}
    recipe = load_recipe(HERE.parent / "dags/recipes/quickstart.yaml", changes)
    table = load_tables(recipe.data, fetch_source)["train"]
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        manifest, seconds = ours.prepare(recipe, table, workspace)
        ours.write_tokens(recipe, workspace)
        shared = {
            "--student": workspace / "student",
            "--teacher": workspace / "teacher",
            "--tokens": workspace / ours.TOKENS,
            "--batch": recipe.training.batch_size,
            "--alpha": recipe.distillation.alpha,
            "--temperature": recipe.distillation.temperature,
        }
        options = [str(part) for pair in shared.items() for part in pair]
        theirs = {side: [arguments.peers, str(HERE / "peers/sides.py"), side, *options] for side in PEERS}
        sides = alternate(
            {"ours": ours.command(workspace)} | theirs,
            rounds=arguments.rounds,
            steps=arguments.steps,
            threads=arguments.threads,
            folder=workspace,
        )
    lines = compare(sides, "tokens")
    print(f"{arguments.rounds} rounds of {arguments.steps} steps, {arguments.threads} threads\n")
    print_table(lines, "tokens")
    print(f"\nOnce, before: the teacher's cache of {manifest.num_rows:,} documents took {seconds:.0f} s to write.")
    if arguments.out:
        result = {"threads": arguments.threads, "cache_seconds": seconds, "lines": lines}
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
