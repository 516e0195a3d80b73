"""Keys and values in pages, in torch: fp32 in rows, bf16 as the native kernels have it, or coded as csrc/kv_format.hpp draws it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.kernels.interface import PAGE_TOKENS


@dataclass(frozen=True, slots=True)
class PagedRows:
    """Where one slice's rows and keys are: ``rows`` first and end in the batch, ``pages`` of the item, ``keys`` so far.

    ``first_row``: where in the pool these pages stand one after the other, −1 for nowhere.
    """

    first: int
    end: int
    pages: Tensor
    keys: int
    first_row: int = -1


@dataclass(frozen=True, slots=True)
class RowPages:
    """One layer's part of a pool whose strips are single heads: ``rows`` [keys or values, heads, pages, 16, head_dim].

    Pages that stand one after the other are one array [keys or values, heads, tokens, head_dim], which attention reads in place.
    Others are gathered.
    """

    rows: Tensor

    def write(self, page: Tensor, slot: Tensor, key: Tensor, value: Tensor) -> None:
        """Keys and values [T, heads, head_dim] of rows into their pages and slots [T]."""
        self.rows[0][:, page, slot] = key.transpose(0, 1).to(self.rows)
        self.rows[1][:, page, slot] = value.transpose(0, 1).to(self.rows)

    def read(self, where: PagedRows) -> tuple[Tensor, Tensor]:
        """Keys and values [heads, keys, head_dim] of the first ``where.keys`` positions."""
        if where.first_row >= 0:
            mine = self.rows[:, :, where.first_row : where.first_row + len(where.pages)]
        else:
            mine = self.rows.index_select(2, where.pages)
        keys, values = mine.flatten(2, 3)[:, :, : where.keys]
        return keys, values


@dataclass(frozen=True, slots=True)
class FloatPages:
    """One layer's part of a pool of the native kernels: ``keys`` [pages, heads, head_dim, 16], ``values`` […, 16, head_dim]."""

    keys: Tensor
    values: Tensor

    def write(self, page: Tensor, slot: Tensor, key: Tensor, value: Tensor) -> None:
        """Keys and values [T, heads, head_dim] of rows into their pages and slots [T]."""
        self.keys[page, :, :, slot] = key.to(self.keys)
        self.values[page, :, slot] = value.to(self.values)

    def read(self, where: PagedRows) -> tuple[Tensor, Tensor]:
        """Keys and values [heads, keys, head_dim] of the first ``where.keys`` positions."""
        keys = self.keys[where.pages].permute(1, 0, 3, 2).flatten(1, 2)[:, : where.keys]
        return keys, self.values[where.pages].transpose(0, 1).flatten(1, 2)[:, : where.keys]


@dataclass(frozen=True, slots=True)
class CodedPages:
    """One layer's part of the pool, ``memory`` uint8 [pages, heads, bytes of a head], holding codes of ``bits`` bits.

    A vector is turned by a Hadamard matrix (as in QuaRot) and has a step and a middle of its own (QServe's KV4).
    """

    memory: Tensor
    width: int
    bits: int

    @property
    def _size(self) -> int:
        return PAGE_TOKENS * self.width * self.bits // 8

    def write(self, page: Tensor, slot: Tensor, key: Tensor, value: Tensor) -> None:
        """Keys and values [T, heads, head_dim] of rows into their pages and slots [T]."""
        size = self._size
        k_codes, k_step, k_middle = _code(_turn(key.float().cpu()), self.bits)
        v_codes, v_step, v_middle = _code(_turn(value.float().cpu()), self.bits)
        lines = split_last(k_codes, -1, 4)
        vectors = split_last(v_codes, -1, 16)
        if self.bits == 4:
            lines = lines[..., 0::2, :] | lines[..., 1::2, :] << 4
            vectors = vectors[..., 0::2, :] | vectors[..., 1::2, :] << 4
        self._keys()[page, :, :, slot] = lines
        self._values()[page, :, slot // 4, :, :, slot % 4] = vectors
        parameters = split_last(self.memory[..., 2 * size :].view(torch.bfloat16), 4, PAGE_TOKENS)
        parameters[page, :, :, slot] = torch.stack([k_step, k_middle, v_step, v_middle], dim=-1)

    def read(self, where: PagedRows) -> tuple[Tensor, Tensor]:
        """Keys and values [heads, keys, head_dim] of the first ``where.keys`` positions."""
        count = where.keys
        mine = CodedPages(self.memory[where.pages].contiguous(), self.width, self.bits)
        lines, vectors = mine._keys(), mine._values()
        if self.bits == 4:
            lines = torch.stack([lines & 15, lines >> 4], dim=3).flatten(2, 3)
            vectors = torch.stack([vectors & 15, vectors >> 4], dim=4).flatten(3, 4)
        parameters = split_last(mine.memory[..., 2 * self._size :].view(torch.bfloat16).float(), 4, PAGE_TOKENS)
        # [pages, heads, line, token, 4] and [pages, heads, quad, vector, lane, token] → [heads, tokens, head_dim]
        keys = lines.permute(1, 0, 3, 2, 4).flatten(3).flatten(1, 2)[:, :count]
        values = vectors.permute(1, 0, 2, 5, 3, 4).flatten(4).flatten(1, 3)[:, :count]
        k_step, k_middle, v_step, v_middle = parameters.permute(2, 1, 0, 3).flatten(2)[..., :count, None]
        half = 2 ** (self.bits - 1)
        return _turn((keys.float() - half) * k_step + k_middle), _turn((values.float() - half) * v_step + v_middle)

    def _keys(self) -> Tensor:
        """[pages, heads, line, token, 4]: a view."""
        return split_last(self.memory[..., : self._size], -1, PAGE_TOKENS, 4)

    def _values(self) -> Tensor:
        """[pages, heads, quad of tokens, vector, lane, token]: a view."""
        return split_last(self.memory[..., self._size : 2 * self._size], PAGE_TOKENS // 4, -1, 16, 4)


LayerPages = RowPages | FloatPages | CodedPages


def split_last(x: Tensor, *sizes: int) -> Tensor:
    """A view of ``x`` with its last axis as several; one size may be -1."""
    return x.view(*x.shape[:-1], *sizes)


def _code(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of vectors [..., n], and their steps and middles [...] in bf16."""
    half, levels = 2 ** (bits - 1), 2**bits - 1
    least = x.amin(-1)
    step = ((x.amax(-1) - least) / levels).bfloat16()
    middle = (least + half * step.float()).bfloat16()
    inverse = torch.where(step > 0, 1 / step.float(), 0.0)
    scaled = (x - middle.float()[..., None]) * inverse[..., None]
    return (scaled.clamp(-half, half - 1).round() + half).to(torch.uint8), step, middle


def _turn(x: Tensor) -> Tensor:
    """Vectors [..., n] times the orthonormal Hadamard matrix, over blocks of the largest power of two in n."""
    size = x.shape[-1]
    matrix = torch.ones(1, 1)
    while size % (2 * len(matrix)) == 0:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    out: Tensor = split_last(x, -1, len(matrix)) @ matrix / len(matrix) ** 0.5
    return out.flatten(-2)
