"""Tasks whose answers repeat what was said, and questions whose answers do not; each seed gives others of the same kinds."""

from __future__ import annotations

import random
from collections.abc import Mapping

REPEATING = ("copy", "edit", "code", "extract")
"""Names of the tasks whose answers repeat much of the prompt."""

_SENTENCES = (
    "The mill stood at the end of the valley, where the river narrowed between two walls of grey stone.",
    "In spring the water came down brown and fast, and the miller opened the upper gate only by a hand's breadth.",
    "The children of the village bathed in the pond below it until the first cold nights of September.",
    "Nobody remembered who had built the first wheel, but the oldest beam carried the year 1687.",
    "The road to the town was closed for three weeks after the bridge had been carried away.",
    "His daughter kept a book in which she wrote down each sack of flour and the name of its owner.",
    "On Sundays the wheel was stopped, and one could hear the bells of the church across the fields.",
    "When the new railway came, most farmers sent their grain to the large mills in the city.",
    "A painter from the coast stayed for one summer and left two pictures of the weir behind.",
    "The last miller sold the stones to a museum and planted an orchard where the barn had been.",
)
_TASKS = (
    "sweep the yard", "oil the gate", "count the sacks", "feed the horses", "mend the roof", "clean the weir", "write to the baker",
    "buy new ropes", "grease the axle", "carry the flour", "close the sluice", "sharpen the stones",
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
    text = " ".join(rng.sample(_SENTENCES, 4))
    word = max(text.split()[10:40], key=len).strip(".,;:")
    tasks = "\n".join(f"{number}. {task.capitalize()}." for number, task in enumerate(rng.sample(_TASKS, 9), 1))
    return {
        "copy": f"Repeat the following text exactly, word for word, and write nothing else:\n\n{text}",
        "edit": f"Write this text again, with '{word}' replaced by 'water', and change nothing else:\n\n{text}",
        "code": f"Here is a class:\n\n```python\n{_code(rng)}```\n\nWrite the whole class again and add a docstring to it.",
        "extract": f"Repeat this list exactly as it is:\n\n{tasks}",
        "chat": _QUESTIONS[seed % len(_QUESTIONS)],
    }


def _code(rng: random.Random) -> str:
    name, (one, other), (plus, times) = rng.choice(_CLASSES), rng.choice(_FIELDS), rng.choice(_VERBS)
    return (
        f"class {name}:\n    def __init__(self, {one}, {other}):\n        self.{one} = {one}\n        self.{other} = {other}\n\n"
        f"    def {plus}(self, other):\n        return {name}(self.{one} + other.{one}, self.{other} + other.{other})\n\n"
        f"    def {times}(self, factor):\n        return {name}(self.{one} * factor, self.{other} * factor)\n"
    )
