"""What a quantisation does: grid, activation bits and the steps of the recipe, in their one order."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.errors import HeadraceError
from headrace.models.config import ModelConfig
from headrace.quantization.hadamard import hadamard, is_known
from headrace.settings.nearest import suggestion

STEPS: dict[str, str] = {
    "rotate": "residual stream turned by a Hadamard matrix",
    "rotate-heads": "each head's values turned by a Hadamard matrix",
    "smooth-attention": "outliers moved from keys to queries",
    "reorder": "inner channels of the MLP sorted by size",
    "smooth": "outliers moved from activations to weights",
    "clip": "extremes of a group cut off where that pays",
    "gptq": "rounding with error feedback",
}
"""The steps in the order in which they are done, and what each one is."""
ACTIVATIONS: dict[str, dict[str, int]] = {
    "8": {},
    "mixed": {"down": 16},
    "16": dict.fromkeys(("qkv", "o", "gate_up", "down"), 16),
}
"""Which kinds of rows take 16 bits where the others take 8. What enters ``down`` has outliers that no rotation reaches."""
_ACTIVATION_WORDS = {"8": "8-bit", "mixed": "8-bit (down: 16-bit)", "16": "16-bit"}
WIDE_STEPS = ("smooth-attention", "clip", "gptq")
"""What pays where activations keep 16 bits: rotations help rows of 8 bits, but dissolve the grid of a source of 4 bits."""
GROUPS = {"32": 32, "64": 64, "128": 128, "channel": 0}
SOURCE_GROUP = "source"
"""Where a group is named: the groups of 32 and the codes that a 4-bit file has already."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """``group``: inputs that share a 4-bit group's scale; 0: 8-bit codes with one scale an output channel.

    ``activations``: one of :data:`ACTIVATIONS`; the head always takes 16 bits. ``steps``: names of :data:`STEPS`.
    ``own_codes``: a 4-bit source keeps its codes, in its groups of 32, and no steps are possible.
    """

    group: int = 64
    activations: str = "16"
    steps: tuple[str, ...] = ()
    own_codes: bool = False

    def __contains__(self, step: str) -> bool:
        return step in self.steps

    def row_bits(self, kind: str) -> int:
        """Bits of the rows that meet the matrices ``kind``: qkv, o, gate_up or down."""
        return ACTIVATIONS[self.activations].get(kind, 8)

    @property
    def calibrated(self) -> bool:
        """Whether any step looks at activations."""
        return bool({"smooth-attention", "reorder", "smooth", "clip", "gptq"} & set(self.steps))

    def describe(self) -> str:
        """In a few words."""
        if self.own_codes:
            return f"the source's own 4-bit codes, {_ACTIVATION_WORDS[self.activations]} activations"
        bits = f"4-bit groups of {self.group}" if self.group else "8 bits per channel"
        return f"{bits}, {_ACTIVATION_WORDS[self.activations]} activations, steps: {', '.join(self.steps) or 'plain rounding'}"


def parse_recipe(group: str, activations: str, steps: str, config: ModelConfig) -> Recipe:
    """A recipe from the names of its parts. Raises ``invalid_setting`` for what can't be done."""
    if group != SOURCE_GROUP:
        return Recipe(GROUPS[group], activations, parse_steps(steps, config, activations))
    if steps not in ("auto", "none"):
        raise HeadraceError(
            "invalid_setting", "steps: group source keeps the codes as they are and takes no steps; leave them out", param="steps"
        )
    return Recipe(32, activations, (), own_codes=True)


def possible_steps(config: ModelConfig) -> tuple[str, ...]:
    """Every step that a model allows."""
    rotatable = not any(block.post_norm for block in config.blocks) and is_known(config.hidden)
    heads = all(is_known(spec.head_dim) for spec in config.attention_blocks)
    left_out = ({"rotate"} if not rotatable else set()) | ({"rotate-heads"} if not heads else set())
    return tuple(step for step in STEPS if step not in left_out)


def parse_steps(text: str, config: ModelConfig, activations: str) -> tuple[str, ...]:
    """``auto``, ``all``, ``none``, or names joined by commas, into their order. Raises ``invalid_setting`` for what can't be done.

    ``auto``: all that the model allows, but with 16-bit ``activations`` only those of :data:`WIDE_STEPS`.
    """
    if text == "auto" and activations == "16":
        return WIDE_STEPS
    if text in ("all", "auto"):
        return possible_steps(config)
    names = [] if text == "none" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in STEPS:
            known = ", ".join(STEPS)
            raise HeadraceError(
                "invalid_setting", f"steps: unknown step '{name[:40]}'; known are {known}{suggestion(name, STEPS)}", param="steps"
            )
    _check_possible(names, config)
    return tuple(step for step in STEPS if step in names)


def check_group(group: int, config: ModelConfig) -> None:
    """Refuse a group that does not divide every matrix's inputs, naming those that do."""
    if not group:
        return
    sizes = {config.hidden: "the hidden size"}
    for block in config.blocks:
        inputs = block.inner if hasattr(block, "inner") else block.heads * block.head_dim
        sizes.setdefault(inputs, "the MLP's inner size" if hasattr(block, "inner") else "the heads' size together")
    for size, what in sizes.items():
        if size % group:
            good = [name for name, other in GROUPS.items() if not other or not any(one % other for one in sizes)]
            raise HeadraceError(
                "invalid_setting",
                f"group {group} does not divide {what} {size} of this model; usable are {', '.join(good)}",
                param="group",
            )


def _check_possible(names: list[str], config: ModelConfig) -> None:
    if "rotate" in names and any(block.post_norm for block in config.blocks):
        raise HeadraceError(
            "invalid_setting",
            f"steps: {config.family} models can't rotate their residual stream (norms behind the blocks weigh its axes);"
            f" possible are {','.join(possible_steps(config))}",
            param="steps",
        )
    if "rotate" in names:
        hadamard(config.hidden)
    if "rotate-heads" in names:
        for spec in config.attention_blocks:
            hadamard(spec.head_dim)
