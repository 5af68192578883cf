"""Teachers behind a server that speaks the OpenAI protocol."""

from stillhouse.teacher.api.client import ApiWriter
from stillhouse.teacher.api.spending import Spending

__all__ = ["ApiWriter", "Spending"]
