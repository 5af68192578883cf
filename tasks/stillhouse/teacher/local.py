"""A teacher whose weights are at hand writes its answers itself."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from stillhouse.contract import canonical_json, sha256_of
from stillhouse.models import Sampling, decode_answer, end_tokens, stream_continuations
from stillhouse.models.answers import Answer, Prompt
from stillhouse.models.documents import question_tokens
from stillhouse.recipe import Sha256
from stillhouse.teacher.writer import Decoding


class LocalWriter:
    """A causal language model in this process, as a `Writer`.

    An answer depends on its prompt alone, but for a rounding in another batch that turns a close choice.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        *,
        weights_sha256: Sha256,
        decoding: Decoding,
        batch_size: int,
    ) -> None:
        """Take a model.

        Args:
            model: Causal.
            tokenizer: The model's. Prompts are put into its chat template if it has one.
            weights_sha256: Digest of the folder that model and tokenizer come from.
            decoding: How tokens are chosen.
            batch_size: Prompts at a time; memory grows with it.
        """
        self._model, self._tokenizer = model, tokenizer
        self._sha256, self._decoding, self._batch_size = weights_sha256, decoding, batch_size

    @property
    def identity(self) -> Mapping[str, Any]:
        """Weights, tokenizer and chat template by the folder's digest, the weights' type, and the decoding."""
        return {"model": self._sha256, "dtype": str(self._model.dtype), **self._decoding.identity}

    def write(self, prompts: Sequence[Prompt], *, on_answer: Callable[[Answer], None]) -> int:
        """Answer prompts, those of similar length together.

        Raises:
            ConfigurationError: The model has too few positions for a prompt and its answer.
            DataRejected: A logit is NaN or infinite.
        """
        decoding = self._decoding
        questions = [
            np.asarray(question_tokens(self._tokenizer, prompt.text, prompt.system), dtype=np.int32)
            for prompt in prompts
        ]
        ends = end_tokens(self._model, self._tokenizer)
        for index, tokens in stream_continuations(
            self._model,
            self._tokenizer,
            questions,
            keys=[_key(prompt) for prompt in prompts],
            max_new_tokens=decoding.max_new_tokens,
            sampling=None
            if decoding.temperature == 0
            else Sampling(seed=decoding.seed, temperature=decoding.temperature, top_p=decoding.top_p),
            batch_size=self._batch_size,
        ):
            on_answer(
                Answer(
                    prompt=prompts[index],
                    text=decode_answer(self._tokenizer, tokens),
                    finish="stop" if tokens[-1] in ends else "length",
                    prompt_tokens=len(questions[index]),
                    answer_tokens=len(tokens),
                )
            )
        return len(prompts)


def _key(prompt: Prompt) -> str:
    return sha256_of(canonical_json([prompt.system, prompt.text, prompt.sample]))
