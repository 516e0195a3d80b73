"""The engine's options: what it loads and how much of the machine it may use."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.models.recoding import WEIGHTS
from headrace.scheduling.swapping import PREEMPTION
from headrace.settings.declaration import option, validate
from headrace.speculation.proposers import PROPOSERS, choose_proposers


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Which models. Every verb takes one; `headrace serve` takes several."""

    model: tuple[str, ...] = option(
        ("smollm2",),
        help="A name from `headrace list`, a GGUF file, or a folder. `serve` takes several; NAME=MODEL gives one a name.",
    )

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Options of one engine. Raises HeadraceError ``invalid_setting`` for a value out of bounds."""

    model: str = option("smollm2", help="A name from `headrace list`, a GGUF file, or a folder with safetensors.", public=False)
    device: str = option(
        "cpu", choices=("cpu", "torch"), help="cpu: own native kernels. torch: torch blocks in fp32 (extra `torch`)."
    )
    weights: str = option(
        "auto", choices=WEIGHTS,
        help="What matrices become. a16, a8: own codes (floats: w8) by rows of 16 or 8 bits. auto: a16. w8, w4: 8, 4 bits. bf16.",
    )  # fmt: skip
    threads: int | None = option(None, minimum=1, maximum=256, help="Compute threads. Default: the cores this process may use.")
    pool_mib: int | None = option(
        None, unit="MiB", minimum=1, maximum=4_194_304,
        help="Memory for KV pages, of all models. Default: what 8 full contexts need, at most a quarter of the machine's memory.",
    )  # fmt: skip
    context_length: int | None = option(
        None, unit="tokens", minimum=16, maximum=1_048_576, help="Longest prompt plus output. Default: the model's own limit."
    )
    kv: str = option(
        "auto", choices=("auto", "bf16", "kv8", "kv4"),
        help="How keys and values rest in pages: 16, 8 or 4 bits a value. auto: bf16 (torch: fp32). Fewer bits hold more tokens.",
    )  # fmt: skip
    preempt: str = option(
        "auto",
        choices=PREEMPTION,
        help="What a request does that must give its pages back: leave with them for the disk, or recompute.",
    )
    swap_gib: int | None = option(
        None,
        unit="GiB",
        minimum=1,
        maximum=65_536,
        help="Disk for swapped pages. Default: 4 pools, at most a quarter of what is free.",
    )
    swap_dir: str | None = option(None, help="Folder of the swap file, which has no name. Default: headrace's cache folder.")
    prefix_disk_gib: int | None = option(
        None, unit="GiB", minimum=1, maximum=65_536,
        help="Disk in headrace's cache folder that keeps pages of prompts, also for the next start. Default: none.",
    )  # fmt: skip
    speculation: str = option(
        "auto", help="Guess tokens and verify several in one step. auto: where it pays. off. Or proposers, with commas between: "
        f"{', '.join(PROPOSERS.names)}, and draft:MODEL, a smaller model of the same vocabulary, which may stand beside auto.",
    )  # fmt: skip
    seed: int = option(0, minimum=0, maximum=2**63 - 1, help="Base mixed into the seed of every request.")

    def __post_init__(self) -> None:
        validate(self)
        choose_proposers(self.speculation)
