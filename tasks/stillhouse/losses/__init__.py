"""What the student minimises."""

from stillhouse.losses.combine import Arm, DistillationLoss, LossValue, Targets, build_loss
from stillhouse.losses.hidden import HiddenCosineLoss
from stillhouse.losses.logit import LogitLoss

__all__ = ["Arm", "DistillationLoss", "HiddenCosineLoss", "LogitLoss", "LossValue", "Targets", "build_loss"]
