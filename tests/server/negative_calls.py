"""Calls made from the OpenAPI description to be wrong: nearly valid bodies with hostile values, for all routes and methods.

Nothing is left out and no answer is excused: see :func:`problem_of`.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

import httpx

METHODS = "GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2**31, 2**53, 2**63, 2**64, 10**400, -(10**30), 0.5, -0.0, 1e308, float("nan"), float("inf"),
    "", " ", "\0", "x" * 3000, "\ud800", "\u202e\r\n\x1b[31m", "../../etc/passwd", "{{7*7}}", "%s%n", "1", "null",
    [], [[]], {}, [None], {"": ""}, {"$ref": "#"}, {"type": "object", "properties": {"a": {"$ref": "#/nothing"}}},
    {"type": "string", "pattern": "(a+)+$"}, [1, "a", {}], [0] * 300, {"a": {"a": {"a": {"a": [[[[]]]]}}}},
)  # fmt: skip
ODD_IDS = "nobody", "..", "%2e%2e%2f", "%00", "%ff%fe", "a" * 500, "%0d%0aX:1", "*", "ä", "-1", "file-" + "0" * 32, "a%2Fb"
ODD_HEADERS: tuple[dict[str, str], ...] = (
    {}, {}, {"content-type": "text/plain"}, {"x-request-id": "a\tb" * 50}, {"accept": "nothing"},
    {"traceparent": "00-" + "0" * 32 + "-x"},
    {"origin": "null"}, {"host": "[::1"}, {"content-encoding": "gzip"}, {"range": "bytes=0-,1-,2-"}, {"if-none-match": "\""},
    {"x-api-key": "\xff"}, {"expect": "100-continue"},
)  # fmt: skip
_MEANT = frozenset({501, 503, 504, 507})


@dataclass(frozen=True)
class Sent:
    """One call."""

    method: str
    path: str
    body: bytes
    headers: dict[str, str]


class NegativeCalls:
    """Makes calls; the same for the same seed. ``wrong``: how likely each value is replaced by a hostile one."""

    def __init__(self, description: dict[str, Any], seed: int, known: dict[str, list[str]]) -> None:
        self._paths = description["paths"]
        self._schemas = description["components"]["schemas"]
        self._random = random.Random(seed)
        self._known = known

    def each(self) -> list[Sent]:
        """One call for every path and method that is described, and one with a method that may not be."""
        found = []
        for path, methods in self._paths.items():
            for method, operation in methods.items():
                found.append(self._call(method.upper(), path, operation))
            found.append(self._call(self._random.choice(METHODS), path, {}))
        return found

    def _call(self, method: str, path: str, operation: dict[str, Any]) -> Sent:
        pick = self._random
        for name in [part[1:-1].split(":")[0] for part in path.split("/") if part.startswith("{")]:
            known = [one for kind, ids in self._known.items() if kind in path for one in ids]
            path = path.replace("{" + name + "}", pick.choice([*known, *known, *ODD_IDS]))
        fields = [parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "query"]
        query = [f"{name}={self._query_value()}" for name in fields if pick.random() < 0.5]
        if pick.random() < 0.1:
            query.append(pick.choice(["=", "&&", "a[]=1", "%ff=%ff", "limit=1&limit=2"]))
        content = operation.get("requestBody", {}).get("content", {})
        body, headers = b"", {}
        if "application/json" in content:
            body, headers = self._json(content["application/json"]["schema"]), {"content-type": "application/json"}
        elif content:
            body, headers = self._form(), {"content-type": "multipart/form-data; boundary=q"}
        elif method in ("POST", "PUT", "PATCH", "DELETE") and pick.random() < 0.3:
            body = b"{}"
        headers |= pick.choice(ODD_HEADERS)
        return Sent(method, path + ("?" + "&".join(query) if query else ""), body, headers)

    def _query_value(self) -> str:
        return self._random.choice(["1", "0", "-1", "true", "x", "", "1e400", "9" * 30, "%00", "asc", "nan", "a" * 300])

    def _json(self, schema: dict[str, Any]) -> bytes:
        wrong = self._random.choice([0.0, 0.02, 0.1, 0.4])
        body = json.dumps(self._value(schema, wrong, 0)).encode()
        if self._random.random() < 0.1:
            place = self._random.randrange(len(body))
            body = self._random.choice(
                [body[:place], body[:place] + b"\xff" + body[place:], body + b"]", body.replace(b":", b"::", 1), b""]
            )
        return body

    def _value(self, schema: dict[str, Any], wrong: float, depth: int) -> Any:
        pick = self._random
        if "$ref" in schema:
            schema = self._schemas[schema["$ref"].rpartition("/")[2]]
        if pick.random() < wrong or depth > 8:
            return pick.choice(ODD_VALUES)
        several = schema.get("anyOf") or schema.get("oneOf")
        if several:
            return self._value(pick.choice(several), wrong, depth + 1)
        if schema.get("type") == "object":
            return self._object(schema, wrong, depth)
        if schema.get("type") == "array":
            items = schema.get("items", {})
            least, most = schema.get("minItems", 0), schema.get("maxItems", 3)
            return [self._value(items, wrong, depth + 1) for _ in range(min(most, max(least, pick.randrange(3))))]
        return pick.choice(schema["enum"]) if "enum" in schema else schema.get("const", self._plain(schema))

    def _plain(self, schema: dict[str, Any]) -> Any:
        """A value without parts that its schema allows."""
        pick, least = self._random, schema.get("minimum", 0)
        made = {
            "integer": least + pick.randrange(int(min(20, schema.get("maximum", 2**31) - least + 1))),
            "number": least + pick.random(),
            "boolean": pick.random() < 0.5,
            "string": pick.choice(["a", "one two", "x" * schema.get("minLength", 1), '{"type": "object"}']),
            "null": None,
        }
        return made.get(schema.get("type", ""), pick.choice(ODD_VALUES))

    def _object(self, schema: dict[str, Any], wrong: float, depth: int) -> dict[str, Any]:
        pick, made = self._random, {}
        required = schema.get("required", ())
        for name, inner in schema.get("properties", {}).items():
            if name in self._known and pick.random() < 0.9:
                made[name] = pick.choice(self._known[name])
            elif (name in required and pick.random() >= wrong) or pick.random() < 0.25:
                made[name] = self._value(inner, wrong, depth + 1)
        if pick.random() < wrong:
            made[pick.choice(["unknown", "", "\0", "__class__", "x" * 400])] = pick.choice(ODD_VALUES)
        return made

    def _form(self) -> bytes:
        pick, parts = self._random, []
        names = [
            "purpose",
            "file",
            "expires_after[anchor]",
            "expires_after[seconds]",
            "expires_after",
            "file[x]",
            "[",
            "",
            "x" * 70,
        ]
        values = [b"batch", b"fine-tune", b"created_at", b"3600", b"", b"\xff", b'{"custom_id": "a"}\n', b"\0" * 2000]
        for name in [*names[:2], *pick.sample(names, pick.randrange(4))]:
            extra = pick.choice(
                ["", "; filename=a", '; filename="../b"', "; filename*=idna''c", '; filename="\\"', "; filename*0=a; filename*2=b"]
            )
            parts.append(
                f'--q\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + pick.choice(values) + b"\r\n"
            )
        pick.shuffle(parts)
        return b"".join(parts) + pick.choice([b"--q--\r\n", b"--q--", b"--q", b""])


def problem_of(sent: Sent, status: int, body: bytes) -> str | None:
    """What is wrong with an answer; ``None`` when nothing is.

    Only 501, 503, 504 and 507 of the 5xx mean something. Every refusal is in the dialect of its path, whole and said once.
    """
    if status >= 500 and status not in _MEANT:
        return f"a bug: {status}"
    if b'"internal_error"' in body:
        return "a bug in a stream or line"
    if status < 400 or sent.method == "HEAD":
        return None
    try:
        told = json.loads(body)
    except ValueError:
        return f"a refusal that is no JSON: {body[:100]!r}"
    plain = httpx.URL("http://x" + sent.path).path.removeprefix("/v1")
    if plain == "/messages" or plain.startswith("/messages/"):
        fine = set(told) == {"type", "error"} and set(told["error"]) == {"type", "message"}
    else:
        fine = set(told) == {"error"} and set(told["error"]) == {"message", "type", "param", "code"}
    return None if fine else f"another envelope: {body[:200]!r}"
