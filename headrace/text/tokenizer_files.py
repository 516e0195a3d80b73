"""A tokenizer from a model folder: ``tokenizer.json`` with ``tokenizer_config.json`` and their companions."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from headrace.errors import HeadraceError
from headrace.text.encoder import LibraryEncoder
from headrace.text.marking import SpecialToken
from headrace.text.tokenizer import MAX_TOKENS, Tokenizer, TokenizerParts

MAX_FILE_BYTES = 256 * 1024 * 1024


def tokenizer_from_folder(folder: Path) -> Tokenizer:
    """Build the tokenizer of a model folder.

    Reads ``tokenizer.json`` (BPE only) and, where they exist, ``tokenizer_config.json``, ``special_tokens_map.json``,
    ``generation_config.json`` (end-of-sequence ids) and ``chat_template.jinja``.
    Errors: ``HeadraceError("model_file")`` for missing, damaged or unsupported files.
    """
    text = _read(folder / "tokenizer.json")
    if text is None:
        raise HeadraceError("model_file", "the model folder has no tokenizer.json")
    description = _parse(text, "tokenizer.json")
    config = {**_object(folder / "special_tokens_map.json"), **_object(folder / "tokenizer_config.json")}
    model = description.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise HeadraceError("model_file", "tokenizer.json has a model of a kind other than BPE")
    fast = _load(text)
    named = _Named(_named_id(config, "bos_token", fast), _eos_ids(folder, config, fast))
    if _make_special(description, {fast.id_to_token(index) for index in named.ids}):
        fast = _load(json.dumps(description))
    return Tokenizer(_parts(description, fast, named, _chat_template(folder, config)))


@dataclass(frozen=True, slots=True)
class _Named:
    """Tokens with a meaning."""

    bos_id: int | None
    eos_ids: tuple[int, ...]

    @property
    def ids(self) -> frozenset[int]:
        return frozenset(self.eos_ids if self.bos_id is None else (*self.eos_ids, self.bos_id))


def _load(text: str) -> FastTokenizer:
    try:
        fast = FastTokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise HeadraceError("model_file", "tokenizer.json can't be read as a tokenizer") from error
    if max(fast.get_vocab(with_added_tokens=True).values(), default=0) >= MAX_TOKENS:
        raise HeadraceError("model_file", f"tokenizer.json has token ids of {MAX_TOKENS} or more")
    return fast


def _make_special(description: Mapping[str, Any], texts: Collection[str | None]) -> bool:
    """Mark added tokens of these texts as special, for files that forget to; true when there were such."""
    entries = description.get("added_tokens") or ()
    forgotten = [entry for entry in entries if entry["content"] in texts and not entry.get("special")]
    for entry in forgotten:
        entry["special"] = True
    return bool(forgotten)


def _parts(description: Mapping[str, Any], fast: FastTokenizer, named: _Named, chat_template: str | None) -> TokenizerParts:
    # The ids that a file gives added tokens are not believed: the library may have given others.
    entries = description.get("added_tokens") or ()
    added = [(index, entry) for entry in entries if (index := fast.token_to_id(entry["content"])) is not None]
    special = {index: entry for index, entry in added if entry.get("special")}
    byte_level = "ByteLevel" in _kinds(description.get("decoder"))
    scheme = _prefix_scheme(description)
    vocab = fast.get_vocab(with_added_tokens=True)
    around = fast.encode("", add_special_tokens=True).ids
    add_bos = named.bos_id is not None and around[:1] == [named.bos_id]
    tokens: list[str | None] = [None] * (max(vocab.values(), default=-1) + 1)
    for token, index in vocab.items():
        tokens[index] = token
    byte_pieces = frozenset(index for index, token in enumerate(tokens) if token and not byte_level and _is_byte(token))
    return TokenizerParts(
        encoder=LibraryEncoder(fast),
        tokens=tokens,
        specials=tuple(
            SpecialToken(tokens[index] or "", index, *(bool(special.get(index, {}).get(side)) for side in ("lstrip", "rstrip")))
            for index in sorted(named.ids.union(special))
        ),
        literals=frozenset(index for index, entry in added if not entry.get("special")),
        byte_level=byte_level,
        byte_pieces=byte_pieces,
        bos_id=named.bos_id,
        eos_ids=named.eos_ids,
        add_bos=add_bos,
        end_id=around[-1] if len(around) > add_bos and around[-1] in named.ids.union(special) else None,
        add_space_prefix=scheme != "never",
        inner_encoder=LibraryEncoder(_without_prefix(description)) if scheme == "first" else None,
        chat_template=chat_template,
    )


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _kinds(step: Any) -> set[str]:
    """The kinds of a step of tokenizer.json and of the steps inside it."""
    if isinstance(step, dict):
        inner = [value for value in step.values() if isinstance(value, dict | list)]
        return {str(step.get("type"))}.union(*map(_kinds, inner))
    return set().union(*map(_kinds, step)) if isinstance(step, list) else set()


def _prefix_scheme(description: Mapping[str, Any]) -> str:
    """Whether a space is put before text: ``never``, before the ``first`` piece only, or ``always`` (each piece)."""
    if "Prepend" in _kinds(description.get("normalizer")):
        return "always"
    metaspace = _find(description.get("pre_tokenizer"), "Metaspace")
    return str(metaspace.get("prepend_scheme", "always")) if metaspace else "never"


def _find(step: Any, kind: str) -> dict[str, Any] | None:
    if isinstance(step, dict):
        if step.get("type") == kind:
            return step
        step = list(step.values())
    if isinstance(step, list):
        return next((found for entry in step if (found := _find(entry, kind))), None)
    return None


def _without_prefix(description: Mapping[str, Any]) -> FastTokenizer:
    """The same tokenizer for pieces behind a special token, where scheme ``first`` puts no space."""
    copy = json.loads(json.dumps(description))
    metaspace = _find(copy.get("pre_tokenizer"), "Metaspace")
    if metaspace is not None:
        metaspace["prepend_scheme"] = "never"
    return FastTokenizer.from_str(json.dumps(copy))


def _named_id(config: Mapping[str, Any], name: str, fast: FastTokenizer) -> int | None:
    value = config.get(name)
    text = value.get("content") if isinstance(value, dict) else value
    return fast.token_to_id(text) if isinstance(text, str) else None


def _eos_ids(folder: Path, config: Mapping[str, Any], fast: FastTokenizer) -> tuple[int, ...]:
    listed = _object(folder / "generation_config.json").get("eos_token_id")
    ids = [] if listed is None else listed if isinstance(listed, list) else [listed]
    for index in ids:
        if type(index) is not int or not 0 <= index < MAX_TOKENS or fast.id_to_token(index) is None:
            raise HeadraceError("model_file", "generation_config.json: eos_token_id must hold ids of the vocabulary")
    own = _named_id(config, "eos_token", fast)
    return tuple(dict.fromkeys(ids if own is None else [own, *ids]))


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    separate = _read(folder / "chat_template.jinja")
    if separate is not None:
        return separate
    value = config.get("chat_template")
    if isinstance(value, list):  # several named ones: the default is the one that is meant
        value = next((entry.get("template") for entry in value if isinstance(entry, dict) and entry.get("name") == "default"), None)
    return value if isinstance(value, str) else None


def _read(path: Path) -> str | None:
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_FILE_BYTES:
        raise HeadraceError("model_file", f"{path.name} is larger than {MAX_FILE_BYTES} bytes")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise HeadraceError("model_file", f"{path.name} is not UTF-8") from error


def _object(path: Path) -> dict[str, Any]:
    text = _read(path)
    return {} if text is None else _parse(text, path.name)


def _parse(text: str, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HeadraceError("model_file", f"{name} is not valid JSON") from error
    if not isinstance(value, dict):
        raise HeadraceError("model_file", f"{name} is not a JSON object")
    return value
