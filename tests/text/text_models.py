"""The two real tokenizers and the hard texts that the tests of this room share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import pytest

from headrace.models.catalog import find_model, open_model
from headrace.text.gguf_tokenizer import tokenizer_from_gguf
from headrace.text.merges import default_merge_cache
from headrace.text.tokenizer import Tokenizer

SMOL, GEMMA = "smollm2-135m-instruct", "gemma-3-270m"
BOTH = [pytest.param(SMOL, marks=pytest.mark.model), pytest.param(GEMMA, marks=pytest.mark.gemma)]


@lru_cache(maxsize=2)
def metadata(name: str) -> dict[str, Any]:
    source: Any = open_model(find_model(name)).tokenizer_source
    assert isinstance(source, Mapping)
    return dict(source)


@lru_cache(maxsize=2)
def tokenizer(name: str) -> Tokenizer:
    return tokenizer_from_gguf(metadata(name), cache=default_merge_cache())


HARD = (
    "",
    " ",
    "a",
    "Hello, world!",
    "  leading and trailing  ",
    "one  two   three    four" + " " * 40 + "many",
    "tabs\tand\t\tmore\t\t\tof\t\t\t\tthem",
    "lines\nand\n\nblank\n\n\nlines\n\n\n\n",
    "windows\r\nline\r\nends\r\n\r\n",
    "a \n b \n\n c\n ",
    "numbers 1 12 123 1234567890 3.14159 1e-9 0x1F 1,000,000",
    "I'm you're he'll they've we'd it's CAN'T DON'T",
    "caf\u00e9 cafe\u0301 na\u00efve \u00c5 A\u030a \u1e9b\u0323",
    "Zalgo: h\u0335\u0321e\u0334\u0322l\u0337l\u0338o",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645 \u05e9\u05dc\u05d5\u05dd \u202ertl\u202c",
    "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3002\u4f60\u597d\uff0c\u4e16\u754c\uff01 \ud55c\uad6d\uc5b4",
    "emoji \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
    "\U0001f1eb\U0001f1f7 \U0001f44d\U0001f3fd \u2764\ufe0f",
    "def f(x: int) -> str:\n\treturn f'{x!r:>10}'  # comment\n\nclass A(B):\n    pass\n",
    '{"key": [1, 2.5, null, true], "s": "\\u00e9\\n"}',
    "<html><body><h1>Title</h1><p>a &amp; b</p></body></html>",
    "nul \x00 and \x01\x02 \x7f bell \x07 esc \x1b[0m",
    "\u00a0nbsp\u2003em\u3000wide\u200bzero\ufeffbom",
    "x" * 3000,
    "supercalifragilisticexpialidocious" * 20,
    "https://example.com/a/b?c=d&e=f#g user@example.org C:\\path\\to",
    "\u00bd \u00b2 \u0663 \u2167 \u2460 \u09ea",
    "<0x0A> <0x41> \u2581 \u2581\u2581x \u0120 \u010a",
    "\U0001d54f\U00010348 \ufffd \uffff \ue000",
    "a\u0300" * 50,
    "...---===***///\\\\\\___~~~```",
)
PIECES = (
    *("a", "b", "e", "the", "ing", "ation", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\t\t", "1", "29"),
    *("\u00e9", "e\u0301", "\u65e5\u672c", "\U0001f600", "\u200d", "\u0639", "\u00bd", "\u0663", "\u2581", "\x00"),
    *("<", ">", "<|", "|>", "</", "<table>", "</h1>", "<0x0A>", "'s", "'LL", "_", "def f(x):", "{", "//"),
    *("\u00a0", "\u3000", "Hello", "world", "aaa"),
)
