"""What all steps of the compression chain are made of."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from stillhouse.models import save_model
from stillhouse.recipe import Task


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model that is being made smaller."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    task: Task
    labels: tuple[str, ...] = ()
    """Of a classifier."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a cut may look at, so that it spares what the data need."""

    ids: list[list[int]]
    """Token ids of the training documents, in their order, as the subject's tokenizer reads them; a document has at
    most as many as the model is trained on."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What a cut left."""

    subject: Subject
    did: str
    """One line for people: what went, and how much stayed."""


class Operation(ABC):
    """One kind of step. Between a cut and the writing the model may be trained, as an ordinary model."""

    def rounds(self, subject: Subject) -> int:
        """Return in how many cuts, each followed by a training, the step reaches its goal: one, unless it says more."""
        return 1

    @abstractmethod
    def cut(self, subject: Subject, calibration: Calibration, *, turn: int, rounds: int) -> Cut:
        """Make the cut of round ``turn``, counted from 1. The subject may be changed in place.

        Raises:
            ConfigurationError: The step's goal can't be met, and the nearest that can; or the architecture has no
                support, and which have.
        """

    def write(self, subject: Subject, folder: Path) -> None:
        """Write the finished model, its tokenizer included: a folder that `stillhouse.models.load_model` reads.

        Raises:
            OSError: The folder can't be written.
        """
        save_model(subject.model, subject.tokenizer, folder)
