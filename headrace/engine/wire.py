"""Messages between the API process and the engine process: msgspec structs in length-capped msgpack frames."""

from __future__ import annotations

from typing import Literal

import msgspec

from headrace.engine.lending_wire import Allow, Lending
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.settings import EngineSettings
from headrace.engine.training_wire import (
    StartTraining,
    StopTraining,
    TrainingCheckpoint,
    TrainingEnded,
    TrainingGauges,
    TrainingProgress,
)
from headrace.engine.watch_wire import StepReport, Watch
from headrace.scheduling.settings import SchedulingSettings

FinishReason = Literal["stop", "length", "cancelled", "deadline", "error"]
MAX_FRAME_BYTES = 64 * 1024 * 1024
MOST_ADAPTERS, MOST_SCALE = 8, 1000.0  # of one request


class Instance(msgspec.Struct, frozen=True):
    """Which of several engines this is. It may use ``cores`` only (none: any), and takes pages from who proves ``key``.

    ``address``: a unix socket to be made, or ``fd=N``, an inherited TCP socket.
    """

    number: int
    cores: list[int]
    address: str
    key: bytes


class Start(msgspec.Struct, tag="start", frozen=True):
    """The first message to an engine process: what to load. Answered by Ready or Failed."""

    settings: EngineSettings
    scheduling: SchedulingSettings = msgspec.field(default_factory=SchedulingSettings)
    instance: Instance | None = None
    lending: Lending | None = None


class AdapterUse(msgspec.Struct, frozen=True, array_like=True):
    """One adapter of a request: what it adds is multiplied by ``scale``. ``generation`` is that of its :class:`AdapterCard`."""

    generation: int
    scale: float = 1.0


class Submit(msgspec.Struct, tag="submit", frozen=True):
    """Start a request. ``deadline`` is seconds from arrival. ``embed`` asks for the pooled hidden state only.

    ``priority``: −8 … 8, more goes first; age makes up for it (:func:`headrace.scheduling.item.order_of`).
    ``tenant``: whose pages it may reuse; only requests with the same name ever meet. ``share``: who pays for it where shares are
    served fairly, and ``weight`` (1 … 1000) how much that share is due beside others. ``adapters`` are added up in that order.
    ``speculation``: most tokens drafted for one step (``None``: as many as pay; 0: none). ``prediction``: tokens that the caller
    expects to get, as drafts.
    """

    request_id: int
    prompt: list[int]
    params: SamplingParams
    deadline: float | None = None
    embed: bool = False
    priority: int = 0
    tenant: str = ""
    share: str = ""
    weight: int = 1
    adapters: list[AdapterUse] = msgspec.field(default_factory=list)
    speculation: int | None = None
    prediction: list[int] = msgspec.field(default_factory=list)


class Cancel(msgspec.Struct, tag="cancel", frozen=True):
    """Stop a request (or one of its choices) and give its pages back within one step. Unknown ids are ignored."""

    request_id: int
    choice: int | None = None


class Drain(msgspec.Struct, tag="drain", frozen=True):
    """Finish what runs, take nothing new, then exit 0."""


class RegisterAdapter(msgspec.Struct, tag="register_adapter", frozen=True):
    """Give a PEFT folder a name; what had the name stays for the requests that use it. Answered by AdapterAnswer.

    ``expected_generation``: the generation that must have the name now (0: none may), else ``adapter_conflict``. ``pin``: load it
    now and keep it in memory. ``check_values``: read its numbers, too, so that one that is none is found now and not at first use.
    """

    call_id: int
    name: str
    folder: str
    expected_generation: int | None = None
    pin: bool = False
    check_values: bool = False


class RemoveAdapter(msgspec.Struct, tag="remove_adapter", frozen=True):
    """Take a name away; requests under way keep their adapter. Answered by AdapterAnswer with the card as it was."""

    call_id: int
    name: str
    expected_generation: int | None = None


class PinAdapter(msgspec.Struct, tag="pin_adapter", frozen=True):
    """Load an adapter and keep it in memory, or no longer. Answered by AdapterAnswer, at once: loading may still go on."""

    call_id: int
    name: str
    pinned: bool


class ListAdapters(msgspec.Struct, tag="list_adapters", frozen=True):
    """Ask for the cards of all adapters that have names. Answered by AdapterList."""

    call_id: int


class AdapterCard(msgspec.Struct, frozen=True):
    """What is known of one generation of an adapter.

    ``pages`` and ``bytes``: what it takes in the pool while it is there. ``state``: ``registered``, ``loading``, ``resident``, or
    ``pinned`` while requests use it or an operator has ``pinned`` it. ``rank``: the largest of its ``modules``, which are those of
    any layer. ``base_model``: what its file says. ``waiting``: requests that have it and have not ended; ``uses``: all so far.
    """

    name: str
    generation: int
    pages: int
    bytes: int
    state: str
    pinned: bool
    rank: int
    modules: list[str]
    parameters: int
    base_model: str
    folder: str
    waiting: int = 0
    uses: int = 0


class AdapterAnswer(msgspec.Struct, tag="adapter", frozen=True):
    """The end of one call about an adapter: its card, or (``card`` is ``None``) a row of the error table."""

    call_id: int
    card: AdapterCard | None
    code: str = ""
    message: str = ""
    param: str | None = None


class AdapterList(msgspec.Struct, tag="adapters", frozen=True):
    """The adapters that have names, in order of their generations."""

    call_id: int
    cards: list[AdapterCard]


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Logprob of one token and the best alternatives as (token, logprob), best first."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


class TokenOutput(msgspec.Struct, frozen=True, array_like=True):
    """What one choice of one request got in one step. ``finish`` set means: nothing more comes for this choice.

    ``tokens`` and ``logprobs`` leave out the token that stopped the choice; ``stop_token`` names it. ``prompt_logprobs``
    (prompt tokens 1 …, the first has none) come once, with the request's first output. ``embedding`` has length 1 (L2).

    ``queue_seconds``, in the request's first output: from arrival until a step first computed something of it; and
    ``cached_tokens``: of the prompt, those whose pages were found instead of computed.

    ``drafted``: tokens that were proposed and verified for this output; ``accepted``: those of them that it has.
    """

    request_id: int
    choice: int
    tokens: list[int]
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    finish: FinishReason | None = None
    stop_token: int | None = None
    cached_tokens: int = 0
    embedding: list[float] | None = None
    queue_seconds: float | None = None
    drafted: int = 0
    accepted: int = 0


class MoveGauges(msgspec.Struct, frozen=True):
    """Moves between the page pool and the tier below it. Everything but under_way and stored_pages only grows.

    ``writes`` and ``reads``: pieces of adjacent pages. ``reused_pages`` left without being written, because the tier held
    them already. ``rescues``: sequences that came back without any copy. ``wait_seconds``: the engine waited for pages.
    """

    under_way: int = 0
    stored_pages: int = 0
    written_pages: int = 0
    writes: int = 0
    read_pages: int = 0
    reads: int = 0
    reused_pages: int = 0
    rescues: int = 0
    failures: int = 0
    wait_seconds: float = 0.0
    page_bytes: int = 0


class ViewGauges(msgspec.Struct, frozen=True):
    """Contiguous views. ``ranges`` (of live sequences) and ``maps`` (mappings of the system) go up and down, the others only grow.

    ``shown_pages`` were shown when a step needed them, ``ahead_pages`` beside the step before; ``kept_pages`` stood in a new
    sequence's range already. ``refused``: sequences read through their tables for want of a range or of mappings;
    ``reclaimed``: resting ranges cleared for others. ``inline_seconds``: steps waited for their views, ``beside_seconds``: they
    did not.
    """

    ranges: int = 0
    maps: int = 0
    shown_pages: int = 0
    kept_pages: int = 0
    ahead_pages: int = 0
    refused: int = 0
    reclaimed: int = 0
    failures: int = 0
    inline_seconds: float = 0.0
    beside_seconds: float = 0.0


class KeptGauges(msgspec.Struct, frozen=True):
    """Pages that a disk keeps for later prompts. Everything but stored_pages and total_pages only grows.

    ``hits``: requests that got pages from the disk; ``failures``: pieces that could not be written or read.
    """

    stored_pages: int = 0
    total_pages: int = 0
    written_pages: int = 0
    read_pages: int = 0
    hits: int = 0
    failures: int = 0
    page_bytes: int = 0


class AdapterGauges(msgspec.Struct, frozen=True):
    """Adapters. ``loads``, ``evictions`` and ``failures`` (of loads) only grow; ``adapter_pages``: what all of them hold.

    ``load_seconds``: time spent reading them, beside the steps.
    """

    registered: int = 0
    resident: int = 0
    loading: int = 0
    adapter_pages: int = 0
    loads: int = 0
    evictions: int = 0
    failures: int = 0
    load_seconds: float = 0.0
    page_bytes: int = 0


class SpeculationGauges(msgspec.Struct, frozen=True):
    """Drafted tokens; everything only grows.

    ``proposed``: by proposers; ``drafted``: those that steps verified; ``accepted``: those that were right; ``foreseen``: how many
    were expected to be. ``streams_N``: times that a stream had a draft of up to N tokens verified and more than the next smaller N
    (``streams_0``: none). ``seconds``: spent on proposing.
    """

    proposed: int = 0
    drafted: int = 0
    accepted: int = 0
    foreseen: float = 0.0
    seconds: float = 0.0
    streams_0: int = 0
    streams_1: int = 0
    streams_2: int = 0
    streams_4: int = 0
    streams_8: int = 0
    streams_16: int = 0
    streams_32: int = 0


class LoadGauges(msgspec.Struct, frozen=True):
    """What an engine tells of its load to whoever spreads requests over several. ``taken``, ``moved_in``, ``moved_out`` only grow.

    ``taken``: requests received so far, so that the other side knows which of those it sent are in these numbers. ``head_pages``:
    what the first to wait needs; ``queue_pages``: all that wait. ``urgent``: running items of a priority above 0. ``live``: all
    requests. ``available``: pages that nobody holds or was promised.
    """

    taken: int = 0
    head_pages: int = 0
    queue_pages: int = 0
    urgent: int = 0
    live: int = 0
    moved_in: int = 0
    moved_out: int = 0
    available: int = 0


class Gauges(msgspec.Struct, frozen=True):
    """The engine's state after a step, for metrics and health.

    Everything but running, waiting, pages_free and pages_cached only grows. ``step_seconds``: whole steps; ``overhead_seconds``:
    the part of them outside the model (plan, assemble, sample, commit). ``moves``: ``None`` when nothing is ever swapped;
    ``views``: ``None`` when pages are read through tables only; ``kept``: when no disk keeps any;
    ``adapters``: when none was ever registered; ``training``: when nothing was ever trained; ``speculation``: when nothing is
    ever drafted.
    """

    running: int = 0
    waiting: int = 0
    pages_total: int = 0
    pages_free: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    overhead_seconds: float = 0.0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    recomputed_tokens: int = 0
    moves: MoveGauges | None = None
    pages_cached: int = 0
    prefix_lookups: int = 0
    prefix_found_tokens: int = 0
    prefix_evictions: int = 0
    views: ViewGauges | None = None
    kept: KeptGauges | None = None
    adapters: AdapterGauges | None = None
    training: TrainingGauges | None = None
    speculation: SpeculationGauges | None = None
    load: LoadGauges | None = None


class StepOutputs(msgspec.Struct, tag="outputs", frozen=True):
    """Everything a step produced, in one message; with a report of it while somebody watches."""

    outputs: list[TokenOutput]
    gauges: Gauges
    report: StepReport | None = None


class Refused(msgspec.Struct, tag="refused", frozen=True):
    """The engine can't run a request: ``code`` is a row of the error table."""

    request_id: int
    code: str
    message: str
    param: str | None = None


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """The engine has loaded its model and serves. ``identity``: what engines of several machines must have in common."""

    model: str
    context_length: int
    vocab: int
    hidden: int
    pages_total: int
    page_tokens: int
    load_seconds: float
    identity: str = ""


class Failed(msgspec.Struct, tag="failed", frozen=True):
    """The engine can't go on (or could not start): the last message before a non-zero exit."""

    code: str
    message: str


AdapterCall = RegisterAdapter | RemoveAdapter | PinAdapter | ListAdapters
EngineInbound = Start | Submit | Cancel | Drain | Watch | AdapterCall | StartTraining | StopTraining | Allow
EngineOutbound = (
    StepOutputs | Refused | Ready | Failed | AdapterAnswer | AdapterList | TrainingProgress | TrainingCheckpoint | TrainingEnded
)
