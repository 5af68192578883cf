"""Distilling a decoder, here and in TRL: ``python benchmarks/trl_gkd.py --peers PYTHON [--teacher FOLDER]``.

SmolLM2-135M teaches a student of every second of its 30 layers on newspaper English: forward KL at T = 1 on all tokens,
nothing generated. TRL's GKD trainer runs the teacher at every step; here its distributions were sampled before, once.
Two settings: rows of exactly 256 tokens, two a step; and sentences of natural length, which are packed into two rows of
256 tokens here, while TRL pads as many sentences a step to the longest one. Tokens are those of the texts, without
padding. Only steps are timed, in alternating rounds. PYTHON is that of the peers' environment; see
benchmarks/README.md.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ours
import pandas as pd
from alternating import Side, alternate, compare, print_table

from stillhouse.data import load_tables
from stillhouse.models import configure_torch, load_tokenizer, obtain_model_folder
from stillhouse.recipe import Recipe, load_recipe
from stillhouse.store import fetch_source

HERE = Path(__file__).resolve().parent
ROW_TOKENS, ROWS_A_STEP, ROWS, SENTENCES = 256, 2, 16, 256
CHANGES = {
    "distillation.alpha": 0.0,
    "distillation.temperature": 1.0,
    "student.layer_map": "alternate",
    "training.batch_size": ROWS_A_STEP,
    "training.micro_batch_size": None,
    "training.max_tokens": ROW_TOKENS,
    # Many passes over few texts: the gradient norms of the terms are then measured as rarely as in a long training.
    "training.epochs": 20.0,
}


def settings(recipe: Recipe, teacher: Path) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield name and texts of each setting."""
    sentences = load_tables(recipe.data, fetch_source)["train"]
    text = "\n".join(sentences["text"])
    tokens = load_tokenizer(teacher)(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    # Start and end of the text take a token each.
    stop = tokens["offset_mapping"][ROWS * ROW_TOKENS - 3][1]
    yield "equal lengths", pd.DataFrame({"id": ["all"], "text": [text[:stop]]})
    yield "natural lengths", sentences.head(SENTENCES)


def run(recipe: Recipe, table: pd.DataFrame, workspace: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare both sides on some texts."""
    manifest, seconds = ours.prepare(recipe, table, workspace)
    lengths = ours.write_tokens(recipe, workspace)
    loader = ours.step_loader(recipe, lengths)
    batch = round(loader.seen[-1] / len(loader))
    options = {
        "--student": workspace / "student",
        "--teacher": workspace / "teacher",
        "--tokens": workspace / ours.TOKENS,
        "--batch": batch,
    }
    theirs = [arguments.peers, str(HERE / "peers/sides.py"), "trl-gkd"]
    sides: list[Side] = alternate(
        {
            "ours": ours.command(workspace),
            "trl-gkd": theirs + [str(part) for pair in options.items() for part in pair],
        },
        rounds=arguments.rounds,
        steps=arguments.steps,
        threads=arguments.threads,
        folder=workspace,
    )
    return {
        "documents": len(lengths),
        "tokens": sum(lengths),
        "documents_a_step": batch,
        "cached_positions": manifest.num_targets,
        "cache_seconds": seconds,
        "lines": compare(sides, "tokens"),
    }


def main() -> None:
    """Compare in both settings and print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", required=True, metavar="PYTHON")
    parser.add_argument("--teacher", type=Path, help="a safetensors folder, instead of the recipe's GGUF file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="of a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    configure_torch(threads=arguments.threads, seed=0)
    path = HERE.parent / "dags/recipes/editorials.yaml"
    results = {}
    print(f"{arguments.rounds} rounds of {arguments.steps} steps, {arguments.threads} threads", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        teacher = arguments.teacher or obtain_model_folder(fetch_source(load_recipe(path).teacher.source), Path(folder))
        source = {"kind": "path", "path": str(teacher.resolve())}
        recipe = load_recipe(path, CHANGES | {"teacher.source": source})
        for name, table in settings(recipe, teacher):
            workspace = Path(folder) / name.replace(" ", "-")
            workspace.mkdir()
            results[name] = result = run(recipe, table, workspace, arguments)
            print(
                f"\n{name}: {result['documents']} documents of {result['tokens'] / result['documents']:.0f} tokens, "
                f"{result['documents_a_step']} a step\n"
            )
            print_table(result["lines"], "tokens")
            rate = result["cached_positions"] / result["cache_seconds"]
            print(f"\nOnce, before: the teacher's cache was written at {rate:.0f} tokens/s.", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps({"threads": arguments.threads, "settings": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
