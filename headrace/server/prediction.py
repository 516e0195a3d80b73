"""What a caller expects to get, as tokens."""

from __future__ import annotations

from headrace.server.language import Language
from headrace.server.protocol.chat import Prediction


async def predicted_ids(language: Language, prediction: Prediction | None) -> list[int]:
    """Tokens of the expected answer. Raises ``context_length_exceeded`` for more than the context holds."""
    if prediction is None:
        return []
    content = prediction.content
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    language.check_length(len(text), "prediction")

    def work() -> list[int]:
        language.check_tokens([text], "prediction")
        return language.tokenizer.encode(text)

    return await language.aside(work, size=len(text))
