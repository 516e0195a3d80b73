"""From settings to a running engine: open the model, make the chain, map the pool, calibrate."""

from __future__ import annotations

import dataclasses
import logging
import math
import shutil
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from headrace import __version__
from headrace.engine.adapters import Adapters
from headrace.engine.adapting import Adapting
from headrace.engine.allowance import Allowance
from headrace.engine.calibration import Calibration, calibrate, load, save, store_path
from headrace.engine.drafting_model import Draft, Openers, Served, open_draft
from headrace.engine.grammars import LazyGrammars
from headrace.engine.identity import kernels_id, page_identity
from headrace.engine.keeping import DiskKeeping
from headrace.engine.lending_wire import Lending
from headrace.engine.loop import Engine, EngineParts
from headrace.engine.machine import cpu_name, usable_cores
from headrace.engine.moving import Moving
from headrace.engine.pool_size import context_length, default_pool_bytes, kv_format, wanted_pages
from headrace.engine.request import Limits
from headrace.engine.settings import EngineSettings
from headrace.engine.speculating import Speculating
from headrace.engine.training import Training, TrainingParts
from headrace.engine.training_memory import packed_again
from headrace.engine.viewing import Viewing
from headrace.engine.wire import Ready
from headrace.errors import HeadraceError
from headrace.kernels._native import ThreadPool, checksum
from headrace.kernels.interface import ChainRunner, TorchKv
from headrace.kernels.sampler import Sampler
from headrace.memory.arena import Arena
from headrace.memory.disk_tier import Checksum, DiskTier, lies_in_memory, slot_bytes
from headrace.memory.kept_file import KeptFile
from headrace.memory.mover import Mover
from headrace.memory.moves import MoveOptions, Moves
from headrace.memory.page_pool import PagePool
from headrace.memory.views import Views, plan_views
from headrace.models.adapter import check_base
from headrace.models.catalog import OpenModel, find_model, open_model
from headrace.models.packages import Progress, cache_dir
from headrace.models.recoding import ROW_CHOICES, recode
from headrace.scheduling.composer import POLICIES
from headrace.scheduling.cost import Cost
from headrace.scheduling.keeping import KeepOptions
from headrace.scheduling.scheduler import Scheduler
from headrace.scheduling.settings import SchedulingSettings
from headrace.scheduling.swapping import SwapOptions, Swapping
from headrace.speculation.proposer import Proposer
from headrace.speculation.proposers import choose_proposers, open_proposers
from headrace.text.open_tokenizer import open_tokenizer
from headrace.training.backbone import Backbone

logger = logging.getLogger("headrace.engine.build")

SWAP_POOLS = 4  # pools that the swap file holds
PIECE_BYTES = 4 * 2**20  # most that moves in one piece: disks gain little beyond, and whoever is urgent waits for it
GAP_SLACK = 1.25  # a step of the knee's size may take this much longer than measured at start, for its attention


@dataclass(slots=True, eq=False)
class BuiltEngine:
    """An engine with what it stands on. :meth:`close` gives memory and threads back."""

    engine: Engine
    model: OpenModel
    chain: ChainRunner
    arena: Arena
    threads: int
    calibration: Calibration
    load_seconds: float
    draft: Draft | None = None
    allowance: Allowance | None = None

    @property
    def ready(self) -> Ready:
        """The message that says so."""
        limits, pool = self.engine.limits, self.engine.scheduler.pool
        return Ready(
            model=self.model.name, context_length=limits.context_length, vocab=limits.vocab, hidden=self.chain.config.hidden,
            pages_total=pool.usable, page_tokens=pool.page_tokens, load_seconds=self.load_seconds,
        )  # fmt: skip

    def close(self) -> None:
        """Stop threads and unmap the pool."""
        self.engine.close()
        self.arena.close()
        if self.draft is not None:
            self.draft.close()


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How to build: ``progress`` is told of files being put together.

    ``views``: whether sequences are read as contiguous views; ``None``: where the chain gains by it, which is torch.
    ``lending``: the pool's memory is shared with other models.
    """

    scheduling: SchedulingSettings = field(default_factory=SchedulingSettings)
    progress: Progress | None = None
    views: bool | None = None
    lending: Lending | None = None


def build_engine(settings: EngineSettings, options: BuildOptions | None = None) -> BuiltEngine:
    """Load the model and make an engine for it. Raises HeadraceError (``model_not_found``, ``model_file``, ``invalid_setting``)."""
    began = time.perf_counter()
    options = options or BuildOptions()
    model = original = open_model(find_model(settings.model), options.progress)
    if settings.device != "cpu" and settings.weights in ROW_CHOICES:
        message = f"weights {settings.weights} says how native kernels round rows, device {settings.device} does not; use auto"
        raise HeadraceError("invalid_setting", message, param="weights")
    model = dataclasses.replace(model, weights=recode(model.weights, settings.weights))
    threads = settings.threads or usable_cores()
    kv = kv_format(settings.kv, settings.device)
    chain = make_chain(model, settings.device, threads, kv)
    context = context_length(model.config, settings)
    own = pool_pages(chain, context, settings)
    most = max(own, options.lending.most // chain.page_layout.page_bytes) if options.lending is not None else own
    arena, viewing = make_pool(chain, most, context, options)
    identity = {"model": model.name, "device": settings.device, "weights": settings.weights, "threads": threads, "kv": kv}
    calibration = _calibration(chain, arena, identity)
    swap = swap_options(settings, arena)
    keep = keep_options(settings, arena)
    scheduler = make_scheduler(options.scheduling, arena.pages, chain, calibration, swap, keep)
    allowance = Allowance(scheduler, arena, options.lending, own) if options.lending is not None else None
    arena.touch_ahead(0)
    adapting = make_adapting(scheduler, arena, original)
    training = make_training(scheduler, arena, model, threads, context)
    training.adapting = adapting
    draft = make_draft(settings, Served(model, scheduler.cost, arena.pages), chain, threads, options.progress)
    parts = EngineParts(
        chain=chain, pages=arena.rows, scheduler=scheduler, sampler=make_sampler(chain, threads),
        limits=Limits(
            model.config.vocab, min(context, own * chain.page_layout.tokens), model.config.eos_ids, settings.seed,
            model.config.pooling or "mean",
        ),
        grammars=LazyGrammars(lambda: open_tokenizer(model.tokenizer_source), model.config.vocab),
        touch_ahead=arena.touch_ahead,
        moving=make_moving(scheduler, arena, swap_folder(settings)) if swap is not None else None, viewing=viewing,
        keeping=make_keeping(scheduler, arena, keep_folder(), page_identity(model, settings)) if keep is not None else None,
        adapting=adapting, training=training, speculating=make_speculating(settings.speculation, scheduler, draft),
    )  # fmt: skip
    return BuiltEngine(Engine(parts), model, chain, arena, threads, calibration, time.perf_counter() - began, draft, allowance)


def make_pool(chain: ChainRunner, pages: int, context: int, options: BuildOptions) -> tuple[Arena, Viewing | None]:
    """The memory of a pool of ``pages`` for sequences of up to ``context`` tokens, and their views where there are any."""
    layout = chain.page_layout
    if not (layout.kv == "fp32" if options.views is None else options.views):
        return Arena(pages, layout.page_bytes, layout.strips), None
    plan = plan_views(layout.page_bytes, layout.strips, -(-context // layout.tokens), options.scheduling.max_running)
    arena = Arena(pages, layout.page_bytes, layout.strips, plan.rows)
    return arena, Viewing(Views(arena, plan))


def make_chain(model: OpenModel, device: str, threads: int | ThreadPool, kv: TorchKv = "bf16") -> ChainRunner:
    """The chain of blocks: native kernels, or torch; ``kv`` is the format of its pages, ``threads`` how many, or another chain's.

    Raises ``invalid_setting`` when torch is asked for and not installed, and for fp32 pages on the CPU.
    """
    if device == "cpu":
        if kv == "fp32":
            raise HeadraceError("invalid_setting", "the native kernels have no fp32 pages; use bf16", param="kv")
        from headrace.kernels.native_chain import NativeChain
        from headrace.kernels.packed_cache import PackedCache

        cache = PackedCache()
        return NativeChain(
            model.config, model.weights, threads,
            lambda config, weights, pool: cache.matrices(config, weights, model.files, pool), kv,
        )  # fmt: skip
    try:
        import torch

        from headrace.kernels.torch_chain import TorchChain
    except ImportError as error:
        raise HeadraceError("invalid_setting", "device torch needs the extra `torch`", param="device") from error
    torch.set_num_threads(threads if isinstance(threads, int) else threads.threads)
    return TorchChain(model.config, model.weights, kv=kv)


def make_sampler(chain: ChainRunner, threads: int) -> Sampler:
    """The sampler of a chain, on the chain's own threads where it has some: two pools would spin against each other."""
    from headrace.kernels.native_chain import NativeChain

    return Sampler(chain.config.vocab, chain.pool if isinstance(chain, NativeChain) else threads)


def pool_pages(chain: ChainRunner, context: int, settings: EngineSettings) -> int:
    """Pages of the pool. Raises ``invalid_setting`` when the memory asked for does not hold one page."""
    layout = chain.page_layout
    if settings.pool_mib is not None:
        pages = settings.pool_mib * 2**20 // layout.page_bytes
        if pages < 1:
            message = f"pool_mib must be at least {-(-layout.page_bytes // 2**20)} MiB, one page of this model"
            raise HeadraceError("invalid_setting", message, param="pool_mib")
        return pages
    return max(1, min(wanted_pages(context), default_pool_bytes() // layout.page_bytes))


def make_scheduler(
    settings: SchedulingSettings,
    pages: int,
    chain: ChainRunner,
    calibration: Calibration | None,
    swap: SwapOptions | None = None,
    keep: KeepOptions | None = None,
) -> Scheduler:
    """A scheduler whose budget is the measured knee, wherever the settings leave it open. ``swap``: it has a tier below,
    ``keep``: its index too."""
    cost = calibration.cost if calibration is not None else Cost()
    pool = PagePool(pages, chain.page_layout.tokens)
    swapping = Swapping(Moves(pool, swap.moves), cost, swap.page_bytes, swap.mode) if swap is not None else None
    scheduler = Scheduler(settings, pool, cost, POLICIES.get(settings.policy), swapping, keep)
    if calibration is not None and settings.step_tokens is None:
        scheduler.budget = dataclasses.replace(scheduler.budget, tokens=calibration.knee)
    if calibration is not None and settings.gap_target_ms is None:
        scheduler.budget = dataclasses.replace(scheduler.budget, seconds=GAP_SLACK * calibration.knee_seconds, paced=True)
    return scheduler


def swap_folder(settings: EngineSettings) -> Path:
    """Where the swap file is made."""
    return Path(settings.swap_dir) if settings.swap_dir is not None else cache_dir()


def swap_options(settings: EngineSettings, arena: Arena) -> SwapOptions | None:
    """The tier below the pool as the settings want it; ``None``: there is none.

    Raises ``invalid_setting`` for a folder that can't be used, or that lies in RAM itself, where swapping frees nothing.
    """
    if settings.preempt == "recompute":
        return None
    folder = swap_folder(settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise HeadraceError("invalid_setting", f"can't swap to {folder}: {error}", param="swap_dir") from None
    if lies_in_memory(folder):
        if settings.swap_dir is not None or settings.preempt == "swap":
            message = f"{folder} lies in RAM, where swapping frees nothing: choose a folder on a disk, or --preempt recompute"
            raise HeadraceError("invalid_setting", message, param="swap_dir")
        return None
    page = slot_bytes(arena.page_bytes)
    wanted = settings.swap_gib * 2**30 if settings.swap_gib is not None else min(SWAP_POOLS * arena.size, free // 4)
    if wanted < page:
        return None
    run_pages = max(1, PIECE_BYTES // page)
    return SwapOptions(MoveOptions(wanted // page, run_pages), page, settings.preempt)


def make_moving(scheduler: Scheduler, arena: Arena, folder: Path, *, synchronous: bool = False) -> Moving:
    """The mover of a scheduler that swaps, over a file in ``folder``. Raises ``invalid_setting``."""
    assert scheduler.swapping is not None, "a mover needs a scheduler that swaps"
    tier = DiskTier(arena, folder, scheduler.swapping.moves.options.slots, page_checksum())
    return Moving(scheduler, Mover(tier), synchronous=synchronous)


def page_checksum() -> Checksum:
    """The checksum of swapped pages, taken on the thread that carries them."""
    return partial(checksum, pool=ThreadPool(1))


def make_speculating(choice: str, scheduler: Scheduler, draft: Draft | None = None) -> Speculating | None:
    """Proposers as the option names them, and the draft model; ``None`` for none. Raises ``invalid_setting``."""
    proposers: list[Proposer] = [*open_proposers(choice)]
    if draft is not None:
        proposers.append(draft.proposer)
    return Speculating(proposers, scheduler) if proposers else None


def make_draft(
    settings: EngineSettings, served: Served, chain: ChainRunner, threads: int, progress: Progress | None = None
) -> Draft | None:
    """The draft model that the option names, on the threads of the served one; ``None`` for none. Raises ``invalid_setting``."""
    name = choose_proposers(settings.speculation).draft
    if not name:
        return None
    kv = kv_format("auto", settings.device)

    def make(model: OpenModel) -> ChainRunner:
        from headrace.kernels.native_chain import NativeChain

        return make_chain(model, settings.device, chain.pool if isinstance(chain, NativeChain) else threads, kv)

    def measure(model: OpenModel, own: ChainRunner, arena: Arena) -> Calibration:
        identity = {"model": model.name, "device": settings.device, "weights": "auto", "threads": threads, "kv": kv}
        return _calibration(own, arena, identity)

    return open_draft(name, served, Openers(make, measure, partial(make_sampler, threads=threads), progress))


def make_adapting(scheduler: Scheduler, arena: Arena, model: OpenModel) -> Adapting:
    """Adapters of a model in the pool of its keys and values."""
    return Adapting(scheduler, Adapters(model.config, scheduler.adapters.store, arena.rows, partial(check_base, model.weights)))


def make_training(scheduler: Scheduler, arena: Arena, model: OpenModel, threads: int, context: int) -> Training:
    """Fine-tuning of a model on its weights as they are served, in pages of its pool: half of it at most, one context less."""
    pool, settings = scheduler.pool, scheduler.settings
    leave = max(pool.lasting // 2, pool.pages_for(context))
    target = settings.gap_target_ms / 1000 if settings.gap_target_ms is not None else None
    bound = scheduler.budget.seconds if scheduler.budget.seconds is not None else math.inf
    backbone = partial(Backbone, model.config, model.weights, matrices=partial(packed_again, model))
    parts = TrainingParts(
        model.config, backbone, pool, arena.rows, threads, leave, target, bound, partial(check_base, model.weights)
    )
    training = Training(parts)
    scheduler.lent = training.holders
    return training


def keep_folder() -> Path:
    """Where pages of prompts are kept."""
    return cache_dir() / "prefix"


def keep_options(settings: EngineSettings, arena: Arena) -> KeepOptions | None:
    """The disk below the prefix index as the settings want it; ``None``: there is none.

    Raises ``invalid_setting`` for a cache folder that can't be used, or that lies in RAM.
    """
    if settings.prefix_disk_gib is None:
        return None
    folder = keep_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise HeadraceError("invalid_setting", f"can't keep pages in {folder}: {error}", param="prefix_disk_gib") from None
    if lies_in_memory(folder):
        message = f"{folder} lies in RAM, where keeping pages frees nothing: set XDG_CACHE_HOME to a folder on a disk"
        raise HeadraceError("invalid_setting", message, param="prefix_disk_gib")
    page = slot_bytes(arena.page_bytes)
    return KeepOptions(max(1, settings.prefix_disk_gib * 2**30 // page), page, max(1, PIECE_BYTES // page))


def make_keeping(scheduler: Scheduler, arena: Arena, folder: Path, identity: str) -> DiskKeeping | None:
    """What carries a scheduler's kept pages; ``None``, with a warning, while another server uses the files."""
    assert scheduler.keeping is not None, "a scheduler that keeps"
    try:
        file = KeptFile(arena, (folder, identity), scheduler.keeping.pages.slots.total, scheduler.pool.page_tokens, page_checksum())
    except BlockingIOError:
        logger.warning("another server uses the kept pages of this model; this one keeps none")
        scheduler.keep_nothing()
        return None
    return DiskKeeping(scheduler, file)


def _calibration(chain: ChainRunner, arena: Arena, identity: dict[str, object]) -> Calibration:
    known: dict[str, object] = {"cpu": cpu_name(), "version": __version__, "kernels": kernels_id(), **identity}
    path = store_path(cache_dir(), known)
    stored = load(path)
    if stored is not None:
        return stored
    measured = calibrate(chain, arena.bytes)
    save(path, measured)
    return measured
