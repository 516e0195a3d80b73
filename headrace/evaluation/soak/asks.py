"""A fixed set of requests of every kind, and what of their answers must be the same bits each time."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from headrace.evaluation.soak.plain_http import Reply

# What names or times an answer, and what says how it came about and not what it is.
_VOLATILE = frozenset(
    {"id", "created", "created_at", "completed_at", "usage", "system_fingerprint", "previous_response_id", "call_id", "request_id"}
)
_TALK = {"role": "user", "content": "What turns the wheel?"}
_CHOICES = {"type": "object", "properties": {"a": {"enum": [1, 2]}, "b": {"type": "boolean"}}, "required": ["a", "b"]}
_TOOL = {"type": "function", "function": {"name": "look", "parameters": _CHOICES | {"additionalProperties": False}}}
_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": _CHOICES | {"additionalProperties": False}}}


@dataclass(frozen=True, slots=True)
class Ask:
    """One request; ``kind`` is what it is counted under."""

    kind: str
    path: str
    body: dict[str, Any]

    @property
    def streamed(self) -> bool:
        """Whether its answer comes as events."""
        return bool(self.body.get("stream"))


def fixed_asks(model: str, adapters: list[str]) -> list[Ask]:
    """The set for a model and two adapters of it: every path of tokens, with numbers where the API shows any."""
    line = {
        "model": model,
        "prompt": "The water turns the wheel and",
        "max_tokens": 24,
        "temperature": 0,
        "logprobs": 2,
        "ignore_eos": True,
    }
    drawn = line | {"temperature": 0.9, "top_p": 0.9, "seed": 11}
    chat = {"model": model, "messages": [_TALK], "max_tokens": 24, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    long = line | {"prompt": [3 + 7 * place % 200 for place in range(180)], "max_tokens": 12}
    talk = {"model": model, "max_tokens": 20, "temperature": 0}
    guessed = line | {"prompt": "one two three four one two three four one two", "max_tokens": 40}
    made: list[tuple[str, str, dict[str, Any]]] = [
        ("text", "completions", line), ("text", "completions", line | {"stream": True}), ("long prompt", "completions", long),
        ("drawn", "completions", drawn), ("drawn", "completions", drawn | {"n": 3, "stream": True, "max_tokens": 10}),
        ("scored", "completions", line | {"echo": True, "max_tokens": 2}), ("stop string", "completions", line | {"stop": ["e"]}),
        ("chat", "chat/completions", chat), ("chat", "chat/completions", chat | {"stream": True, "priority": -2}),
        ("grammar", "chat/completions", chat | {"response_format": _SCHEMA}),
        ("grammar", "chat/completions", chat | {"regex": "(red|blue|green){3}", "temperature": 1.0, "seed": 5, "stream": True}),
        ("tools", "chat/completions", chat | {"tools": [_TOOL], "tool_choice": "required", "max_tokens": 60}),
        ("tools", "chat/completions", chat | {"tools": [_TOOL], "tool_choice": "required", "max_tokens": 60, "stream": True}),
        ("speculation", "completions", guessed), ("speculation", "completions", guessed | {"stream": True}),
        ("messages", "messages", talk | {"messages": [_TALK]}),
        ("messages", "messages", talk | {"messages": [_TALK], "stream": True}),
        ("responses", "responses", {"model": model, "input": "Why?", "temperature": 0, "max_output_tokens": 16, "store": False}),
        ("embeddings", "embeddings", {"model": model, "input": ["the stone", "the wheel turns the stone"]}),
        ("tokens", "tokenize", {"prompt": "the wheel turns", "return_token_strs": True}),
    ]  # fmt: skip
    for number, adapter in enumerate(adapters):
        made.append(("adapter", "completions", line | {"model": adapter, "stream": number % 2 == 1}))
    if adapters:
        both = [{"id": name, "scale": 0.5} for name in adapters]
        made.append(("adapters added up", "completions", line | {"adapters": both}))
    return [Ask(kind, f"/v1/{path}", body) for kind, path, body in made]


def essence(ask: Ask, reply: Reply) -> str | None:
    """What of an answer must never change, as text; ``None`` when it is no whole answer with status 200."""
    if reply.status != 200 or not reply.whole:
        return None
    if not ask.streamed:
        return json.dumps(_lasting(reply.json()), sort_keys=True)
    return _streamed(reply.body.decode())


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _lasting(inner) for name, inner in value.items() if name not in _VOLATILE}
    return [_lasting(inner) for inner in value] if isinstance(value, list) else value


def _streamed(text: str) -> str | None:
    """A stream joined: where it was cut into events may differ, what it says may not."""
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    ended = "data: [DONE]" in text or any(event.get("type") == "message_stop" for event in events)
    if not ended or any("error" in event or event.get("type") == "error" for event in events):
        return None
    joined: dict[str, Any] = {}
    for event in events:
        for choice in event.get("choices", ()):
            _join(joined, str(choice["index"]), {name: part for name, part in choice.items() if name != "index"})
        if "delta" in event:
            _join(joined, "message", event["delta"])
    return json.dumps(joined, sort_keys=True)


def _join(into: dict[str, Any], place: str, part: Any) -> None:
    """Add a delta to what came before: texts are put together, lists by their items, numbers and the rest as they come last."""
    if part is None:
        return
    if isinstance(part, dict):
        for name, inner in part.items():
            if name not in _VOLATILE:
                _join(into, f"{place}.{name}", inner)
    elif isinstance(part, list) and all(isinstance(inner, dict) and "index" in inner for inner in part):
        for inner in part:
            _join(into, f"{place}.{inner['index']}", inner)
    elif isinstance(part, list):
        into[place] = [*into.get(place, []), *part]
    elif isinstance(part, str) and not place.endswith((".type", ".role", "_reason", ".name")):
        into[place] = into.get(place, "") + part
    else:
        into[place] = part
