"""The student writes, so that the teacher can judge what the student really does (GKD, Agarwal et al. 2024)."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from stillhouse.models import Document
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
        self._end = tokenizer.eos_token_id
        self._pad = tokenizer.pad_token_id
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
        width = max(map(len, prompts))
        ids_BT = torch.full((len(prompts), width), self._pad, dtype=torch.int64)
        mask_BT = torch.zeros((len(prompts), width), dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            # Padding goes to the left: the student continues at the right end.
            ids_BT[row, width - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
            mask_BT[row, width - len(prompt) :] = 1
        was_training = self._student.training
        self._student.eval()
        with torch.no_grad():
            written_BT = self._student.generate(
                input_ids=ids_BT.to(self._student.device),
                attention_mask=mask_BT.to(self._student.device),
                do_sample=True,
                temperature=self._config.temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=self._config.new_tokens,
                eos_token_id=self._end,
                pad_token_id=self._pad,
            )[:, width:].cpu()
        self._student.train(was_training)
        return [
            self._document(document.id, prompt, row.numpy())
            for document, prompt, row in zip(documents, prompts, written_BT, strict=True)
        ]

    def _prompt(self, document: Document) -> np.ndarray:
        first = int(document.targets_P[0])
        return document.ids_L[: first + 1] if first > 0 else document.ids_L[: self._config.prompt_tokens]

    def _document(self, name: str, prompt: np.ndarray, written: np.ndarray) -> Document:
        ends = np.flatnonzero(written == self._end)
        kept = written[: int(ends[0]) + 1] if len(ends) else written
        ids_L = np.concatenate([prompt, kept]).astype(np.int32)
        labels_L = np.append(ids_L[1:], IGNORED).astype(np.int32)
        labels_L[: len(prompt) - 1] = IGNORED
        return Document(id=name, ids_L=ids_L, labels_L=labels_L)
