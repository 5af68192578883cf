"""Fewer layers: those go that change their input least."""

from dataclasses import dataclass, field, replace

from transformers import PreTrainedModel

from stillhouse.compression.base import Calibration, Cut, Operation, Subject
from stillhouse.compression.rounds import halvings, next_size
from stillhouse.compression.target import largest_within
from stillhouse.contract import ConfigurationError
from stillhouse.models import model_shape
from stillhouse.recipe import StudentConfig
from stillhouse.recipe.compression import DepthStep
from stillhouse.student import block_influence, keep_layers, layer_map, layers_config


@dataclass
class DepthPruning(Operation):
    """Keeps the layers of largest block influence (ShortGPT, Men et al. 2024), measured anew in each round."""

    step: DepthStep
    _goal: int = field(default=0, init=False, repr=False)
    """Layers in the end. A share is one of what the first round starts from, so it is worked out there."""

    def rounds(self, subject: Subject) -> int:
        """Return how many cuts there are: each leaves at least half of the layers, if the model learns in between.

        A target of latency can't be measured yet, so there each cut leaves about half of the latency or more.

        Raises:
            ConfigurationError: See `Operation.cut`.
        """
        if self.step.heal is None:
            return 1
        target = self.step.target
        if target is not None and target.measure == "latency":
            return halvings(1, target.share)
        return halvings(model_shape(subject.model).layers, self._wanted(subject.model, Calibration(ids=[])))

    def cut(self, subject: Subject, calibration: Calibration, *, turn: int, rounds: int) -> Cut:
        """Make the cut of a round; see `Operation.cut`."""
        model = subject.model
        if turn == 1:
            self._goal = self._wanted(model, calibration)
        before = model_shape(model).layers
        config = StudentConfig(layers=next_size(before, self._goal, rounds - turn + 1), layer_map="block-influence")
        layers = layer_map(before, config, block_influence(model, calibration.ids))
        shallow = keep_layers(model, layers)
        return Cut(
            subject=replace(subject, model=shallow),
            did=f"kept {len(layers)} of {before} layers by block influence: {', '.join(map(str, layers))}",
        )

    def _wanted(self, model: PreTrainedModel, calibration: Calibration) -> int:
        layers = model_shape(model).layers
        if self.step.target is not None:
            sizes = range(layers - 1, 0, -1)
            configs = [layers_config(model, range(size)) for size in sizes]
            return sizes[largest_within(model, self.step.target, configs, calibration)]
        assert self.step.layers is not None
        if self.step.layers > layers:
            raise ConfigurationError(f"layers is {self.step.layers} and the model has {layers}; lower layers")
        return self.step.layers
