"""Scores of pairs and documents in the order of their relevance, over the wire."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import Any

import pytest
from conftest import Running

from headrace.models.catalog import find_model, open_model
from headrace.server.language import Language
from headrace.server.scoring import _Side
from headrace.text.chat_template import ChatTemplate
from headrace.text.open_tokenizer import open_tokenizer
from headrace.text.tokenizer import Tokenizer

pytestmark = [pytest.mark.server, pytest.mark.model]
QUERY = "why is the sky blue"
DOCUMENTS = [
    "On high mountains the air pressure is lower and water boils below 100 degrees Celsius.",
    "Footwear can be sent back within 30 days if it was not worn outside.",
    "Air molecules scatter short wavelengths of sunlight more than long ones, so that light from above looks blue.",
    "Neil Armstrong stepped out of the Eagle lander on 20 July 1969.",
]


def ranked(real: Running, **fields: Any) -> Any:
    answer = real.post("/v1/rerank", {"query": QUERY, "documents": DOCUMENTS, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_document_that_answers_comes_first(real: Running) -> None:
    answer = ranked(real)
    assert answer["results"][0]["index"] == 2
    scores = [one["relevance_score"] for one in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)
    assert all(one["document"]["text"] == DOCUMENTS[one["index"]] for one in answer["results"])
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 100
    best = ranked(real, top_n=1, return_documents=False)["results"]
    assert best == [{"index": 2, "relevance_score": scores[0]}]
    for path in ("/rerank", "/v2/rerank"):
        objects = {"query": QUERY, "documents": [{"text": text} for text in DOCUMENTS]}
        assert real.post(path, objects).json()["results"] == answer["results"]


def test_a_score_is_the_mean_of_what_the_model_says_of_the_query(real: Running) -> None:
    before, query = (
        real.post("/tokenize", {"prompt": text}).json()["tokens"]
        for text in (f"{DOCUMENTS[2]}\n\nA search query that this text answers:", f" {QUERY}")
    )
    asked = {"prompt": before + query, "max_tokens": 1, "echo": True, "logprobs": 0, "temperature": 0}
    logprobs = real.post("/v1/completions", asked).json()["choices"][0]["logprobs"]["token_logprobs"]
    of_query = logprobs[len(before) : len(before) + len(query)]
    expected = math.exp(math.fsum(of_query) / len(query))
    [best] = ranked(real, top_n=1)["results"]
    assert math.isclose(best["relevance_score"], expected, rel_tol=1e-6)


def test_documents_that_were_scored_are_not_read_again(real: Running) -> None:
    text = "The mill stood by the river for three hundred years, and its wheel turned day and night. " * 3
    first, again = (ranked(real, documents=[text], query="how old is the mill") for _ in range(2))
    other = ranked(real, documents=[text], query="what stood by the river")
    assert first["results"] == again["results"]
    assert first["usage"]["cached_tokens"] == 0
    assert again["usage"]["cached_tokens"] >= 48
    assert other["usage"]["cached_tokens"] >= 48


def test_pairs_and_one_against_many(real: Running) -> None:
    by_rank = {one["index"]: one["relevance_score"] for one in ranked(real)["results"]}
    one = real.post("/score", {"text_1": QUERY, "text_2": DOCUMENTS}).json()
    assert [entry["score"] for entry in one["data"]] == [by_rank[index] for index in range(len(DOCUMENTS))]
    pairs = real.post("/v1/score", {"text_1": [QUERY, "shoes"], "text_2": [DOCUMENTS[0], DOCUMENTS[1]]}).json()
    assert pairs["data"][0] == one["data"][0]
    assert pairs["data"][1]["index"] == 1
    single = real.post("/v1/score", {"text_1": QUERY, "text_2": DOCUMENTS[3]}).json()
    assert single["data"] == [{**one["data"][3], "index": 0}]
    refused = real.post("/v1/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "text_1")


def test_vectors_are_compared_where_that_is_asked(real: Running) -> None:
    answer = real.post("/score", {"text_1": QUERY, "text_2": DOCUMENTS, "method": "embedding"}).json()
    data = real.post("/v1/embeddings", {"input": [QUERY, *DOCUMENTS]}).json()["data"]
    query, *vectors = ([float(value) for value in entry["embedding"]] for entry in data)
    for entry, vector in zip(answer["data"], vectors, strict=True):
        assert math.isclose(entry["score"], math.fsum(a * b for a, b in zip(query, vector, strict=True)), abs_tol=1e-5)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"documents": []}, "documents"),
        ({"documents": ["a"] * 257}, "documents"),
        ({"documents": ["a", ""]}, "documents[1]"),
        ({"documents": ["a", {"text": "b", "title": "c"}]}, "documents[1].title"),
        ({"query": ""}, "query"),
        ({"top_n": 0}, "top_n"),
        ({"max_tokens_per_doc": 0}, "max_tokens_per_doc"),
        ({"method": "guess"}, "method"),
        ({"instruction": "x"}, "instruction"),
        ({"documents": ["a", "water " * 9000]}, "documents[1]"),
    ],
)
def test_what_is_wrong_is_named(real: Running, fields: dict[str, Any], param: str) -> None:
    answer = real.post("/rerank", {"query": QUERY, "documents": DOCUMENTS} | fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param, answer.text


def test_long_documents_can_be_cut(real: Running) -> None:
    long = ranked(real, documents=[DOCUMENTS[2] + " water" * 9000], max_tokens_per_doc=12)
    assert long["usage"]["prompt_tokens"] < 40


def test_the_token_that_ends_a_text_is_not_cut_off() -> None:
    parts = open_tokenizer(open_model(find_model("smollm2")).tokenizer_source).parts
    tokenizer = Tokenizer(replace(parts, end_id=2))
    language = Language(tokenizer, ChatTemplate(None, tokenizer), 1)
    language.context_length = 64
    try:
        documents = _Side(["The mill stands by the river.", "Water"], "documents", 4)
        long, short = asyncio.run(documents.ids(language, whole=True))
        assert long == [*tokenizer.encode("The mill stands by the river.")[:3], 2]
        assert short == [*tokenizer.encode("Water"), 2]
        assert asyncio.run(documents.ids(language))[0] == tokenizer.encode("The mill stands by the river.")[:4]
    finally:
        language.close()
