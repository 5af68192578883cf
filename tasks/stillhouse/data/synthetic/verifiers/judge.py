"""Right by the teacher's own word."""

from stillhouse.models.answers import Answer
from stillhouse.recipe.synthesis import JudgeVerifier

LAYOUT = " \t\r\n*_\"'`#>-"
"""What chat models put in front of a first word."""


class JudgedByTeacher:
    """Reads the judgement that the teacher wrote about the answer."""

    def __init__(self, config: JudgeVerifier) -> None:
        self._accept = config.accept.casefold()

    def accepts(self, answer: Answer, reference: str) -> bool:
        """See `AnswerVerifier`: the judgement begins with the accepting word. Without a judgement it is wrong."""
        reply = (answer.review or "").lstrip(LAYOUT).casefold()
        rest = reply.removeprefix(self._accept)
        return rest != reply and not rest[:1].isalnum()
