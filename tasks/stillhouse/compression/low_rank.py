"""Linear layers become products of two thin ones."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from stillhouse.compression.base import Calibration, Cut, Operation, Subject
from stillhouse.contract import ConfigurationError
from stillhouse.models import linear_layers
from stillhouse.models.factored import FactoredEmbedding, FactoredLinear, install_factors
from stillhouse.recipe.compression import LowRankStep

DAMPING = 1e-6
"""Added to the diagonal of the inputs' second moment, as a share of its mean: inputs of less than full rank have none
of their own in every direction."""
MOMENT_BYTES = 2 << 30
"""Of second moments held at once. More layers than fit are measured in several passes, with equal results."""


@dataclass(frozen=True, kw_only=True)
class Factors:
    """The best product of rank R in the place of a matrix, for the inputs that were seen."""

    up_MR: torch.Tensor
    down_RD: torch.Tensor
    kept: float
    """Share of the squared output that stays."""


@dataclass(frozen=True)
class Factorisation(Operation):
    """Activation-aware singular value decomposition of the linear layers (SVD-LLM, Wang et al. 2025).

    With S S^T the second moment of a layer's inputs, the truncated decomposition of W S loses least of the layer's
    output: the squared error is the sum of the squared singular values that go.
    """

    step: LowRankStep

    def cut(self, subject: Subject, calibration: Calibration, *, turn: int, rounds: int) -> Cut:
        """Factorise every linear layer of the body's layers that loses weights by it, and the embeddings if asked.

        The decompositions are in float64, on the CPU.

        Raises:
            ConfigurationError: No layer would lose weights, and what of them would have to stay; there are no
                documents to measure inputs on; or the embeddings are the weights of the output head, too.
        """
        model = subject.model
        linears = linear_layers(model)
        chosen: dict[str, Factors] = {}
        nearest = []
        for name, moment_DD in _input_moments(model, linears, calibration.ids[: self.step.calibration_rows]):
            weight_MD = linears[name].weight.detach().cpu().double()
            decomposed = _Decomposition.of(weight_MD, moment_DD)
            rank = decomposed.rank(self.step)
            if decomposed.shrinks(rank):
                chosen[name] = decomposed.truncated(rank)
            nearest.append(decomposed.largest(self.step))
        if not chosen:
            raise ConfigurationError(self._too_much(nearest))
        table = _embeddings(model) if self.step.embeddings else None
        if table is not None:
            name, embedding = table
            decomposed = _Decomposition.of(embedding.weight.detach().cpu().double().T)
            rank = decomposed.rank(self.step)
            if not decomposed.shrinks(rank):
                raise ConfigurationError(
                    f"the embeddings would not lose weights at rank {rank}; leave embeddings out or keep less"
                )
            chosen[name] = decomposed.truncated(rank)
        before = model.num_parameters()
        _install(model, chosen)
        ranks = [len(factors.down_RD) for name, factors in chosen.items() if name in linears]
        count = f"{len(ranks)} of {len(linears)} linear layers"
        more = f", the embeddings at rank {len(chosen[table[0]].down_RD)}" if table else ""
        least = min(factors.kept for factors in chosen.values())
        did = (
            f"{count} factorised at ranks {min(ranks)} to {max(ranks)}{more}; "
            f"{model.num_parameters() / before:.0%} of the weights stay, at least {least:.1%} of each layer's output"
        )
        return Cut(subject=subject, did=did)

    def _too_much(self, nearest: Sequence[float]) -> str:
        """Say what would factorise at least one layer."""
        if self.step.share is not None:
            enough = math.ceil(min(nearest) * 1000) / 1000
            return f"a share of {self.step.share} leaves no linear layer a rank; raise share to {enough:g} or more"
        enough = math.floor(max(nearest) * 1000) / 1000
        return f"an energy of {self.step.energy} needs ranks that save no weights; lower energy to {enough:g} or less"


@dataclass(frozen=True, kw_only=True)
class _Decomposition:
    """The singular values and vectors of W S."""

    left_MK: torch.Tensor
    values_K: torch.Tensor
    right_KD: torch.Tensor
    root_DD: torch.Tensor | None
    """S, lower triangular; None for the identity."""

    @classmethod
    def of(cls, weight_MD: torch.Tensor, moment_DD: torch.Tensor | None = None) -> "_Decomposition":
        root_DD = None
        if moment_DD is not None:
            # A layer that saw nothing, such as an expert that was never asked, is decomposed as it is.
            damping = float(moment_DD.diagonal().mean()) * DAMPING or 1.0
            root_DD = torch.linalg.cholesky(moment_DD + damping * torch.eye(len(moment_DD), dtype=torch.float64))
        scaled_MD = weight_MD if root_DD is None else weight_MD @ root_DD
        left_MK, values_K, right_KD = torch.linalg.svd(scaled_MD, full_matrices=False)
        return cls(left_MK=left_MK, values_K=values_K, right_KD=right_KD, root_DD=root_DD)

    @property
    def _sizes(self) -> tuple[int, int]:
        """The whole layer's weights, and those of each rank."""
        outputs, inputs = self.left_MK.shape[0], self.right_KD.shape[1]
        return outputs * inputs, outputs + inputs

    def rank(self, step: LowRankStep) -> int:
        """Return the rank that the step asks for."""
        if step.share is not None:
            whole, each = self._sizes
            return int(step.share * whole / each)
        assert step.energy is not None
        return int((self._energies() < step.energy).sum()) + 1

    def shrinks(self, rank: int) -> bool:
        """Tell whether factors of a rank have fewer weights than the layer, and any."""
        whole, each = self._sizes
        return 0 < rank * each < whole

    def largest(self, step: LowRankStep) -> float:
        """Return the largest energy, or the least share, at which the layer is factorised."""
        whole, each = self._sizes
        if step.share is not None:
            return each / whole
        rank = (whole - 1) // each
        return float(self._energies()[rank - 1]) if rank else 0.0

    def truncated(self, rank: int) -> Factors:
        """Return the factors of a rank, each with the root of the singular values."""
        roots_R = self.values_K[:rank].sqrt()
        down_RD = roots_R[:, None] * self.right_KD[:rank]
        if self.root_DD is not None:
            down_RD = torch.linalg.solve_triangular(self.root_DD, down_RD, upper=False, left=False)
        return Factors(up_MR=self.left_MK[:, :rank] * roots_R, down_RD=down_RD, kept=float(self._energies()[rank - 1]))

    def _energies(self) -> torch.Tensor:
        """Return the share of the squared singular values that each rank keeps."""
        squares_K = self.values_K.square()
        total = squares_K.sum()
        return squares_K.cumsum(0) / total if total > 0 else torch.ones_like(squares_K)


def _embeddings(model: PreTrainedModel) -> tuple[str, nn.Embedding]:
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(table, nn.Embedding):
        raise ConfigurationError(f"the embeddings of a {type(model).__name__} are no plain table; leave embeddings out")
    if head is not None and head.weight is table.weight:
        raise ConfigurationError(
            f"the embeddings of this {type(model).__name__} are its output head's weights, too; leave embeddings out"
        )
    return next(name for name, module in model.named_modules() if module is table), table


def _input_moments(
    model: PreTrainedModel, linears: Mapping[str, nn.Linear], documents: Sequence[Sequence[int]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the second moment X^T X of the inputs of each layer, over all tokens of the documents."""
    documents = [ids for ids in documents if len(ids)]
    if not documents:
        raise ConfigurationError("low-rank factors need documents to measure inputs on; check the data section")
    waiting = list(linears)
    while waiting:
        held = 0
        group: list[str] = []
        while waiting and (not group or held + 8 * linears[waiting[0]].in_features ** 2 <= MOMENT_BYTES):
            held += 8 * linears[waiting[0]].in_features ** 2
            group.append(waiting.pop(0))
        moments = _measure(model, {name: linears[name] for name in group}, documents)
        while group:
            name = group.pop(0)
            yield name, moments.pop(name)


def _measure(
    model: PreTrainedModel, linears: Mapping[str, nn.Linear], documents: Sequence[Sequence[int]]
) -> dict[str, torch.Tensor]:
    moments = {
        name: torch.zeros(linear.in_features, linear.in_features, dtype=torch.float64)
        for name, linear in linears.items()
    }

    # Layers side by side, such as queries, keys and values, are given the same tensor: its square is computed once.
    last: list[Any] = [None, None]

    def add(name: str, states: torch.Tensor) -> None:
        if last[0] is not states:
            # On the CPU: not every accelerator has float64.
            states_TI = states.detach().flatten(0, -2).cpu().double()
            last[:] = states, states_TI.T @ states_TI
        moments[name] += last[1]

    handles = [
        linear.register_forward_pre_hook(lambda _module, args, name=name: add(name, args[0]))
        for name, linear in linears.items()
    ]
    try:
        model.eval()
        with torch.no_grad():
            for ids in documents:
                model.base_model(input_ids=torch.tensor([list(ids)], device=model.device))
    finally:
        for handle in handles:
            handle.remove()
    return moments


def _install(model: PreTrainedModel, chosen: Mapping[str, Factors]) -> None:
    """Put the factors in the place of the modules that they come from."""
    whole = {name: model.get_submodule(name) for name in chosen}
    install_factors(model, {name: len(factors.down_RD) for name, factors in chosen.items()})
    with torch.no_grad():
        for name, factors in chosen.items():
            module = model.get_submodule(name)
            if isinstance(module, FactoredEmbedding):
                module.codes.weight.copy_(factors.down_RD.T)
            else:
                assert isinstance(module, FactoredLinear)
                module.down.weight.copy_(factors.down_RD)
                if module.up.bias is not None:
                    module.up.bias.copy_(whole[name].bias)
            module.up.weight.copy_(factors.up_MR)
