"""An adapter's numbers into pages of the pool, and back out of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headrace.kernels.adapter_layout import PANEL, AdapterLayout, Run, lay_out
from headrace.kernels.interface import Bytes, Int32, PlacedAdapter
from headrace.models.adapter import MODULES, Adapter, Codes, LowRank, check_fits, module_sides
from headrace.models.config import ModelConfig


def place_adapter(adapter: Adapter, config: ModelConfig, pool: Bytes, pages: Int32) -> PlacedAdapter:
    """Write the adapter into these ``pages`` of the pool ([pages, page_bytes], or in strips), as many as :func:`lay_out` says.

    Raises ``model_file`` when it does not fit the model, ValueError for a wrong number of pages.
    """
    check_fits(adapter, config)
    layout = lay_out(config, adapter.ranks, _page_bytes(pool))
    if len(pages) != layout.pages:
        raise ValueError(f"the adapter takes {layout.pages} pages, not {len(pages)}")
    scales: dict[tuple[int, str], float] = {}
    for (layer, module), (a, b) in layout.runs.items():
        part = adapter.layers[layer][module]
        scales[layer, module] = part.scale
        _write(a, part.a, pool, pages)
        _write(b, _panels(part.b), pool, pages)
    _clear_rests(layout, pool, pages)
    return PlacedAdapter(np.ascontiguousarray(pages, np.int32), layout.directory(scales))


def read_back(placed: PlacedAdapter, config: ModelConfig, pool: Bytes) -> Adapter:
    """The adapter that lies in the pool: slow, for the torch runner and for tests."""
    directory, found = placed.directory, []
    for layer, sides in enumerate(module_sides(config)):
        parts: dict[str, LowRank] = {}
        for module in MODULES:
            row = layer * len(MODULES) + MODULES.index(module)
            rank, *places = (int(value) for value in directory.places[row])
            if rank:
                inputs, outputs = sides[module]
                a = Run(places[0], places[1], rank, inputs * 2)
                b = Run(places[2], places[3], -(-outputs // PANEL), rank * PANEL * 2)
                panels = _read(b, pool, placed.pages).reshape(-1, rank, PANEL)
                columns = panels.transpose(0, 2, 1).reshape(-1, rank)[:outputs]
                parts[module] = LowRank(_read(a, pool, placed.pages).reshape(rank, inputs), columns, float(directory.scales[row]))
        found.append(parts)
    return Adapter(tuple(found))


def _panels(b: Codes) -> Codes:
    """B [outputs, rank] as panels [outputs/16, rank, 16]; the last one filled up with zeros."""
    outputs, rank = b.shape
    missing = -outputs % PANEL
    whole = np.concatenate([b, np.zeros((missing, rank), np.uint16)]) if missing else b
    return np.ascontiguousarray(whole.reshape(-1, PANEL, rank).transpose(0, 2, 1))


def _write(run: Run, codes: Codes, pool: Bytes, pages: Int32) -> None:
    pieces = np.ascontiguousarray(codes).view(np.uint8).reshape(run.count, run.piece_bytes)
    for page, offset, first, count in run.spans(_page_bytes(pool)):
        _bytes_of(pool, pages[page])[offset : offset + count * run.piece_bytes] = pieces[first : first + count].reshape(-1)


def _read(run: Run, pool: Bytes, pages: Int32) -> npt.NDArray[np.uint16]:
    spans = run.spans(_page_bytes(pool))
    parts = [_bytes_of(pool, pages[page])[offset : offset + count * run.piece_bytes] for page, offset, _, count in spans]
    return np.concatenate(parts).view(np.uint16)


def _clear_rests(layout: AdapterLayout, pool: Bytes, pages: Int32) -> None:
    """Zeros where nothing was packed: pages are copied and compared whole."""
    ends = [0] * layout.pages
    for pair in layout.runs.values():
        for run in pair:
            for page, offset, _, count in run.spans(layout.page_bytes):
                ends[page] = max(ends[page], offset + count * run.piece_bytes)
    for page, end in zip(pages, ends, strict=True):
        _bytes_of(pool, page)[end:] = 0


def _page_bytes(pool: Bytes) -> int:
    return pool[:1].size


def _bytes_of(pool: Bytes, page: np.int32) -> Bytes | np.flatiter[Bytes]:
    """A page's bytes in order, to be cut; an iterator over them where they lie in strips."""
    mine: Bytes = pool[page]
    return mine if mine.ndim == 1 else mine.flat
