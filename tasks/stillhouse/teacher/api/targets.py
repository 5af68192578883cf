"""What a server said about the tokens of its answers, as targets of the student's training ("grey-box").

A server reports a few alternatives for each token of an answer, by their words, with true probabilities: a cache of
method ``top-k``. They serve a student whose tokenizer cuts the answers into the same tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase as Tokenizer

from stillhouse.contract import ConfigurationError
from stillhouse.models import Document
from stillhouse.models.answers import TokenChoices
from stillhouse.teacher.manifest import CacheIdentity, CacheManifest
from stillhouse.teacher.sampling import Records
from stillhouse.teacher.scoring import ScoredDocument
from stillhouse.teacher.sparse import write_sparse_cache

LEAST_AGREEMENT = 0.9
"""Share of the answers' tokens that teacher and student must have in common."""


def write_server_cache(
    folder: Path,
    documents: Sequence[Document],
    choices: Mapping[str, Sequence[TokenChoices]],
    tokenizer: Tokenizer,
    *,
    identity: CacheIdentity,
) -> CacheManifest:
    """Write the cache of a training set, in one shard.

    A position has a distribution as long as teacher and student have had the same tokens since the answer's start. The
    others, and the end of an answer, of which servers say nothing, have none: only the text itself is learned there.

    Args:
        folder: Created if need be.
        documents: Of the training set, in the student's tokens.
        choices: What the server said, by document id. Documents without an entry have no distributions.
        tokenizer: The student's.
        identity: See `stillhouse.teacher.server_cache_identity`.

    Raises:
        ConfigurationError: The student cuts the answers into other tokens than the teacher.
        OSError: The folder can't be written.
    """
    vocabulary = _Vocabulary.of(tokenizer, identity)
    agreed = sum(vocabulary.agreement(d, choices[d.id]) for d in documents if d.id in choices)
    # The end of an answer is a token of the student's alone.
    tokens = sum(len(document.targets_P) - 1 for document in documents if document.id in choices)
    if agreed < LEAST_AGREEMENT * max(tokens, 1):
        raise ConfigurationError(
            f"the student's tokenizer agrees with the teacher's on {agreed / max(tokens, 1):.0%} of the tokens of the "
            "answers; take a student of the teacher's family, or set distillation.alpha to 1 and top_logprobs to 0"
        )

    def scored() -> Iterator[ScoredDocument]:
        for document in documents:
            records = vocabulary.records(document, choices.get(document.id, ()))
            yield ScoredDocument(document=document, records=records, hidden_LD=None)

    return write_sparse_cache(folder, scored(), identity=identity, shard=0, num_shards=1)


@dataclass(frozen=True, kw_only=True)
class _Vocabulary:
    """The student's tokens by their words."""

    words: Sequence[str]
    """Of each token id."""
    ids: Mapping[str, int]
    """The token id of words that only one token has."""
    most: int
    """Alternatives of a position."""

    @classmethod
    def of(cls, tokenizer: Tokenizer, identity: CacheIdentity) -> "_Vocabulary":
        size, most = identity.vocabulary_size or 0, identity.samples or 0
        words = tokenizer.batch_decode(
            [[token] for token in range(size)], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        ids: dict[str, int] = {}
        twice = set()
        for token, word in enumerate(words):
            if ids.setdefault(word, token) != token:
                twice.add(word)  # parts of characters are all written alike
        return cls(words=words, ids={w: i for w, i in ids.items() if w not in twice}, most=most)

    def agreement(self, document: Document, choices: Sequence[TokenChoices]) -> int:
        """Return how many tokens teacher and student have in common from the answer's start."""
        return len(self._common(document, choices))

    def _common(self, document: Document, choices: Sequence[TokenChoices]) -> list[TokenChoices]:
        """Return the common tokens. White space before an answer was taken off when it became a text of the set."""
        start = next((place for place, choice in enumerate(choices) if choice.token.strip()), len(choices))
        common: list[TokenChoices] = []
        for label, choice in zip(document.labels_L[document.targets_P], choices[start:], strict=False):
            word, token = self.words[label], choice.token
            if word != token and (common or word.lstrip() != token.lstrip()):
                break
            # A token that lost its space was one among others with a space.
            common.append(choice if word == token else TokenChoices(token=token, alternatives={}))
        return common

    def records(self, document: Document, choices: Sequence[TokenChoices]) -> Records:
        """Return the distributions at the document's P target positions, empty where there is none."""
        found = [self._known(choice) for choice in self._common(document, choices)]
        found += [{}] * (len(document.targets_P) - len(found))
        return Records(
            offsets_S=np.cumsum([0, *map(len, found)], dtype=np.int64),
            ids_K=np.asarray([token for one in found for token in sorted(one)], dtype=np.int64),
            values_K=np.asarray([one[token] for one in found for token in sorted(one)], dtype=np.float16),
        )

    def _known(self, choice: TokenChoices) -> dict[int, np.float16]:
        """Return the probabilities of the alternatives that the student has a token for; the rest is missing mass."""
        likely = sorted(choice.alternatives.items(), key=lambda pair: -pair[1])[: self.most]
        found = {self.ids[word]: np.float16(np.exp(value)) for word, value in likely if word in self.ids}
        return {token: value for token, value in found.items() if value > 0}
