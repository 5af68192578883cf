"""What a teacher makes of whole texts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from stillhouse.models import encode, head_states, length_buckets, load_model, load_tokenizer, pad_batch
from stillhouse.recipe import Precision


class TeacherEmbedding:
    """The mean of a language model's last hidden states over the tokens of a text."""

    def __init__(self, folder: Path, *, batch_size: int, max_tokens: int, precision: Precision = "float32") -> None:
        """Name the model; it is loaded when it is first asked.

        Args:
            folder: Of the teacher, a causal language model.
            batch_size: Texts per forward pass.
            max_tokens: Longer texts are cut.
            precision: Of the weights.
        """
        self._folder = folder
        self._batch_size = batch_size
        self._max_tokens = max_tokens
        self._precision = precision

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the embeddings (N, D) of N texts, each of which has a token.

        Raises:
            ConfigurationError: The folder is unfit or the model has no linear head.
        """
        tokenizer = load_tokenizer(self._folder)
        model = load_model(self._folder, task="causal-lm", precision=self._precision)
        ids = encode(tokenizer, texts, self._max_tokens).ids
        states_ND = np.empty((len(texts), model.config.get_text_config().hidden_size), dtype=np.float32)
        with torch.inference_mode():
            for batch in length_buckets([len(row) for row in ids], self._batch_size):
                ids_BT, mask_BT = pad_batch([ids[row] for row in batch], tokenizer.pad_token_id or 0)
                ids_BT, mask_BT = ids_BT.to(model.device), mask_BT.to(model.device)
                hidden_BTD = head_states(model, input_ids=ids_BT, attention_mask=mask_BT).float()
                sums_BD = (hidden_BTD * mask_BT[..., None]).sum(dim=1)
                states_ND[batch] = (sums_BD / mask_BT.sum(dim=1, keepdim=True)).cpu().numpy()
        return states_ND
