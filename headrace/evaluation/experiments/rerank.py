"""Documents in the order of their relevance, by a model that was taught to write: two ways to judge, and judging again."""

from __future__ import annotations

import time
from dataclasses import dataclass

from headrace.evaluation.experiment import Claim, Conditions, Experiment, Findings
from headrace.evaluation.own_server import own_server, post_json

# What people type, and a passage that answers it in other words.
_PAIRS = (
    (
        "how do plants make food",
        "Photosynthesis is the process by which green leaves turn sunlight, water and carbon dioxide into sugar and oxygen.",
    ),
    (
        "capital of france",
        "Paris lies on the Seine and has been the seat of the French government for centuries; no city of the country is larger.",
    ),
    ("who wrote hamlet", "William Shakespeare finished the tragedy about the prince of Denmark around the year 1600."),
    (
        "why is the sky blue",
        "Air molecules scatter short wavelengths of sunlight more than long ones, so that light from above looks blue.",
    ),
    (
        "boiling point of water at altitude",
        "On high mountains the air pressure is lower and water boils below 100 degrees Celsius.",
    ),
    (
        "how to reset a forgotten password",
        "Click on 'Forgot password' at the login page; we will send a link to your e-mail address with which you choose a new one.",
    ),
    (
        "return policy for shoes",
        "Footwear can be sent back within 30 days if it was not worn outside; the refund arrives within a week.",
    ),
    (
        "python read file line by line",
        "Open the file with a with-statement and iterate over the file object; each iteration yields one line as a string.",
    ),
    ("symptoms of the flu", "Fever, headache, sore muscles and a dry cough that begin suddenly are typical for influenza."),
    ("what do bees do in winter", "The colony forms a cluster around the queen, eats stored honey and keeps warm by shivering."),
    ("speed of light", "In vacuum light travels about 299,792 kilometres each second."),
    (
        "how does a vaccine work",
        "It shows a harmless piece of the germ to the immune system, which then remembers it and makes antibodies.",
    ),
    ("largest ocean", "The Pacific covers about a third of the surface of the Earth, more than all the land together."),
    (
        "when did the berlin wall fall",
        "On 9 November 1989 people began to cross the border between East and West Berlin, and to take the wall apart.",
    ),
    (
        "how to bake bread",
        "Mix flour, water, yeast and salt, knead the dough, let it rise for an hour, and put it into a hot oven.",
    ),
    ("what is inflation", "Prices in general rise, so that the same amount of money buys fewer goods than before."),
    (
        "fix a flat bicycle tire",
        "Take the wheel off, lever the tyre from the rim, find the hole in the tube, roughen it and glue a patch on.",
    ),
    ("why do cats purr", "Domestic felines make the low rumbling sound when content, but also to calm themselves when hurt."),
    (
        "difference between tcp and udp",
        "One protocol sets up a connection and sends lost packets again, the other sends datagrams without any guarantee.",
    ),
    ("first man on the moon", "Neil Armstrong stepped out of the Eagle lander on 20 July 1969."),
    ("what causes earthquakes", "Plates of the crust slide past each other; when stuck rocks give way suddenly the ground shakes."),
    ("how long do elephants live", "In the wild the giant grey mammals with trunks reach sixty to seventy years."),
    (
        "cancel my subscription",
        "You can end your monthly plan at any time under Settings, Billing; it stays active until the end of the paid period.",
    ),
    ("sort a list in descending order", "Call sorted with reverse=True, or the method sort of the list with the same argument."),
)
_LONG = 6  # passages in one document of the part about scoring again


@dataclass(frozen=True, slots=True)
class _Answer:
    """Scores of one call, in the order of its documents, and its seconds."""

    scores: list[float]
    seconds: float


def run(conditions: Conditions) -> Findings:
    """One server; each query against all passages, both ways in turns."""
    with own_server([conditions.model], conditions.threads) as url:
        return Findings((*_order(conditions, url), *_again(conditions, url)))


def _order(conditions: Conditions, url: str) -> list[Claim]:
    passages = [passage for _, passage in _PAIRS]
    first = {"likelihood": 0, "embedding": 0}
    places: list[float] = []
    for number, (query, _) in enumerate(_PAIRS):
        conditions.report("queries against all passages", number, len(_PAIRS))
        for method in first:
            scores = _ask(url, query, passages, method).scores
            place = sum(score > scores[number] for score in scores)
            first[method] += place == 0
            places += [1 / (place + 1)] if method == "likelihood" else []
    every = len(_PAIRS)
    return [
        Claim("first", f"queries whose passage comes first of {every}, by likelihood", ">=", 20, first["likelihood"], "queries",
              f"mean reciprocal place {sum(places) / every:.3f}"),
        Claim("beside", "the same / by the cosine of mean states", ">=", 1.5, first["likelihood"] / max(1, first["embedding"]), "x",
              f"{first['embedding']} come first by cosine: no model that was made for vectors"),
    ]  # fmt: skip


def _again(conditions: Conditions, url: str) -> list[Claim]:
    """Long documents, scored for a query and then for others: pages of the documents are found."""
    passages = [passage for _, passage in _PAIRS]
    rounds = 2 if conditions.quick else 6
    same, ratios = 0, []
    for number in range(rounds):
        conditions.report("scoring documents again", number, rounds)
        turned = passages[number:] + passages[:number]
        documents = [f"{number}. " + " ".join(turned[at : at + _LONG]) for at in range(0, len(turned), _LONG)]
        answers = [_ask(url, query, documents, "likelihood") for query in (_PAIRS[0][0], _PAIRS[1][0], _PAIRS[0][0])]
        same += answers[0].scores == answers[2].scores
        ratios.append((answers[1].seconds + answers[2].seconds) / 2 / answers[0].seconds)
    share = 100 * same / rounds
    return [
        Claim("same", "calls that give the same scores when the documents are found", "==", 100, share, "% same bits"),
        Claim("again", "time of a call whose documents were scored before / first time", "<=", 0.6,
              sorted(ratios)[rounds // 2], "x", f"{len(passages) // _LONG} documents of {_LONG} passages"),
    ]  # fmt: skip


def _ask(url: str, query: str, documents: list[str], method: str) -> _Answer:
    began = time.perf_counter()
    found = post_json(url, "/v1/score", {"text_1": query, "text_2": documents, "method": method})
    return _Answer([one["score"] for one in found["data"]], time.perf_counter() - began)


EXPERIMENT = Experiment(
    name="rerank",
    title="Any served model puts documents in the order of their relevance, and documents that were scored are not read again.",
    source="Improving Passage Retrieval with Zero-Shot Question Generation",
    minutes=1,
    run=run,
)
