"""Folders of random adapters for the bundled model, and requests that use them."""

from __future__ import annotations

import functools
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from conftest import Running

from headrace.models.adapter import Adapter, LowRank, module_sides, round_bf16
from headrace.models.adapter_file import write_adapter
from headrace.models.catalog import find_model, open_model
from headrace.models.config import ModelConfig

PROMPT = "The sea was calm, and the old man"


@functools.cache
def config() -> ModelConfig:
    return open_model(find_model("smollm2")).config


def random_adapter(seed: int, rank: int = 2, base: str = "HuggingFaceTB/SmolLM2-135M-Instruct") -> Adapter:
    """Numbers that change the answers."""
    generator = np.random.default_rng(seed)
    layers = []
    for sides in module_sides(config()):
        made = {}
        for name in ("q", "down"):
            a, b = (generator.standard_normal(shape, np.float32) for shape in ((rank, sides[name][0]), (sides[name][1], rank)))
            made[name] = LowRank(round_bf16(a), round_bf16(b), 0.01)
        layers.append(made)
    return Adapter(tuple(layers), base)


def put(folder: Path, seed: int, **more: Any) -> Path:
    write_adapter(folder, random_adapter(seed, **more))
    return folder


def answer(running: Running, model: str | None, **more: Any) -> tuple[str, list[float]]:
    """Text and log-probabilities of a greedy answer: equal only when the numbers are the same bits."""
    body = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0, "logprobs": 2, "ignore_eos": True, **more}
    reply = running.post("/v1/completions", body | ({"model": model} if model else {}))
    assert reply.status_code == 200, reply.text
    found = reply.json()["choices"][0]
    return found["text"], found["logprobs"]["token_logprobs"]


def refusal(running: Running, path: str, body: dict[str, Any]) -> tuple[int, str, str | None, str]:
    """Status, code, param and message."""
    reply = running.post(path, body)
    error = reply.json().get("error")
    assert error, reply.text
    return reply.status_code, error["code"], error["param"], error["message"]


def load(running: Running, name: str, path: str, **more: Any) -> dict[str, Any]:
    reply = running.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path, **more})
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def unload(running: Running, name: str) -> dict[str, Any]:
    reply = running.post("/v1/unload_lora_adapter", {"lora_name": name})
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def edit(folder: Path, **fields: object) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def broken_wrong_base(root: Path) -> None:
    made = random_adapter(1)
    write_adapter(root / "bad", Adapter(made.layers * 2, "somebody/larger"))


def broken_wrong_shapes(root: Path) -> None:
    edit(put(root / "bad", 1), r=3)


def broken_nan(root: Path) -> None:
    file = put(root / "bad", 1) / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-2:] = b"\xc0\x7f"
    file.write_bytes(data)


def broken_truncated(root: Path) -> None:
    file = put(root / "bad", 1) / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def broken_too_large(root: Path) -> None:
    """Rank 2,048 on two modules: 400 MB beside a pool of 256, in a file that takes no room."""
    header, end, rank = {}, 0, 2048
    for layer, sides in enumerate(module_sides(config())):
        for name, key in (("q", "self_attn.q_proj"), ("down", "mlp.down_proj")):
            for side, shape in (("A", [rank, sides[name][0]]), ("B", [sides[name][1], rank])):
                size = 2 * shape[0] * shape[1]
                tensor = f"base_model.model.model.layers.{layer}.{key}.lora_{side}.weight"
                header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
                end += size
    edit(put(root / "bad", 1), r=rank)
    text = json.dumps(header).encode()
    file = root / "bad" / "adapter_model.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(file, 8 + len(text) + end)


def broken_empty(root: Path) -> None:
    (root / "bad").mkdir()
