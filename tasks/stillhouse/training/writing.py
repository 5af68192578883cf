"""The student writes, so that the teacher can judge what the student really does (GKD, Agarwal et al. 2024)."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from stillhouse.models import Document, continue_prompts, prompt_tokens
from stillhouse.models.documents import IGNORED
from stillhouse.recipe import OnPolicyConfig


class Writer:
    """Lets a student continue the beginnings of documents.

    Args:
        student: A causal language model.
        tokenizer: The student's.
        config: How much it writes, and how boldly.
        seed: Of which steps the student writes in.
    """

    def __init__(self, student: PreTrainedModel, tokenizer: Tokenizer, config: OnPolicyConfig, *, seed: int) -> None:
        self._student = student
        self._tokenizer = tokenizer
        self._config = config
        self._seed = seed

    def writes_in(self, step: int) -> bool:
        """Tell whether the student writes the texts of a step: the same in every process."""
        return bool(np.random.default_rng([self._seed, step]).random() < self._config.share)

    def write(self, documents: Sequence[Document]) -> list[Document]:
        """Return the documents' prompts with what the student makes of them; only that carries loss.

        A document's prompt is what carries no loss, or, if all of it does, its first ``prompt_tokens``. Texts of one
        call are generated together, at most ``new_tokens`` each.
        """
        prompts = [self._prompt(document) for document in documents]
        written = continue_prompts(
            self._student,
            self._tokenizer,
            prompts,
            max_new_tokens=self._config.new_tokens,
            # From PyTorch's generator, whose state a checkpoint holds.
            draws_RS=torch.rand(len(prompts), self._config.new_tokens, dtype=torch.float64).numpy(),
            temperature=self._config.temperature,
        )
        return [
            _document(document.id, prompt, answer)
            for document, prompt, answer in zip(documents, prompts, written, strict=True)
        ]

    def _prompt(self, document: Document) -> np.ndarray:
        if int(document.targets_P[0]) > 0:
            return prompt_tokens(document)
        return document.ids_L[: self._config.prompt_tokens]


def _document(name: str, prompt: np.ndarray, written: np.ndarray) -> Document:
    ids_L = np.concatenate([prompt, written]).astype(np.int32)
    labels_L = np.append(ids_L[1:], IGNORED).astype(np.int32)
    labels_L[: len(prompt) - 1] = IGNORED
    return Document(id=name, ids_L=ids_L, labels_L=labels_L)
