"""Tokens go that the training set doesn't need."""

from collections import Counter
from dataclasses import dataclass, replace

from stillhouse.compression.base import Calibration, Cut, Operation, Subject
from stillhouse.recipe.compression import VocabularyStep
from stillhouse.student.vocabulary import check_same_tokens, trim_vocabulary


@dataclass(frozen=True)
class VocabularyTrimming(Operation):
    """A smaller vocabulary; see `stillhouse.student.trim_vocabulary`."""

    step: VocabularyStep

    def cut(self, subject: Subject, calibration: Calibration, *, turn: int, rounds: int) -> Cut:
        """Cut embeddings, output head and tokenizer alike.

        Every training document is written out and read again by both tokenizers: where all its tokens are kept, it must
        become the same ones.

        Raises:
            ConfigurationError: The tokenizer can't be trimmed, the size does not fit it, every token occurs in the
                training set, or a document of kept tokens became other ones.
        """
        tokenizer = subject.tokenizer
        model, small = trim_vocabulary(subject.model, tokenizer, calibration.ids, self.step.size)
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in calibration.ids]
        compared = check_same_tokens(tokenizer, small, texts)
        counts = Counter(token for ids in calibration.ids for token in ids)
        names = tokenizer.convert_ids_to_tokens(list(counts))
        kept = small.get_vocab().keys()
        stay = sum(count for name, count in zip(names, counts.values(), strict=True) if name in kept)
        did = (
            f"{len(small)} of {len(tokenizer)} tokens stay, {stay / max(counts.total(), 1):.2%} of those in the "
            f"training set; {compared} of {len(texts)} documents have kept tokens only, and become the same ones"
        )
        return Cut(subject=replace(subject, model=model, tokenizer=small), did=did)
