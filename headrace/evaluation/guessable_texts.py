"""Tasks whose answers repeat what was said, and questions whose answers do not; each seed gives others of the same kinds."""

from __future__ import annotations

import random
from collections.abc import Mapping

from headrace.evaluation.workload import passage

REPEATING = ("copy", "edit", "code", "extract")
"""Names of the tasks whose answers repeat much of the prompt."""

_WORDS = 60
_PEOPLE = (
    "Ada", "Grace", "Edsger", "Barbara", "Donald", "Frances", "Tony", "Alan", "Katherine", "Dennis", "Radia", "Niklaus",
    "Margaret", "Robin", "Sophie", "Leslie",
)  # fmt: skip
_CLASSES = ("Point", "Vector", "Money", "Length", "Force", "Weight", "Offset", "Speed")
_FIELDS = (("x", "y"), ("left", "top"), ("whole", "part"), ("first", "second"), ("high", "low"))
_VERBS = (("add", "scale"), ("plus", "times"), ("join", "stretch"))
_QUESTIONS = (
    "Why is the sky blue, and what changes at sunset? Explain in a few paragraphs.",
    "Tell me a short story about a lighthouse keeper who finds a letter.",
    "How should I prepare for a long walk in the mountains?",
    "What makes bread rise, and why does it matter how long the dough rests?",
    "Describe a city that was built on the back of a slow animal.",
    "How do I tell my neighbour, kindly, that the music is too loud?",
    "What did people use before there were clocks?",
    "Give me advice for the first week with a new dog.",
)


def guessable_tasks(seed: int) -> Mapping[str, str]:
    """What a user asks, by name of the task: copy, edit, code, extract and chat."""
    rng = random.Random(seed)
    text = passage(_WORDS, rng)
    word = max(text.split()[10:40], key=len).strip(".,;:")
    people = rng.sample(_PEOPLE, 7)
    addresses = "\n".join(f"{name}: {name.lower()}@example.org" for name in people)
    return {
        "copy": f"Repeat the following text exactly, word for word, and write nothing else:\n\n{text}",
        "edit": f"Write this text again, with '{word}' replaced by 'water', and change nothing else:\n\n{text}",
        "code": f"Here is a class:\n\n```python\n{_code(rng)}```\n\nWrite the whole class again and add a docstring to it.",
        "extract": f"Repeat this list exactly as it is:\n\n{addresses}",
        "chat": _QUESTIONS[seed % len(_QUESTIONS)],
    }


def _code(rng: random.Random) -> str:
    name, (one, other), (plus, times) = rng.choice(_CLASSES), rng.choice(_FIELDS), rng.choice(_VERBS)
    return (
        f"class {name}:\n    def __init__(self, {one}, {other}):\n        self.{one} = {one}\n        self.{other} = {other}\n\n"
        f"    def {plus}(self, other):\n        return {name}(self.{one} + other.{one}, self.{other} + other.{other})\n\n"
        f"    def {times}(self, factor):\n        return {name}(self.{one} * factor, self.{other} * factor)\n"
    )
