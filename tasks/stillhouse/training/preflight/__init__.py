"""Small trainings before a run: is distillation likely to beat fine-tuning alone, and with which teacher?

No stage imports this package: what it foretells changes no run.
"""

from stillhouse.training.preflight.console import following, render
from stillhouse.training.preflight.run import preflight

__all__ = ["following", "preflight", "render"]
