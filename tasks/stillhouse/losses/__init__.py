"""What the student minimises."""

from stillhouse.losses.balance import Balancer, gradient_norms
from stillhouse.losses.combine import (
    Arm,
    Classified,
    Count,
    DistillationLoss,
    Insides,
    LossValue,
    Predicted,
    build_loss,
)
from stillhouse.losses.fused import LossParts, fused_linear_loss
from stillhouse.losses.head import Head, HeadLoss, TeacherStates
from stillhouse.losses.logit import LogitLoss
from stillhouse.losses.targets import SparseTargets

__all__ = [
    "Arm",
    "Balancer",
    "Classified",
    "Count",
    "DistillationLoss",
    "Head",
    "HeadLoss",
    "Insides",
    "LogitLoss",
    "LossParts",
    "LossValue",
    "Predicted",
    "SparseTargets",
    "TeacherStates",
    "build_loss",
    "fused_linear_loss",
    "gradient_norms",
]
