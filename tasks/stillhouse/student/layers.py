"""Which of a model's layers a student keeps."""

from collections.abc import Sequence

import numpy as np

from stillhouse.contract import ConfigurationError
from stillhouse.recipe import StudentConfig


def layer_map(num_layers: int, config: StudentConfig, influences: Sequence[float] | None = None) -> tuple[int, ...]:
    """Return the layer, from 0, under each student layer.

    From 12 to 6 layers, ``alternate`` gives 0 2 4 6 8 10, ``lower`` 0 to 5, ``upper`` 6 to 11 and ``spaced`` 0 2 4 7 9
    11 as in DistilBERT (Sanh et al. 2019). ``block-influence`` keeps the layers with the largest influence.

    Args:
        num_layers: Of the model that the layers come from.
        config: Of the recipe; without a map, ``block-influence`` if influences are given, else ``spaced``.
        influences: Of each layer; see `stillhouse.student.block_influence`.

    Raises:
        ConfigurationError: The student has more layers than there are, or names one that is missing.
    """
    kept = config.layers or num_layers
    if kept > num_layers:
        raise ConfigurationError(
            f"the student has more layers than the model it comes from ({kept} and {num_layers}); lower student.layers"
        )
    chosen = config.layer_map or ("spaced" if influences is None else "block-influence")
    if isinstance(chosen, tuple):
        if chosen[-1] >= num_layers:
            raise ConfigurationError(
                f"student.layer_map names layer {chosen[-1]} and the model ends at {num_layers - 1}"
            )
        return chosen
    if chosen == "block-influence":
        assert influences is not None
        strongest = np.argsort(-np.asarray(influences), kind="stable")[:kept]
        return tuple(sorted(int(layer) for layer in strongest))
    if chosen == "alternate":
        return tuple(i * num_layers // kept for i in range(kept))
    if chosen == "lower":
        return tuple(range(kept))
    if chosen == "upper":
        return tuple(range(num_layers - kept, num_layers))
    return tuple(int(index) for index in np.round(np.linspace(0, num_layers - 1, kept)))
