"""What the student learns from each kind of teacher signal, at equal steps: held-out loss, calibration, fidelity.

    .venv/bin/python benchmarks/quality.py WORKSPACE [--steps 60] [--threads 2] [--out quality.json]

SmolLM2-135M into 15 of its layers on the recipe `benchmarks/recipes/smollm.yaml`. Every student starts from the same
weights and sees the same packs in the same order; only the signal differs. All targets are at T = 1.
"""
