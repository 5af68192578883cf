from pathlib import Path

import numpy as np
import torch
from tiny_language import save, texts, tiny_causal, tiny_tokenizer

from stillhouse.data.synthetic.embedding import TeacherEmbedding


def test_an_embedding_is_the_mean_of_the_last_states_whatever_the_batch(tmp_path: Path) -> None:
    model, tokenizer = tiny_causal(), tiny_tokenizer()
    save(model, tokenizer, tmp_path)
    words = list(texts(12)["text"])
    found_ND = TeacherEmbedding(tmp_path, batch_size=5, max_tokens=8)(words)
    assert found_ND.shape == (12, model.config.hidden_size)
    alone_ND = TeacherEmbedding(tmp_path, batch_size=1, max_tokens=8)(words)
    np.testing.assert_allclose(found_ND, alone_ND, atol=1e-5)
    ids_BT = torch.tensor([tokenizer(words[3])["input_ids"][:8]])
    with torch.no_grad():
        expected_D = model(input_ids=ids_BT, output_hidden_states=True).hidden_states[-1][0].mean(dim=0)
    np.testing.assert_allclose(found_ND[3], expected_D.numpy(), atol=1e-5)
