"""Tokenizer: text to token ids and back, with user text that can never become a special token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from headrace.errors import HeadraceError
from headrace.text.byte_level import byte_level_bytes
from headrace.text.encoder import Encoder, Encoding
from headrace.text.marking import MarkedText, Marker, SpecialToken
from headrace.text.packed_tokens import PackedTokens

SPACE_MARK = "\u2581"
MAX_TOKENS = 2_000_000
_T = TypeVar("_T", str, str | None)


@dataclass(frozen=True, slots=True)
class TokenizerParts:
    """What a loader (GGUF metadata or tokenizer.json) found; :class:`Tokenizer` is made from it.

    ``tokens`` is indexed by id, ``None`` where an id is unused. ``specials`` are matched only where a template (or the
    caller, by id) put them; ``literals`` are added tokens that ordinary text may hit (runs of spaces, HTML tags).
    ``byte_level``: pieces are spelt in GPT-2's printable byte alphabet; else SentencePiece's, where ``<0x41>`` is a byte.
    ``inner_encoder``: for the pieces of a template that don't begin the text, where that makes a difference.
    ``space_mark_is_space``: U+2581 in text is the same as a space, as in SentencePiece itself.
    ``end_id``: ends a text that is taken whole, as models that make vectors of texts were taught to read them.
    """

    encoder: Encoder
    tokens: Sequence[str | None]
    specials: tuple[SpecialToken, ...]
    literals: frozenset[int]
    byte_level: bool
    byte_pieces: frozenset[int] = frozenset()
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    add_bos: bool = False
    end_id: int | None = None
    add_space_prefix: bool = False
    chat_template: str | None = None
    inner_encoder: Encoder | None = None
    space_mark_is_space: bool = False


class Tokenizer:
    """One model's tokenizer. Safe to share between threads after construction.

    Errors: ``HeadraceError("invalid_value")`` for text with lone surrogates and for ids out of range.
    """

    def __init__(self, parts: TokenizerParts) -> None:
        self.parts = parts
        self._encoder = parts.encoder
        self._inner = parts.inner_encoder or parts.encoder
        self._tokens = parts.tokens
        self._specials = {special.token_id: special for special in parts.specials}
        self._find = parts.tokens.find if isinstance(parts.tokens, PackedTokens) else first_ids(parts.tokens).get
        self._literals = parts.literals
        self._byte_level = parts.byte_level
        self._byte_pieces = parts.byte_pieces
        self._space_mark_is_space = parts.space_mark_is_space
        self._bytes: dict[int, bytes] = {}
        self.bos_id = parts.bos_id
        self.eos_ids = parts.eos_ids
        self.add_bos = parts.add_bos and parts.bos_id is not None
        self.add_space_prefix = parts.add_space_prefix
        self.chat_template = parts.chat_template
        self.marker = Marker(parts.specials)

    @property
    def vocab_size(self) -> int:
        """Number of ids, including unused ones; ids are below it."""
        return len(self._tokens)

    @property
    def special_ids(self) -> frozenset[int]:
        """Every id that user text never yields and that ``skip_special`` leaves out."""
        return frozenset(self._specials)

    @property
    def bos_token(self) -> str:
        """Text of the beginning-of-sequence token, empty when the model has none."""
        return "" if self.bos_id is None else self._tokens[self.bos_id] or ""

    @property
    def eos_token(self) -> str:
        """Text of the first end-of-sequence token, empty when the model has none."""
        return self._tokens[self.eos_ids[0]] or "" if self.eos_ids else ""

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """Token ids of USER text: special-token strings in it stay ordinary text.

        ``bos``: put the model's beginning-of-sequence id first if the model asks for one (a raw completion prompt).
        """
        ids = self._encoder.ids(self._checked(text))
        return [self.bos_id, *ids] if bos and self.add_bos and self.bos_id is not None else ids

    def encode_whole(self, text: str) -> list[int]:
        """Token ids of USER text that nothing follows: with the ids that the model wants before and behind it."""
        ids = self.encode(text, bos=True)
        return ids if self.parts.end_id is None else [*ids, self.parts.end_id]

    def encode_with_offsets(self, text: str) -> Encoding:
        """Like :meth:`encode`, with the characters that each token came from (tokens inside one character share it)."""
        return self._encoder.spans(self._checked(text))

    def encode_template(self, rendered: MarkedText | str) -> list[int]:
        """Token ids of a rendered template: its own special tokens become ids, those in user strings don't.

        A plain ``str`` has no user strings: every special token in it counts. The model's beginning-of-sequence id is
        put first if the model asks for it and the template did not write it.
        """
        marked = rendered if isinstance(rendered, MarkedText) else MarkedText(rendered, nonce="")
        return self.encode_parts([marked])[0]

    def encode_parts(self, parts: Sequence[MarkedText]) -> list[list[int]]:
        """Token ids of a rendered template that was cut into parts, part by part: no token reaches over a cut."""
        found: list[list[int]] = []
        begun = False
        for part in parts:
            ids: list[int] = []
            for piece in self.marker.split(part):
                if isinstance(piece, int):
                    ids.append(piece)
                else:
                    ids.extend((self._inner if begun else self._encoder).ids(self._checked(piece)))
                begun = True
            found.append(ids)
        if self.add_bos and self.bos_id is not None and found[0][:1] != [self.bos_id]:
            found[0].insert(0, self.bos_id)
        return found

    def decode(self, ids: Iterable[int], *, skip_special: bool = True, continuation: bool = True) -> str:
        """Text of ``ids``: their bytes joined, each ill-formed part as U+FFFD.

        ``continuation=False``: the ids start a text, so the space that some models put before it is taken off again.
        """
        specials = self._specials
        data = b"".join([self.token_bytes(i) for i in ids if not (skip_special and i in specials)])
        text = data.decode("utf-8", "replace")
        return text[1:] if self.add_space_prefix and not continuation and text.startswith(" ") else text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for; a special token's are its name in UTF-8, an unused id's are empty."""
        known = self._bytes.get(token_id)
        if known is not None:
            return known
        if not 0 <= token_id < len(self._tokens):
            raise HeadraceError("invalid_value", f"token id {token_id} is not in 0..{len(self._tokens) - 1}")
        made = self._bytes[token_id] = self._make_bytes(token_id)
        return made

    def token_text(self, token_id: int) -> str:
        """A token as text for people: its bytes, with U+FFFD where they are part of a character."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def longest_token(self) -> int:
        """Most bytes that a token stands for. Looks at every token."""
        return max((len(self.token_bytes(token)) for token in range(self.vocab_size)), default=1)

    def id_of(self, token: str) -> int | None:
        """The id whose vocabulary entry is spelt ``token``, or ``None``."""
        return self._find(token)

    def is_special(self, token_id: int) -> bool:
        """True for ids that only a template or the model itself can produce."""
        return token_id in self._specials

    def _checked(self, text: str) -> str:
        if text.isascii():
            return text
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise HeadraceError(
                "invalid_value", f"the text has a lone surrogate at character {error.start}: it is not valid Unicode"
            ) from None
        return text.replace(SPACE_MARK, " ") if self._space_mark_is_space else text

    def _make_bytes(self, token_id: int) -> bytes:
        token = self._tokens[token_id]
        if token is None:
            return b""
        if token_id in self._specials or token_id in self._literals:
            return token.encode("utf-8", "replace")
        if self._byte_level:
            return byte_level_bytes(token)
        if token_id in self._byte_pieces:
            return bytes([int(token[3:5], 16)])
        return token.replace(SPACE_MARK, " ").encode("utf-8", "replace")


def first_ids(tokens: Sequence[_T]) -> dict[_T, int]:
    """Token to id; of equal tokens the first one counts."""
    return dict(zip(reversed(tokens), range(len(tokens) - 1, -1, -1), strict=True))
