"""A tokenizer from the metadata of a GGUF file: byte-level BPE (``gpt2``) or SentencePiece BPE (``llama``)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import BPE

from headrace.errors import HeadraceError
from headrace.settings.nearest import suggestion
from headrace.text.encoder import LibraryEncoder
from headrace.text.marking import SpecialToken
from headrace.text.merges import merges_from_scores
from headrace.text.tokenizer import MAX_TOKENS, SPACE_MARK, Tokenizer, TokenizerParts, first_ids

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6

_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True)
class _Splitting:
    """How a byte-level family cuts text before merging. ``pattern`` ``None``: GPT-2's own, built into ByteLevel."""

    pattern: str | None = None
    digits_apart: bool = False
    nfc: bool = False
    ignore_merges: bool = False


_GPT2 = _Splitting()
_DIGITS = _Splitting(digits_apart=True)
_SPLITTINGS: dict[str, _Splitting] = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "olmo": _GPT2,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "command-r": _DIGITS,
    "llama-bpe": _Splitting(_LLAMA3, ignore_merges=True),
    "llama3": _Splitting(_LLAMA3, ignore_merges=True),
    "llama-v3": _Splitting(_LLAMA3, ignore_merges=True),
    "qwen2": _Splitting(_QWEN2, nfc=True),
    "deepseek-r1-qwen": _Splitting(_QWEN2, nfc=True),
    "tekken": _Splitting(_TEKKEN, ignore_merges=True),
}
# User-defined pieces that stand for an image or the like: text that spells them must stay text.
_PLACEHOLDERS = frozenset({"[multimodal]", "<start_of_image>", "<end_of_image>", "<image_soft_token>", "<image>", "<audio>"})
# Ends of a turn: a model may stop with any of them, whatever single id the file names.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>")


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """The checked vocabulary lists of a file."""

    tokens: list[str]
    types: Sequence[int]
    ids: dict[str, int]

    def of_type(self, *wanted: int) -> list[int]:
        return [index for index, kind in enumerate(self.types) if kind in wanted]


def tokenizer_from_gguf(metadata: Mapping[str, Any], *, cache: Path | None = None) -> Tokenizer:
    """Build the tokenizer that a GGUF file describes.

    ``metadata``: the file's key-value pairs. ``cache``: folder where derived merges are kept (SentencePiece only;
    ``None``: derive them anew). Errors: ``HeadraceError("model_file")`` for missing, lying or unknown metadata.
    """
    model = _expect(metadata, "tokenizer.ggml.model", str)
    vocabulary = _read_vocabulary(metadata)
    if model == "gpt2":
        fast, byte_level = _byte_level(metadata, vocabulary), True
    elif model == "llama":
        fast, byte_level = _sentence_piece(metadata, vocabulary, cache), False
    else:
        known = ("gpt2", "llama")
        raise HeadraceError("model_file", f"tokenizer model '{model}' is not one of {', '.join(known)}{suggestion(model, known)}")
    return Tokenizer(_parts(metadata, vocabulary, fast, byte_level=byte_level))


def _parts(metadata: Mapping[str, Any], vocabulary: _Vocabulary, fast: FastTokenizer, *, byte_level: bool) -> TokenizerParts:
    named = _named_ids(metadata, vocabulary)
    literals: list[int] = []
    specials: list[int] = []
    for index in sorted({*vocabulary.of_type(_UNKNOWN, _CONTROL, _USER_DEFINED), *named}):
        text = vocabulary.tokens[index]
        plain = vocabulary.types[index] == _USER_DEFINED and text not in _PLACEHOLDERS and index not in named
        (literals if plain else specials).append(index)
    texts = {index: vocabulary.tokens[index].replace(SPACE_MARK, " ") for index in literals}
    # The special ones are not told to the library at all: nothing that it encodes can become one.
    fast.add_tokens([AddedToken(texts[index], special=False, normalized=False) for index in literals])
    template = metadata.get("tokenizer.chat_template")
    default_prefix = not byte_level
    return TokenizerParts(
        encoder=LibraryEncoder(fast),
        tokens=vocabulary.tokens,
        specials=tuple(SpecialToken(vocabulary.tokens[index], index) for index in specials),
        literals=frozenset(literals),
        byte_level=byte_level,
        space_mark_is_space=not byte_level,
        byte_pieces=frozenset(vocabulary.of_type(_BYTE)),
        bos_id=_token_id(metadata, "bos", vocabulary),
        eos_ids=_eos_ids(metadata, vocabulary),
        add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", default_prefix)),
        end_id=_token_id(metadata, "eos", vocabulary) if metadata.get("tokenizer.ggml.add_eos_token", False) else None,
        add_space_prefix=not byte_level and bool(metadata.get("tokenizer.ggml.add_space_prefix", True)),
        chat_template=template if isinstance(template, str) else None,
    )


def _byte_level(metadata: Mapping[str, Any], vocabulary: _Vocabulary) -> FastTokenizer:
    pre = metadata.get("tokenizer.ggml.pre", "default")
    splitting = _SPLITTINGS.get(pre) if isinstance(pre, str) else None
    if splitting is None:
        hint = suggestion(str(pre), _SPLITTINGS)
        raise HeadraceError("model_file", f"pre-tokenizer '{pre}' is not one of {', '.join(_SPLITTINGS)}{hint}")
    merges: Any = [tuple(merge.split(" ")) for merge in _strings(metadata, "tokenizer.ggml.merges")]
    try:
        fast = FastTokenizer(BPE(vocabulary.ids, merges, ignore_merges=splitting.ignore_merges))
    except Exception as error:  # the library raises plain Exception: a merge of unknown parts or of other than two
        raise HeadraceError("model_file", "tokenizer.ggml.merges does not fit the vocabulary") from error
    if splitting.nfc:
        fast.normalizer = normalizers.NFC()
    steps: list[Any] = []
    if splitting.digits_apart:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if splitting.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(splitting.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splitting.pattern is None))
    fast.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    fast.decoder = decoders.ByteLevel()
    return fast


def _sentence_piece(metadata: Mapping[str, Any], vocabulary: _Vocabulary, cache: Path | None) -> FastTokenizer:
    scores = _numbers(metadata, "tokenizer.ggml.scores", float)
    if scores is None or len(scores) != len(vocabulary.tokens):
        raise HeadraceError("model_file", "tokenizer.ggml.scores must hold one score for each token")
    # Control, unknown and byte pieces are left out: no run of ordinary characters may merge into one.
    named = _named_ids(metadata, vocabulary)
    mergeable = [kind in (_NORMAL, _UNUSED) and index not in named for index, kind in enumerate(vocabulary.types)]
    merges = merges_from_scores(vocabulary.tokens, scores, mergeable, cache)
    unknown = vocabulary.of_type(_UNKNOWN)
    unknown_id = unknown[0] if unknown else _token_id(metadata, "unknown", vocabulary)
    model = BPE(
        vocabulary.ids,
        merges,
        byte_fallback=True,
        fuse_unk=True,
        unk_token=None if unknown_id is None else vocabulary.tokens[unknown_id],
    )
    fast = FastTokenizer(model)
    steps: list[Any] = [normalizers.Replace(" ", SPACE_MARK)]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        steps.insert(0, normalizers.Prepend(SPACE_MARK))
    fast.normalizer = normalizers.Sequence(steps)
    fast.decoder = decoders.Sequence([decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()])
    return fast


def _read_vocabulary(metadata: Mapping[str, Any]) -> _Vocabulary:
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    if not 0 < len(tokens) <= MAX_TOKENS:
        raise HeadraceError("model_file", f"tokenizer.ggml.tokens must hold 1 to {MAX_TOKENS} tokens, not {len(tokens)}")
    types = _numbers(metadata, "tokenizer.ggml.token_type", int)
    types = [_NORMAL] * len(tokens) if types is None else types
    if len(types) != len(tokens):
        raise HeadraceError("model_file", "tokenizer.ggml.token_type must hold one type for each token")
    for index, kind in enumerate(types):
        if kind == _BYTE and not _is_byte_piece(tokens[index]):
            raise HeadraceError("model_file", f"token {index} has the type of a byte and is not spelt as one")
    return _Vocabulary(tokens, types, first_ids(tokens))


def _is_byte_piece(token: str) -> bool:
    return re.fullmatch("<0x[0-9A-Fa-f]{2}>", token) is not None


def _token_id(metadata: Mapping[str, Any], name: str, vocabulary: _Vocabulary) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    value = metadata.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise HeadraceError("model_file", f"{key} is not a whole number")
    if not 0 <= int(value) < len(vocabulary.tokens):
        raise HeadraceError("model_file", f"{key} is {int(value)}, beyond the vocabulary of {len(vocabulary.tokens)}")
    return int(value)


def _eos_ids(metadata: Mapping[str, Any], vocabulary: _Vocabulary) -> tuple[int, ...]:
    found = [_token_id(metadata, "eos", vocabulary), _token_id(metadata, "eot", vocabulary)]
    found += [vocabulary.ids.get(text) for text in _TURN_ENDS]
    return tuple(dict.fromkeys(index for index in found if index is not None))


def _named_ids(metadata: Mapping[str, Any], vocabulary: _Vocabulary) -> frozenset[int]:
    """Begin and ends: special whatever type a file gives them (some call the end of a turn user-defined)."""
    begin = _token_id(metadata, "bos", vocabulary)
    return frozenset(_eos_ids(metadata, vocabulary)) | ({begin} if begin is not None else frozenset())


def _numbers(metadata: Mapping[str, Any], key: str, kind: Callable[[Any], _Number]) -> list[_Number] | None:
    value = metadata.get(key)
    try:
        return None if value is None else [kind(entry) for entry in value]
    except (TypeError, ValueError, OverflowError):
        raise HeadraceError("model_file", f"'{key}' is not a list of numbers") from None


def _expect(metadata: Mapping[str, Any], key: str, kind: type[str]) -> str:
    value = metadata.get(key)
    if not isinstance(value, kind):
        raise HeadraceError("model_file", f"the file has no '{key}', or not as text")
    return value


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(key)
    entries: list[Any] = list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [None]
    if not set(map(type, entries)) <= {str}:
        raise HeadraceError("model_file", f"the file has no '{key}', or not as a list of texts")
    return entries
