"""The chain after the distillation: each step makes a smaller model, and a gate says whether it stays."""

from stillhouse.compression.applying import Applied, Lessons, apply_step
from stillhouse.compression.judging import Held, judge_step

__all__ = ["Applied", "Held", "Lessons", "apply_step", "judge_step"]
