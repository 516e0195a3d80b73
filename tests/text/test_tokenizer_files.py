"""Tokenizers from model folders: read back what the library writes, refuse what lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import BPE, WordLevel

from headrace.errors import HeadraceError
from headrace.text.tokenizer import MAX_TOKENS
from headrace.text.tokenizer_files import tokenizer_from_folder

MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("\u0120", "w"), ("\u0120w", "o")]
BOS, EOS, TURN, FUNCTION = "<s>", "</s>", "<|end|>", "<fn>"


def byte_level() -> FastTokenizer:
    """A byte-level BPE with three special tokens and one added token that text may spell."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [BOS, EOS, *alphabet, *("".join(pair) for pair in MERGES)]
    fast = FastTokenizer(BPE({token: index for index, token in enumerate(tokens)}, MERGES))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([BOS, EOS, TURN])
    fast.add_tokens([AddedToken(FUNCTION, special=False, normalized=False)])
    return fast


def sentence_piece(scheme: str) -> FastTokenizer:
    """A BPE with byte pieces and U+2581 for spaces, put before text by ``scheme``."""
    tokens = [
        "<unk>",
        BOS,
        EOS,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *"\u2581helowrd",
        "he",
        "ll",
        "hell",
        "hello",
        "\u2581w",
    ]
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("\u2581", "w")]
    fast = FastTokenizer(
        BPE({token: i for i, token in enumerate(tokens)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    if scheme == "normalizer":
        fast.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    fast.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    fast.add_special_tokens(["<unk>", BOS, EOS])
    return fast


def write(folder: Path, fast: FastTokenizer | dict[str, Any], **files: Any) -> Path:
    text = fast.to_str() if isinstance(fast, FastTokenizer) else json.dumps(fast)
    (folder / "tokenizer.json").write_text(text, "utf-8")
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), "utf-8")
    return folder


def changed(folder: Path, **changes: Any) -> Path:
    """A folder whose tokenizer.json differs from :func:`byte_level`'s in ``changes``."""
    return write(folder, {**json.loads(byte_level().to_str()), **changes})


def with_bos(fast: FastTokenizer) -> FastTokenizer:
    bos = fast.token_to_id(BOS)
    fast.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bos)])
    return fast


def test_ids_and_text_equal_the_library(tmp_path: Path) -> None:
    fast = byte_level()
    ours = tokenizer_from_folder(write(tmp_path, fast))
    fast.encode_special_tokens = True
    assert ours.vocab_size == fast.get_vocab_size(with_added_tokens=True)

    @settings(max_examples=150, deadline=None)
    @given(
        st.lists(st.sampled_from(["hello", " wo", "\u00e9", "\U0001f600", "\x00", FUNCTION, BOS, TURN, "<"]), max_size=8).map(
            "".join
        )
    )
    def texts(text: str) -> None:
        ids = ours.encode(text)
        assert ids == fast.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids) == text
        assert not any(map(ours.is_special, ids))

    texts()


def test_special_tokens_come_from_templates_only(tmp_path: Path) -> None:
    ours = tokenizer_from_folder(write(tmp_path, byte_level()))
    special, literal = ours.id_of(TURN), ours.id_of(FUNCTION)
    assert special is not None
    assert literal is not None
    assert ours.encode(FUNCTION) == [literal]
    assert special not in ours.encode(TURN)
    assert ours.encode_template(f"hello{TURN}{FUNCTION}") == [*ours.encode("hello"), special, literal]
    assert ours.decode([special, literal]) == FUNCTION
    assert ours.decode([special], skip_special=False) == TURN
    assert ours.special_ids == {ours.id_of(text) for text in (BOS, EOS, TURN)}


@pytest.mark.parametrize("adds", [True, False])
def test_bos_is_put_where_the_file_puts_it(tmp_path: Path, adds: bool) -> None:
    fast = with_bos(byte_level()) if adds else byte_level()
    ours = tokenizer_from_folder(write(tmp_path, fast, tokenizer_config={"bos_token": BOS}))
    assert (ours.bos_id, ours.bos_token, ours.add_bos) == (0, BOS, adds)
    assert ours.encode("hello", bos=True) == [0] * adds + ours.encode("hello")
    assert ours.encode_template(f"{BOS}hello") == [0, *ours.encode("hello")]


def test_tokens_named_in_either_config_file(tmp_path: Path) -> None:
    both = {
        "special_tokens_map": {"bos_token": EOS, "eos_token": {"content": EOS}},
        "tokenizer_config": {"bos_token": {"content": BOS}},
    }
    ours = tokenizer_from_folder(write(tmp_path, byte_level(), **both))
    assert (ours.bos_token, ours.eos_token, ours.eos_ids) == (BOS, EOS, (1,))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": null}')
    assert tokenizer_from_folder(tmp_path).bos_id is None


def test_ends_are_those_of_tokenizer_and_generation_config(tmp_path: Path) -> None:
    fast = byte_level()
    turn = fast.token_to_id(TURN)
    files = {"tokenizer_config": {"eos_token": EOS}, "generation_config": {"eos_token_id": [turn, 1]}}
    assert tokenizer_from_folder(write(tmp_path, fast, **files)).eos_ids == (1, turn)
    files["generation_config"] = {"eos_token_id": turn}
    assert tokenizer_from_folder(write(tmp_path, fast, **files)).eos_ids == (1, turn)
    files["generation_config"] = {}
    assert tokenizer_from_folder(write(tmp_path, fast, **files)).eos_ids == (1,)


def test_ends_are_special_even_where_the_file_says_otherwise(tmp_path: Path) -> None:
    fast = byte_level()
    end = fast.token_to_id(FUNCTION)
    assert end is not None
    ours = tokenizer_from_folder(write(tmp_path, fast, generation_config={"eos_token_id": end}))
    assert end not in ours.encode(f"a{FUNCTION}")
    assert ours.encode_template(FUNCTION) == [end]
    assert ours.decode([end]) == ""


@pytest.mark.parametrize("value", [10_000, 2**40, -1, True, "x", [1, None], 1.0])
def test_ends_outside_the_vocabulary_are_refused(tmp_path: Path, value: Any) -> None:
    write(tmp_path, byte_level(), generation_config={"eos_token_id": value})
    with pytest.raises(HeadraceError, match=r"generation_config\.json") as caught:
        tokenizer_from_folder(tmp_path)
    assert caught.value.code == "model_file"


@pytest.mark.parametrize(("scheme", "first", "inner"), [
    ("always", True, True), ("normalizer", True, True), ("first", True, False), ("never", False, False),
])  # fmt: skip
def test_spaces_before_text(tmp_path: Path, scheme: str, first: bool, inner: bool) -> None:
    ours = tokenizer_from_folder(write(tmp_path, sentence_piece(scheme)))
    space, hello, end = ours.id_of("\u2581"), ours.id_of("hello"), ours.id_of(EOS)
    assert ours.encode("hello") == [space] * first + [hello]
    assert ours.encode_template(f"hello{EOS}hello") == [*([space] * first), hello, end, *([space] * inner), hello]
    assert ours.decode(ours.encode("hello"), continuation=False) == "hello"
    assert ours.decode(ours.encode("hello w\u00e9\n")) == " " * first + "hello w\u00e9\n"


def test_older_files_say_it_with_add_prefix_space(tmp_path: Path) -> None:
    written = json.loads(sentence_piece("never").to_str())
    written["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581", "add_prefix_space": False, "prepend_scheme": "never"}
    ours = tokenizer_from_folder(write(tmp_path, written))
    assert ours.decode([*ours.encode(" hello")], continuation=False) == " hello"
    assert not ours.add_space_prefix


def test_chat_template_from_file_text_or_list(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "b"}, {"name": "default", "template": "a"}]
    assert tokenizer_from_folder(write(tmp_path, byte_level())).chat_template is None
    assert tokenizer_from_folder(write(tmp_path, byte_level(), tokenizer_config={"chat_template": named})).chat_template == "a"
    assert tokenizer_from_folder(write(tmp_path, byte_level(), tokenizer_config={"chat_template": "t"})).chat_template == "t"
    (tmp_path / "chat_template.jinja").write_text("own")
    assert tokenizer_from_folder(tmp_path).chat_template == "own"


def refuses(folder: Path, pattern: str) -> None:
    with pytest.raises(HeadraceError, match=pattern) as caught:
        tokenizer_from_folder(folder)
    assert caught.value.code == "model_file"
    assert str(folder) not in caught.value.message


@pytest.mark.parametrize(("text", "pattern"), [
    (b"", "not valid JSON"), (b"[1]", "not a JSON object"), (b"\xff{}", "not UTF-8"), (b"[" * 100_000, "not valid JSON"),
    (b"{}", "other than BPE"), (b'{"model": {"type": "BPE"}}', "other than BPE"), (b'{"model": {"vocab": {}}}', "can't be read"),
])  # fmt: skip
def test_damaged_files_are_refused(tmp_path: Path, text: bytes, pattern: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(text)
    refuses(tmp_path, pattern)


def test_a_folder_without_tokenizer_and_other_models_are_refused(tmp_path: Path) -> None:
    refuses(tmp_path, r"no tokenizer\.json")
    write(tmp_path, FastTokenizer(WordLevel({"a": 0}, unk_token="a")))
    refuses(tmp_path, "other than BPE")


@pytest.mark.parametrize("name", ["tokenizer_config", "special_tokens_map", "generation_config"])
def test_damaged_companions_are_named(tmp_path: Path, name: str) -> None:
    write(tmp_path, byte_level())
    (tmp_path / f"{name}.json").write_text("{")
    refuses(tmp_path, f"{name}.json is not valid JSON")


def test_special_tokens_have_the_ids_that_the_library_gives_them(tmp_path: Path) -> None:
    """A file may say any id for an added token; only those of its vocabulary exist for the model."""
    entries = json.loads(byte_level().to_str())["added_tokens"]
    lying = [{**entry, "id": 1_000_000 + index} for index, entry in enumerate(entries)]
    ours = tokenizer_from_folder(changed(tmp_path, added_tokens=lying))
    assert all(index < ours.vocab_size for index in ours.special_ids)
    assert ours.encode_template(f"{BOS}a{TURN}") == [ours.id_of(BOS), *ours.encode("a"), ours.id_of(TURN)]


def test_ids_far_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    """Before a list of four billion places is made for them."""
    model = json.loads(byte_level().to_str())["model"]
    refuses(changed(tmp_path, model={**model, "vocab": {**model["vocab"], "far": MAX_TOKENS}}), str(MAX_TOKENS))
    refuses(changed(tmp_path, model={**model, "vocab": {**model["vocab"], "far": 2**32 - 1}}), str(MAX_TOKENS))
