"""Whether an answer is right: one class for each way to tell."""

from stillhouse.data.synthetic.verifiers.base import AnswerVerifier, open_verifier

__all__ = ["AnswerVerifier", "open_verifier"]
