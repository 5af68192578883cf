"""What the student should become, apart from its labels: the teacher's distributions over a large vocabulary."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class SparseTargets:
    """The teacher's distributions at N positions, by their K nonzero entries in all, position after position."""

    offsets_S: torch.Tensor
    """N + 1 rising int64: the entries of position i are those from ``offsets_S[i]`` to ``offsets_S[i + 1]``."""
    ids_K: torch.Tensor
    """Token ids, int64; those of a position differ."""
    probabilities_K: torch.Tensor
    """At temperature T, float32, above 0. They add up to the mass m of a position: 1, or less where a tail was cut."""

    @property
    def num_positions(self) -> int:
        """N."""
        return len(self.offsets_S) - 1

    def to(self, device: torch.device) -> "SparseTargets":
        """Return a copy on a device."""
        return SparseTargets(
            offsets_S=self.offsets_S.to(device),
            ids_K=self.ids_K.to(device),
            probabilities_K=self.probabilities_K.to(device),
        )
