"""Tasks of the lm-evaluation-harness: built once, put to every model, recorded item by item."""

from stillhouse.evaluation.harness.asking import ask_benchmark
from stillhouse.evaluation.harness.building import Benchmark, build_benchmarks

__all__ = ["Benchmark", "ask_benchmark", "build_benchmarks"]
