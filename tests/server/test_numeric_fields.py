"""Every numeric field of every body with every kind of hostile number: 400 naming the field, unless the value is valid."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
from conftest import Running

from headrace.server.protocol.decode import _alternatives
from headrace.server.routes import ENDPOINTS

pytestmark = pytest.mark.server
BASE: dict[str, dict[str, Any]] = {
    "/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/completions": {"prompt": "hi"},
    "/embeddings": {"input": "hi"},
    "/rerank": {"query": "hi", "documents": ["hi"]},
    "/v2/rerank": {"query": "hi", "documents": ["hi"]},
    "/score": {"text_1": "hi", "text_2": "hi"},
    "/chat/completions/render": {"messages": [{"role": "user", "content": "hi"}]},
    "/completions/render": {"prompt": "hi"},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [1]},
    "/messages": {"model": "echo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
    "/responses": {"model": "echo", "input": "hi", "max_output_tokens": 2},
    "/responses/input_tokens": {"model": "echo", "input": "hi"},
    "/fine_tuning/jobs": {"model": "echo", "training_file": "file-none"},
    "/models/load": {"model": "echo"},
    "/load_lora_adapter": {"lora_name": "x", "lora_path": "x"},
    "/unload_lora_adapter": {"lora_name": "x"},
}
# What a call with good numbers gets from a server without adapters.
WITHOUT = {"/fine_tuning/jobs": 404, "/load_lora_adapter": 403, "/unload_lora_adapter": 404}
GENERATES = ("/chat/completions", "/completions", "/chat/completions/render", "/completions/render")
# What a number needs beside it to be looked at alone.
COMPANIONS: dict[str, dict[str, Any]] = {"top_logprobs": {"logprobs": True}, "best_of": {"n": None}}


def numeric_fields() -> Iterator[tuple[str, str, type, Any]]:
    """(path, field, int or float, its Meta) for each numeric field of each body."""
    for endpoint in ENDPOINTS:
        if endpoint.body is None:
            continue
        hints = typing.get_type_hints(endpoint.body, include_extras=True)
        for name, hint in hints.items():
            for option in typing.get_args(hint) or (hint,):
                if typing.get_origin(option) is typing.Annotated and _alternatives(option)[0] in (int, float):
                    yield endpoint.path, name, _alternatives(option)[0], option.__metadata__[0]


FIELDS = list(numeric_fields())


def hostile(kind: type, meta: msgspec.Meta) -> list[tuple[str, bool]]:
    """(JSON text, certainly refused)."""
    low = meta.ge if meta.ge is not None else meta.gt
    high = meta.le if meta.le is not None else meta.lt
    assert low is not None, "every number has a lower bound"
    assert high is not None, "every number has an upper bound"
    numbers = [-1, 0, low - 1, high + 1, 2**31, 2**63, 2**64, -(2**63) - 1]
    valid = [low <= number <= high and not (number == low and meta.gt is not None) for number in numbers]
    texts = [(json.dumps(number), not good) for number, good in zip(numbers, valid, strict=True)]
    texts += [(text, True) for text in ("1e400", "-1e400", "NaN", "Infinity", "-Infinity", "true", '"1"', '"x"', "[]", "{}")]
    texts += [("0.5", kind is int), ("null", False)]
    return texts


def test_the_table_is_not_empty() -> None:
    assert len({name for _, name, _, _ in FIELDS}) >= 17


@pytest.mark.parametrize(("path", "name", "kind", "meta"), FIELDS, ids=[f"{path}:{name}" for path, name, _, _ in FIELDS])
def test_hostile_numbers(echo: Running, path: str, name: str, kind: type, meta: Any) -> None:
    body = {**BASE[path], "max_tokens": 2, **COMPANIONS.get(name, {})} if path in GENERATES else dict(BASE[path])
    body.pop(name, None)
    if (path, name) == ("/chat/completions", "max_tokens"):
        body["max_completion_tokens"] = 2
    with httpx.Client(base_url=echo.url, trust_env=False) as http:
        for text, refused in hostile(kind, meta):
            if (path, name, text) == ("/responses", "max_output_tokens", "null"):
                continue  # as much as the context holds
            raw = json.dumps(body)[:-1] + f', "{name}": {text}}}'
            answer = http.post(path, content=raw.encode())
            if refused:
                assert answer.status_code == 400, raw
            assert answer.status_code in (WITHOUT.get(path, 200), 400), raw
            if answer.status_code == 400:
                error = answer.json()["error"]
                if path == "/messages":  # that dialect has no param
                    assert f"'{name}'" in error["message"], (raw, error)
                    continue
                assert error["param"] == name or error["code"] == "context_length_exceeded", (raw, error)


@pytest.mark.parametrize("value", ["-1", "2147483648", "1e400", "NaN", "true", '"x"', "null", "1.5"])
def test_hostile_token_ids(echo: Running, value: str) -> None:
    for path, field in (
        ("/completions", "prompt"),
        ("/embeddings", "input"),
        ("/detokenize", "tokens"),
        ("/completions", "stop_token_ids"),
    ):
        base = BASE[path] if field not in BASE[path] else {}
        raw = json.dumps(base)[:-1] + (", " if base else "") + f'"{field}": [1, {value}]}}'
        with httpx.Client(base_url=echo.url, trust_env=False) as http:
            answer = http.post(path, content=raw.encode())
        assert answer.status_code == 400, raw
        assert answer.json()["error"]["param"] in (field, f"{field}[1]"), raw
