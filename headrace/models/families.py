"""Model families as rows of a table: what a family adds to the common chain of attention and gated MLP blocks."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.models.config import Activation, AttentionSpec, MlpSpec, ModelConfig, Pooling, RopeScaling
from headrace.models.files import refuse
from headrace.settings.nearest import suggestion


@dataclass(frozen=True, slots=True)
class Family:
    """What distinguishes one family of models; everything else comes from the file.

    ``architectures`` are its names in GGUF files, ``model_types`` in ``config.json``.
    ``interleaved``: GGUF files store query and key rows for rotary pairs of neighbours.
    ``gain_offset``: added to the norm gains of safetensors files (GGUF files have it added already).
    ``scale_embedding``: embedding rows are multiplied by sqrt(hidden).
    ``window_default``: whether a declared window holds when ``config.json`` does not say if it is used.
    ``window_period``: every n-th layer sees all keys although a window is declared (``None``: the window holds for all).
    ``local_theta``: rotary base of windowed layers (``None``: as the others). ``head_dim``: where ``config.json`` omits it.
    """

    name: str
    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    activation: Activation = "silu"
    activation_name: str = "silu"
    interleaved: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    post_norm: bool = False
    gain_offset: float = 0.0
    scale_embedding: bool = False
    window_default: bool = True
    window_period: int | None = None
    local_theta: float | None = None
    head_dim: int | None = None
    tied_default: bool = False


FAMILIES: tuple[Family, ...] = (
    Family("llama", ("llama",), ("llama",), interleaved=True),
    Family("mistral", ("mistral",), ("mistral",), interleaved=True),
    Family("qwen2", ("qwen2",), ("qwen2",), qkv_bias=True, window_default=False),
    Family("qwen3", ("qwen3",), ("qwen3",), qk_norm=True, window_default=False),
    Family(
        "gemma3",
        ("gemma3",),
        ("gemma3_text",),
        activation="gelu_tanh",
        activation_name="gelu_pytorch_tanh",
        qk_norm=True,
        post_norm=True,
        gain_offset=1.0,
        scale_embedding=True,
        window_period=6,
        local_theta=10_000.0,
        head_dim=256,
        tied_default=True,
    ),
)


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary base and scaling of one kind of layer."""

    theta: float
    scaling: RopeScaling | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What a file declares about a model, in one form for every file format.

    ``windows``: per layer, keys seen including the query's own (``None``: all). ``local_rope`` is for windowed layers.
    ``scale``: multiplies Q·K. ``pooling``: of a model that makes vectors of texts.
    """

    hidden: int
    vocab: int
    context_length: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    norm_eps: float
    scale: float
    windows: tuple[int | None, ...]
    rope: Rope
    local_rope: Rope
    tied_head: bool
    bos_id: int | None
    eos_ids: tuple[int, ...]
    pooling: Pooling | None = None


def family_of_architecture(name: str) -> Family:
    """The family of a GGUF architecture; ``model_file`` names the known ones."""
    return _find(name, {alias: family for family in FAMILIES for alias in family.architectures})


def family_of_model_type(name: str) -> Family:
    """The family of a ``config.json`` model type; ``model_file`` names the known ones."""
    return _find(name, {alias: family for family in FAMILIES for alias in family.model_types})


def _find(name: str, known: dict[str, Family]) -> Family:
    if name not in known:
        listed = ", ".join(sorted(known))
        raise refuse(f"architecture {name[:64]!r} is not supported; known are {listed}{suggestion(name, known)}")
    return known[name]


def build_config(family: Family, facts: Facts) -> ModelConfig:
    """The chain that a family's rules make of a file's facts."""
    if facts.heads % facts.kv_heads:
        raise refuse(f"{facts.heads} query heads can't share {facts.kv_heads} key heads evenly")
    if facts.head_dim % 2:
        raise refuse(f"head dimension {facts.head_dim} is odd, rotary positions need pairs")
    mlp = MlpSpec(facts.inner, family.activation, family.post_norm)
    blocks: list[AttentionSpec | MlpSpec] = []
    for window in facts.windows:
        rope = facts.rope if window is None else facts.local_rope
        blocks += (_attention(family, facts, rope, window), mlp)
    return ModelConfig(
        family=family.name,
        hidden=facts.hidden,
        vocab=facts.vocab,
        context_length=facts.context_length,
        norm_eps=facts.norm_eps,
        blocks=tuple(blocks),
        embedding_scale=facts.hidden**0.5 if family.scale_embedding else 1.0,
        tied_head=facts.tied_head,
        bos_id=facts.bos_id,
        eos_ids=facts.eos_ids,
        pooling=facts.pooling,
    )


def _attention(family: Family, facts: Facts, rope: Rope, window: int | None) -> AttentionSpec:
    return AttentionSpec(
        heads=facts.heads,
        kv_heads=facts.kv_heads,
        head_dim=facts.head_dim,
        scale=facts.scale,
        rope_theta=rope.theta,
        rope_scaling=rope.scaling,
        window=window,
        qk_norm=family.qk_norm,
        qkv_bias=family.qkv_bias,
        post_norm=family.post_norm,
    )


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor the model needs, by canonical name, with its shape."""
    hidden = config.hidden
    shapes: dict[str, tuple[int, ...]] = {"embedding": (config.vocab, hidden)}
    layer = -1
    for block in config.blocks:
        if isinstance(block, AttentionSpec):
            layer += 1
            named = _attention_tensors(block, hidden)
        else:
            named = {"norm": (hidden,), "gate": (block.inner, hidden), "up": (block.inner, hidden), "down": (hidden, block.inner)}
        if block.post_norm:
            named["post_norm"] = (hidden,)
        part = "attention" if isinstance(block, AttentionSpec) else "mlp"
        shapes.update({f"layer.{layer}.{part}.{name}": shape for name, shape in named.items()})
    shapes["final_norm"] = (hidden,)
    if not config.tied_head:
        shapes["head"] = (config.vocab, hidden)
    return shapes


def _attention_tensors(block: AttentionSpec, hidden: int) -> dict[str, tuple[int, ...]]:
    queries, keys = block.heads * block.head_dim, block.kv_heads * block.head_dim
    named: dict[str, tuple[int, ...]] = {
        "norm": (hidden,),
        "q": (queries, hidden),
        "k": (keys, hidden),
        "v": (keys, hidden),
        "o": (hidden, queries),
    }
    if block.qkv_bias:
        named |= {"q_bias": (queries,), "k_bias": (keys,), "v_bias": (keys,)}
    if block.qk_norm:
        named |= {"q_norm": (block.head_dim,), "k_norm": (block.head_dim,)}
    return named


def check_names(wanted: dict[str, str], present: set[str], ignorable: set[str]) -> None:
    """Refuse a file that lacks a tensor of ``wanted`` (canonical → file name) or has one that no block would use."""
    for canonical, name in wanted.items():
        if name not in present:
            raise refuse(f"tensor {name!r} ({canonical}) is missing")
    extra = sorted(present - set(wanted.values()) - ignorable)
    if extra:
        raise refuse(f"tensor {extra[0][:128]!r} belongs to no part of this family; the file has a feature that is not supported")
