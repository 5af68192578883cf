"""A model of this run as the harness knows models: texts become tokens its way, the model is run our way."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.models.utils_hf import stop_sequences_criteria
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse.contract import ConfigurationError, DataRejected, Progress
from stillhouse.models import Document, continue_prompts, likelihoods
from stillhouse.models.documents import IGNORED


class HarnessModel(HFLM):
    """A causal model for the harness.

    Likelihoods and answers are computed as everywhere else in an evaluation: no tensor of all logits of a batch, no
    probability for the head's padding, no habits from the model folder's settings of generation.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        on_progress: Callable[[Progress], None],
    ) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)
        self.truncated: set[int] = set()
        """Numbers of the items of which the model saw only the end."""
        self._on_progress = on_progress
        self._cut: list[bool] = []

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return for each request how likely the model finds the answer, in nats, and whether it would give it."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        self._remember(requests, self._cut)
        return found

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
        """Return the greedy answer to each request, up to its stop sequence.

        Raises:
            ConfigurationError: The model has no room for an answer.
        """
        rooms = [self.max_length - self._answer_tokens(options) for _, options in (r.args for r in requests)]
        if (least := min(rooms)) < 1:
            raise ConfigurationError(
                f"an answer of {self.max_length - least} tokens exceeds the model's {self.max_length} positions; "
                "lower generation_kwargs.max_gen_toks, or choose another task"
            )
        lengths = [len(self.tok_encode(request.args[0])) for request in requests]
        if not all(lengths):
            raise DataRejected("some prompts have no token; choose another task")
        self._remember(requests, [length > room for length, room in zip(lengths, rooms, strict=True)])
        found: list[str] = super().generate_until(requests, disable_tqdm=True)
        return found

    def _answer_tokens(self, options: Any) -> int:
        return int(normalize_gen_kwargs(options, self.max_gen_toks)["max_gen_toks"])

    def _remember(self, requests: Any, cut: Sequence[bool]) -> None:
        self.truncated |= {request.doc_id for request, is_cut in zip(requests, cut, strict=True) if is_cut}

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        pairs = [(context, answer) for _, context, answer in requests]
        if not all(context and answer for context, answer in pairs):
            raise DataRejected("some questions or answers have no token of their own; choose another task")
        if (longest := max(len(answer) for _, answer in pairs)) > self.max_length:
            raise ConfigurationError(
                f"an answer of {longest} tokens exceeds the model's {self.max_length} positions; choose another task"
            )
        self._cut = [len(context) + len(answer) > self.max_length + 1 for context, answer in pairs]
        found = likelihoods(
            self.model,
            self.tokenizer,
            [self._document(number, *pair) for number, pair in enumerate(pairs)],
            batch_size=self.batch_size,
            max_tokens=self.max_length,
            on_progress=self._on_progress,
        )
        sure_N = found.hits_N == found.targets_N
        return list(zip((-found.losses_N).tolist(), sure_N.tolist(), strict=True))

    def _document(self, number: int, context: list[int], answer: list[int]) -> Document:
        """Make a document whose answer carries loss; what is too long loses its beginning."""
        tokens = np.asarray([*context, *answer], dtype=np.int32)[-(self.max_length + 1) :]
        labels_L = tokens[1:].copy()
        labels_L[: len(labels_L) - len(answer)] = IGNORED
        return Document(id=str(number), ids_L=tokens[:-1], labels_L=labels_L)

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **options: Any) -> torch.Tensor:
        rows, width = context.shape
        prompts = [ids[mask.bool()].cpu() for ids, mask in zip(context, options["attention_mask"], strict=True)]
        written = continue_prompts(
            self.model,
            self.tokenizer,
            [prompt.numpy().astype(np.int32) for prompt in prompts],
            max_new_tokens=max_length - width,
            draws_RS=None,
            stopping=stop_sequences_criteria(self.tokenizer, stop, max(map(len, prompts)), rows),
        )
        # The harness cuts the prompts off again, and leaves out padding.
        answers = [torch.from_numpy(tokens.astype(np.int64)) for tokens in written]
        padded = torch.nn.utils.rnn.pad_sequence(
            answers, batch_first=True, padding_value=float(self.tokenizer.pad_token_id)
        )
        return torch.cat([context.cpu(), padded], dim=1)
