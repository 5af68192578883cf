"""Terms of different size brought to the same pull on the student."""

import math
from collections.abc import Iterable, Mapping

import torch

from stillhouse.contract import StageBug


def gradient_norms(terms: Mapping[str, torch.Tensor], parameters: Iterable[torch.nn.Parameter]) -> dict[str, float]:
    """Return the L2 norm of each term's gradient, added up in float64. One backward pass for each term.

    No ``.grad`` is touched, and the graph is kept for the real backward pass.

    Args:
        terms: Scalars before their weights; one without history has norm 0.
        parameters: Of the student, those that are trained.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    norms = {}
    for name, term in terms.items():
        if not term.requires_grad:
            norms[name] = 0.0
            continue
        gradients = torch.autograd.grad(term, trained, retain_graph=True, allow_unused=True)
        squares = [gradient.double().square().sum() for gradient in gradients if gradient is not None]
        norms[name] = math.sqrt(float(torch.stack(squares).sum())) if squares else 0.0
    return norms


def balanced_weights(weights: Mapping[str, float], norms: Mapping[str, float], reference: str) -> dict[str, float]:
    """Rescale every term but the reference so that ``weight * gradient norm`` keeps the ratio that the weights ask for.

    With n the norms and r the reference, ``w_i' = w_i * n_r / n_i``: then ``w_i' n_i / (w_r n_r) = w_i / w_r``. A term
    keeps its weight where it or the reference has no gradient: there is nothing to measure by.

    Args:
        weights: As configured.
        norms: Of each term before its weight.
        reference: The term whose weight stays.
    """
    measure = norms[reference]
    return {
        name: weight * measure / norms[name] if name != reference and measure > 0 and norms[name] > 0 else weight
        for name, weight in weights.items()
    }


class Balancer:
    """`balanced_weights` by norms that are smoothed over the steps at which they were measured."""

    def __init__(self, *, reference: str, smoothing: float = 0.9) -> None:
        """Start with nothing measured.

        Args:
            reference: The term whose weight stays.
            smoothing: Share of the past in the mean, from 0 up to but not including 1. The first measurement counts in
                full.
        """
        self.reference = reference
        self.smoothing = smoothing
        self._norms: dict[str, float] = {}

    def update(self, norms: Mapping[str, float]) -> None:
        """Take a measurement in; over several processes, the same in each, or their weights part.

        Raises:
            StageBug: A norm is NaN or infinite: a loss that exploded must stop the run before it is balanced.
        """
        if broken := [name for name, norm in norms.items() if not math.isfinite(norm)]:
            raise StageBug(f"the gradient norm of {broken[0]} is not finite; check terms before balancing them")
        for name, norm in norms.items():
            past = self._norms.get(name, norm)
            self._norms[name] = self.smoothing * past + (1 - self.smoothing) * norm

    def weights(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Return the weights rescaled, or as they are before the first measurement."""
        return balanced_weights(weights, self._norms, self.reference) if self._norms else dict(weights)

    def state(self) -> dict[str, float]:
        """Return the smoothed norms, for a checkpoint."""
        return dict(self._norms)

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from a checkpoint."""
        self._norms = dict(state)
