"""What fewer bits cost, on real text that nothing was calibrated on: against the file's own values in fp32."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from headrace.evaluation.experiment import Claim, Conditions
from headrace.evaluation.quality import Quality, Text, compare_many, even_windows, real_text
from headrace.evaluation.rounded_weights import plain
from headrace.kernels.interface import ChainRunner, KvFormat
from headrace.kernels.native_chain import NativeChain
from headrace.models.catalog import OpenModel, find_model, open_model
from headrace.models.recoding import recode
from headrace.text.open_tokenizer import open_tokenizer

_WINDOW = 512
_WINDOWS = 100  # 51,200 tokens, for the default format
_SPARSE = 10  # the other formats read each so manieth window: their limits are wider than what that leaves uncertain
_LIMITS: dict[str, tuple[float, float]] = {"bf16": (0.01, 1.02), "a8": (0.01, 1.02), "kv8": (0.01, 1.02), "kv4": (0.02, 1.05)}


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to measure, what forms of keys and values, and each how manieth position is scored."""

    model: str
    forms: tuple[KvFormat, ...]
    every: int


SUBJECTS = (Subject("smollm2-135m-instruct", ("bf16", "kv8", "kv4"), 8), Subject("gemma-3-270m", ("bf16", "kv8", "kv4"), 16))


def quality(conditions: Conditions, subject: Subject) -> list[Claim]:
    """KL and perplexity of the model's own codes with 16-bit rows, keys and values in each form, and with 8-bit rows."""
    opened = open_model(find_model(subject.model))
    found = _measure(conditions, opened, subject)
    claims = []
    for kv, one in found.items():
        most_kl, most_ratio = _LIMITS[kv]
        form = "bf16, rows of 8 bits" if kv == "a8" else kv
        name = f"{subject.model}, weights as the file has them, {form}"
        tokens = one.positions * subject.every
        note = f"about {tokens:,} tokens read, {one.positions:,} positions scored, "
        note += f"top-1 {100 * one.top1_agreement:.2f} %, p99 {one.p99_kl:.2g}"
        short = f"{'gemma' if 'gemma' in subject.model else 'smollm2'}_{kv}"
        claims.append(Claim(f"kl_{short}", f"{name}: mean KL", "<=", most_kl, one.mean_kl, "nats", note))
        ratio = f"{one.candidate_perplexity:.3f} / {one.reference_perplexity:.3f}"
        claims.append(
            Claim(f"perplexity_{short}", f"{name}: perplexity / fp32", "<=", most_ratio, one.perplexity_ratio, "x", ratio)
        )
    return claims


def _measure(conditions: Conditions, opened: OpenModel, subject: Subject) -> dict[str, Quality]:
    tokenizer = open_tokenizer(opened.tokenizer_source)
    windows = even_windows(tokenizer.encode(real_text()), _WINDOW, 2 if conditions.quick else _WINDOWS)
    threads = conditions.threads or 2
    # The reference keeps keys and values in bf16, as the default does: attention has no fp32 pages.
    reference = NativeChain(opened.config, plain(opened.weights), threads)
    chains: dict[str, ChainRunner] = {kv: NativeChain(opened.config, opened.weights, threads, kv=kv) for kv in subject.forms}
    chains["a8"] = NativeChain(opened.config, recode(opened.weights, "a8"), threads)
    sparse: dict[str, int] = {form: 1 if form == "bf16" or conditions.quick else _SPARSE for form in chains}
    text = Text(windows, tokenizer.bos_id if tokenizer.add_bos else None, subject.every, sparse)
    report = partial(conditions.report, f"quality of {subject.model}")
    return compare_many(reference, chains, text, report)
