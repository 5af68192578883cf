"""The output head of a language model, apart from its body: whoever needs logits computes only those that it needs.

A head maps states of width D to V logits. At 49,000 ids a token's logits take 85 times the memory of its state, so
neither scoring nor training lets the model compute them for a whole batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from peft import PeftModel
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from stillhouse.contract import ConfigurationError, StageBug

PROBE_TOKENS = 4
PROBE_SIZE = 100.0
"""Largest logit of the check: large enough that a soft cap, which bends large logits only, shows."""


@dataclass(frozen=True, kw_only=True)
class OutputHead:
    """Logits are ``states @ weight_VD.T + bias_V``."""

    weight_VD: torch.Tensor
    """The model's own parameter, so gradients reach it; the embedding table where the two are tied."""
    bias_V: torch.Tensor | None


def output_head(model: PreTrainedModel) -> OutputHead:
    """Return the parameters of a language model's head.

    Raises:
        ConfigurationError: The model has no linear head.
    """
    head = _head_module(model)
    return OutputHead(weight_VD=head.weight, bias_V=head.bias)


def vocabulary_size(model: PreTrainedModel, tokenizer: Tokenizer) -> int:
    """Return the number of real token ids: rows of a head beyond the tokenizer's are padding."""
    rows: int = model.config.get_text_config().vocab_size
    return min(len(tokenizer), rows)


class HeadTap:
    """While open, records what enters a model's head and gives the head no positions to work on.

    Works below wrappers such as DDP: open it on the plain model, call the wrapper. A forward pass then returns empty
    logits, and `take` the states, through which gradients flow.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._states_BTD: torch.Tensor | None = None
        self._handle = _head_module(model).register_forward_pre_hook(self._record)

    def take(self) -> torch.Tensor:
        """Return the states_BTD of the last forward pass, once.

        Raises:
            StageBug: There was none.
        """
        if self._states_BTD is None:
            raise StageBug("no forward pass reached the model's head since its states were last taken")
        states_BTD, self._states_BTD = self._states_BTD, None
        return states_BTD

    def close(self) -> None:
        """Let the head work again."""
        self._handle.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _record(self, _module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        self._states_BTD = inputs[0]
        return (inputs[0][..., :0, :], *inputs[1:])


def head_states(model: PreTrainedModel, **inputs: Any) -> torch.Tensor:
    """Run a model's body and return what its head would be given: states_BTD, through which gradients flow.

    A decoder keeps no key-value cache: nothing is generated, and with one there is no mask between packed documents.

    Raises:
        ConfigurationError: The model has no linear head.
        StageBug: The forward pass did not reach the head.
    """
    if hasattr(model.config, "use_cache"):
        inputs["use_cache"] = False
    with HeadTap(model) as tap:
        model(**inputs)
        return tap.take()


def watch_body(model: PreTrainedModel, keep: Callable[[torch.Tensor], None]) -> RemovableHandle:
    """Hand the last states_BTD of a model's body, after a decoder's final norm, to ``keep`` at every forward pass.

    Returns:
        What ends it.
    """
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    body = plain.base_model
    assert isinstance(body, nn.Module)
    return body.register_forward_hook(lambda _module, _inputs, output: keep(output[0]))


def check_head(model: PreTrainedModel) -> None:
    """Refuse a model whose logits are not exactly what its linear head makes of the states that enter it.

    Models that scale or cap their logits afterwards would be learned from wrongly and in silence. The states of a few
    tokens are enlarged until their largest logit is `PROBE_SIZE`, and the model's own logits are compared.

    Raises:
        ConfigurationError: The model has no linear head, or changes its logits after it.
    """
    head = _head_module(model)
    seen: list[torch.Tensor] = []

    def enlarge(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        factor = PROBE_SIZE / nn.functional.linear(inputs[0], head.weight, head.bias).abs().max().clamp_min(1e-12)
        seen.append(inputs[0] * factor)
        return (seen[0], *inputs[1:])

    ids_BT = torch.arange(PROBE_TOKENS, device=head.weight.device)[None] % head.weight.shape[0]
    was_training, handle = model.training, head.register_forward_pre_hook(enlarge)
    try:
        with torch.no_grad():
            found_BTV = model.eval()(input_ids=ids_BT).logits
            expected_BTV = nn.functional.linear(seen[0], head.weight, head.bias)
    finally:
        handle.remove()
        model.train(was_training)
    # The same product twice: a few roundings apart, wherever the kernel splits it otherwise.
    tolerance = 8 * torch.finfo(expected_BTV.dtype).eps * PROBE_SIZE * 4
    if found_BTV.shape != expected_BTV.shape or (found_BTV - expected_BTV).abs().max() > tolerance:
        raise ConfigurationError(
            f"{type(model).__name__} scales or caps the logits of its head; choose a model that does not"
        )


def _head_module(model: PreTrainedModel) -> nn.Linear:
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ConfigurationError(f"{type(model).__name__} has no linear output head; choose a language model with one")
    return head
