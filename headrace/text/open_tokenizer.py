"""One door to a model's tokenizer, wherever the model came from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.text.gguf_tokenizer import tokenizer_from_gguf
from headrace.text.merges import default_merge_cache
from headrace.text.tokenizer import Tokenizer
from headrace.text.tokenizer_files import tokenizer_from_folder


def open_tokenizer(source: Mapping[str, Any] | Path) -> Tokenizer:
    """The tokenizer of an opened model: from the metadata of its GGUF file, or from its folder's ``tokenizer.json``.

    Merges that must be derived from scores (262k tokens take seconds) are kept in the cache folder. Raises ``model_file``.
    """
    if isinstance(source, Path):
        return tokenizer_from_folder(source)
    return tokenizer_from_gguf(source, cache=default_merge_cache())
