"""The native sampler against a slow oracle in numpy, on random requests, and its statistics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.kernels.interface import Float32
from headrace.kernels.sampler import MAX_TOP, NOT_A_NUMBER, NOTHING_ALLOWED, OK, Sampler, SampleTables, neutral_request

MASK32 = 0xFFFFFFFF
AMBIGUOUS = 2e-5  # nearer than this to a border, single and double precision may differ


def request(**fields: float) -> npt.NDArray[np.void]:
    record = neutral_request()
    for name, value in fields.items():
        record[name] = value
    return record


def philox_uniform(seed: int, index: int, choice: int, base: int = 0) -> float:
    c, k = [index, choice, base & MASK32, base >> 32], [seed & MASK32, seed >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & MASK32, (a >> 32) ^ c[3] ^ k[1], a & MASK32]
        k = [(k[0] + 0x9E3779B9) & MASK32, (k[1] + 0xBB67AE85) & MASK32]
    return ((c[0] << 21) ^ (c[1] >> 11)) / 2**53


@dataclass
class Case:
    logits: Float32
    record: npt.NDArray[np.void]
    prompt: list[int]
    output: list[int]
    bias: dict[int, float]
    allowed: npt.NDArray[np.bool_] | None

    def tables(self) -> SampleTables:
        masks = np.zeros((0, 0), np.uint32)
        if self.allowed is not None:
            bits = np.zeros((len(self.logits) + 31) // 32 * 32, np.uint8)
            bits[: len(self.logits)] = self.allowed
            masks = np.packbits(bits, bitorder="little").view(np.uint32).reshape(1, -1)
        return SampleTables(
            np.array(self.prompt + self.output, np.int32),
            np.array(list(self.bias), np.int32),
            np.array(list(self.bias.values()), np.float32),
            masks,
        )


def oracle_logits(case: Case) -> Float32:
    """The logits that are sampled from, in single precision."""
    r, z = case.record[0], case.logits.copy()
    for token in sorted(set(case.prompt + case.output)):
        z[token] = z[token] / r["repetition"] if z[token] > 0 else z[token] * r["repetition"]
    for token in sorted(set(case.output)):
        z[token] = z[token] - r["presence"] - r["frequency"] * np.float32(case.output.count(token))
    for token, value in case.bias.items():
        z[token] += np.float32(value)
    if case.allowed is not None:
        z[~case.allowed] = -np.inf
    return z


def oracle_token(case: Case) -> int | None:
    """The token, or None when rounding could decide."""
    r, z = case.record[0], oracle_logits(case)
    if r["temperature"] < 1e-6:
        return int(np.argmax(z))
    w = np.exp((z.astype(np.float64) - z.max()) / np.float64(r["temperature"]))
    order = np.lexsort((np.arange(len(z)), -w))
    kept = order
    if 0 < r["top_k"] < len(z):
        kept = order[: r["top_k"]]
    if r["top_p"] < 1:
        share = np.cumsum(w[kept]) / w[kept].sum()
        if np.abs(share - float(r["top_p"])).min() < AMBIGUOUS:
            return None
        kept = kept[: int(np.searchsorted(share, float(r["top_p"]))) + 1]
    if r["min_p"] > 0:
        if np.abs(w[kept] - float(r["min_p"])).min() < AMBIGUOUS:
            return None
        kept = kept[w[kept] >= float(r["min_p"])]
    ids = np.sort(kept)
    share = np.cumsum(w[ids]) / w[ids].sum()
    u = philox_uniform(int(r["seed"]), int(r["index"]), int(r["choice"]), int(r["base"]))
    if np.abs(share - u).min() < AMBIGUOUS:
        return None
    return int(ids[np.searchsorted(share, u, side="right")])


@st.composite
def cases(draw: st.DrawFn) -> Case:
    vocab = draw(st.integers(1, 900))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = (rng.standard_normal(vocab) * draw(st.sampled_from([0.1, 1.0, 4.0, 20.0]))).astype(np.float32)
    if draw(st.booleans()):
        logits = np.round(logits)  # many ties
    if draw(st.booleans()):
        logits[rng.random(vocab) < 0.3] = -np.inf
        logits[rng.integers(vocab)] = 1.0
    token = st.integers(0, vocab - 1)
    prompt, output = draw(st.lists(token, max_size=8)), draw(st.lists(token, max_size=8))
    bias = draw(st.dictionaries(token, st.floats(-100, 100, width=32), max_size=4))
    allowed = rng.random(vocab) < 0.5 if draw(st.booleans()) else None
    if allowed is not None:
        allowed[int(np.argmax(logits))] = True
    record = request(
        seed=draw(st.integers(0, 2**64 - 1)), base=draw(st.integers(0, 2**64 - 1)), choice=draw(st.integers(0, 15)),
        index=draw(st.integers(0, 10_000)), temperature=draw(st.sampled_from([0.0, 0.3, 1.0, 1.7])),
        top_k=draw(st.sampled_from([0, 1, 3, 40, 2000])), top_p=draw(st.sampled_from([1.0, 0.95, 0.5, 0.01])),
        min_p=draw(st.sampled_from([0.0, 0.02, 0.5, 1.0])), repetition=draw(st.sampled_from([1.0, 1.3, 0.7])),
        presence=draw(st.sampled_from([0.0, 0.5, -0.5])), frequency=draw(st.sampled_from([0.0, 0.3])),
        prompt_count=len(prompt), output_count=len(output), bias_count=len(bias),
        mask=-1 if allowed is None else 0, top_count=draw(st.sampled_from([-1, 0, 5, 20])),
    )  # fmt: skip
    return Case(logits, record, prompt, output, bias, allowed)


@settings(max_examples=250, deadline=None)
@given(cases())
def test_random_requests_agree_with_the_oracle(case: Case) -> None:
    vocab = len(case.logits)
    samples = Sampler(vocab).sample(case.logits.reshape(1, -1), case.record, case.tables())
    result = samples.records[0]
    if oracle_logits(case).max() == -np.inf:
        assert result["status"] == NOTHING_ALLOWED
        return
    assert result["status"] == OK
    expected = oracle_token(case)
    if expected is not None:
        assert result["token"] == expected
    wanted = int(case.record["top_count"][0])
    if wanted < 0:
        assert np.isnan(result["logprob"])
        return
    exact = case.logits.astype(np.float64)
    logprobs = exact - exact.max() - np.log(np.exp(exact - exact.max()).sum())
    assert np.isclose(result["logprob"], logprobs[result["token"]], rtol=1e-5, atol=1e-5)
    count = min(wanted, vocab, MAX_TOP)
    assert result["top_count"] == count
    best = np.lexsort((np.arange(vocab), -case.logits))[:count]
    assert samples.top_tokens[0, :count].tolist() == best.tolist()
    np.testing.assert_allclose(samples.top_logprobs[0, :count], logprobs[best], rtol=1e-5, atol=1e-5)


def test_rows_and_threads_change_nothing() -> None:
    rng = np.random.default_rng(3)
    logits = rng.standard_normal((24, 3001)).astype(np.float32) * 3
    records = np.concatenate([
        request(seed=i, row=i, temperature=0.9, top_p=(1.0, 0.9)[i % 2], top_k=(0, 50)[i // 2 % 2], top_count=3) for i in range(24)
    ])  # fmt: skip
    together = [Sampler(3001, threads).sample(logits, records) for threads in (1, 2)]
    for i in range(24):
        lonely = records[i : i + 1].copy()
        lonely["row"] = 0
        alone = Sampler(3001).sample(logits[i : i + 1], lonely)
        for samples in together:
            assert samples.records[i].tobytes() == alone.records[0].tobytes()
            assert samples.top_logprobs[i, :3].tobytes() == alone.top_logprobs[0, :3].tobytes()


@pytest.mark.parametrize("fields", [{}, {"top_p": 0.5}, {"top_k": 3}, {"min_p": 0.3}, {"temperature": 0.5}, {"temperature": 0.0}])
def test_filters_do_not_touch_the_raw_logprobs(fields: dict[str, float]) -> None:
    logits = np.random.default_rng(8).standard_normal((1, 1000)).astype(np.float32)
    plain = Sampler(1000).sample(logits, request(given=5, top_count=4))
    chosen = Sampler(1000).sample(logits, request(**({"temperature": 1.0, "top_count": 4} | fields)))
    assert chosen.top_logprobs[0, :4].tobytes() == plain.top_logprobs[0, :4].tobytes()
    token = chosen.records["token"][0]
    assert chosen.records["logprob"] == Sampler(1000).sample(logits, request(given=token, top_count=0)).records["logprob"]


def test_several_requests_may_share_a_row() -> None:
    logits = np.zeros((2, 50), np.float32)
    logits[1, 7] = 9.0
    records = np.concatenate([request(row=1), request(row=0), request(row=1, given=3, top_count=0)])
    tokens = Sampler(50).sample(logits, records).records["token"].tolist()
    assert tokens == [7, 0, 3]


@pytest.mark.parametrize(("fields", "share"), [({}, [0.5, 0.3, 0.15, 0.05]), ({"top_p": 0.8}, [0.625, 0.375, 0, 0]),
                                               ({"top_k": 3}, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
                                               ({"min_p": 0.25}, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0])])  # fmt: skip
def test_draws_follow_the_distribution(fields: dict[str, float], share: list[float]) -> None:
    draws = 20_000
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05]], np.float32))
    records = np.repeat(request(temperature=1.0, seed=11, **fields), draws)
    records["index"] = np.arange(draws)
    tokens = Sampler(4).sample(logits, records).records["token"]
    counts = np.bincount(tokens, minlength=4)
    expected = np.array(share) * draws
    assert (counts[expected == 0] == 0).all()
    seen = expected > 0
    assert float(((counts[seen] - expected[seen]) ** 2 / expected[seen]).sum()) < 22.0  # chi², 3 degrees: p < 1e-4


def test_seeds_choices_and_indices_are_independent_streams() -> None:
    logits = np.zeros((1, 1 << 12), np.float32)
    records = np.concatenate([
        request(temperature=1.0, seed=seed, choice=choice, index=index, base=base)
        for seed in (0, 1, 1 << 40) for choice in (0, 1) for index in (0, 1) for base in (0, 1, 1 << 35)
    ])  # fmt: skip
    tokens = Sampler(1 << 12).sample(logits, records).records["token"].tolist()
    assert len(set(tokens)) > 30  # 36 draws of 4096


def test_numbers_that_are_not_finite_fail_their_own_row_only() -> None:
    logits = np.zeros((4, 300), np.float32)
    logits[1, 299] = np.nan
    logits[2, 0] = np.inf
    logits[3, :] = -np.inf
    logits[0, :] = -np.inf
    logits[0, 42] = -5.0
    records = np.concatenate([request(row=row, temperature=0.7, top_count=2) for row in range(4)])
    result = Sampler(300).sample(logits, records).records
    assert result["status"].tolist() == [OK, NOT_A_NUMBER, NOT_A_NUMBER, NOT_A_NUMBER]
    assert result["token"].tolist() == [42, -1, -1, -1]
    assert result["logprob"][0] == 0.0


def test_nothing_allowed_is_told() -> None:
    masks = np.zeros((1, 10), np.uint32)
    result = Sampler(300).sample(np.zeros((1, 300), np.float32), request(mask=0), SampleTables(masks=masks)).records
    assert (result["status"][0], result["token"][0]) == (NOTHING_ALLOWED, -1)


@pytest.mark.parametrize(
    "fields",
    [
        {"row": 1}, {"row": -1}, {"given": 300}, {"mask": 0}, {"bias_count": 1}, {"prompt_count": 1}, {"history": -1},
        {"output_count": -1}, {"temperature": float("nan")}, {"repetition": 0.0},
    ],
)  # fmt: skip
def test_records_that_point_outside_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"row|token|mask|bias|history|temperature|repetition"):
        Sampler(300).sample(np.zeros((1, 300), np.float32), request(**fields))


def test_tokens_of_tables_are_checked() -> None:
    logits = np.zeros((1, 300), np.float32)
    with pytest.raises(ValueError, match="history"):
        Sampler(300).sample(logits, request(output_count=1), SampleTables(history=np.array([300], np.int32)))
    bias = SampleTables(bias_tokens=np.array([-1], np.int32), bias_values=np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="biased"):
        Sampler(300).sample(logits, request(bias_count=1), bias)
