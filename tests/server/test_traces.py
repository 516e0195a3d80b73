"""Traces, trace context and log lines, from a real server to a collector that notes what it gets."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest
from conftest import Running, launch_server
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import HeadraceError
from headrace.server.observing.exporter import SpanExporter
from headrace.server.observing.life import Life
from headrace.server.observing.origin import ORIGIN, Origin, parse_traceparent
from headrace.server.observing.spans import Handled, spans_of

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    """Takes exports on a port of its own."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                assert self.path == "/v1/traces"
                collector.got.append(json.loads(body))
                self.send_response(200)
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def spans(self) -> list[dict[str, Any]]:
        return [
            span for one in list(self.got) for resource in one["resourceSpans"] for scope in resource["scopeSpans"]
            for span in scope["spans"]
        ]  # fmt: skip

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture(scope="module")
def traced(collector: Collector) -> Iterator[Running]:
    running = launch_server(0.002, otlp_endpoint=collector.url, log_requests=True, log_format="json")
    yield running
    assert running.stop() == 0, "\n".join(running.lines)


@pytest.mark.parametrize(
    "value",
    ["", "x", f"00-{TRACE}-{SPAN}", f"00-{TRACE.upper()}-{SPAN}-01", f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01",
     f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE}-{SPAN}-01-more", f"00-{TRACE}-{SPAN}-1"],
)  # fmt: skip
def test_invalid_trace_parents_begin_a_new_trace(value: str) -> None:
    assert parse_traceparent([(b"traceparent", value.encode())]) is None


def test_valid_trace_parents() -> None:
    header = b"traceparent", f"00-{TRACE}-{SPAN}-01".encode()
    parent = parse_traceparent([header])
    assert parent is not None
    assert (parent.trace_id, parent.span_id, parent.sampled) == (TRACE, SPAN, True)
    assert parse_traceparent([header, header]) is None
    later = parse_traceparent([(b"traceparent", f"01-{TRACE}-{SPAN}-00-what-comes".encode())])
    assert later is not None
    assert not later.sampled
    origin = Origin("r", parent, parent.trace_id)
    again = parse_traceparent([(b"traceparent", origin.traceparent.encode())])
    assert again is not None
    assert again.span_id == origin.span_id


@given(st.binary(max_size=80))
def test_no_header_breaks_the_parser(value: bytes) -> None:
    parse_traceparent([(b"traceparent", value)])


def test_spans_of_a_refused_request() -> None:
    assert ORIGIN.get() is None
    [span] = spans_of(Handled(Origin("r"), "POST", "/v1/x", 500, 1.0, 2.0))
    assert span["status"] == {"code": 2}
    assert span["parentSpanId"] == ""
    life = Life("r", "m", "a", "", "", 1.0, 0.0, 4, 1, 1)
    _, whole = spans_of(Handled(Origin("r", lives=[life]), "POST", "/v1/x", 499, 1.0, 2.0))
    assert int(whole["endTimeUnixNano"]) == 2_000_000_000


def test_a_collector_that_is_away_costs_nothing_but_traces() -> None:
    with pytest.raises(HeadraceError):
        SpanExporter("collector:4318")
    exporter = SpanExporter("http://127.0.0.1:9")
    for _ in range(10):
        exporter.add(Handled(Origin("r"), "POST", "/v1/x", 200, 1.0, 2.0))
    exporter.close()
    assert (exporter.exported, exporter.dropped) == (0, 10)


@pytest.mark.server
def test_a_request_becomes_a_trace(traced: Running, collector: Collector) -> None:
    with httpx.Client(base_url=traced.url, trust_env=False) as http:
        headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "x-request-id": "my-request"}
        body = {"prompt": "secret words of a prompt", "max_tokens": 5}
        assert http.post("/v1/completions", json=body, headers=headers).status_code == 200
        unsampled = {"traceparent": f"00-{'a' * 32}-{SPAN}-00"}
        assert http.post("/v1/completions", json=body, headers=unsampled).status_code == 200
    traced.eventually(lambda: any(span["traceId"] == TRACE for span in collector.spans()))
    spans = {span["name"]: span for span in collector.spans() if span["traceId"] == TRACE}
    assert set(spans) == {"POST /completions", "generate smollm2", "queue", "prefill", "decode"} or set(spans) >= {
        "POST /completions", "queue", "prefill", "decode",
    }  # fmt: skip
    server = spans["POST /completions"]
    assert (server["parentSpanId"], server["kind"]) == (SPAN, 2)
    whole = next(span for name, span in spans.items() if name.startswith("generate"))
    assert whole["parentSpanId"] == server["spanId"]
    assert all(spans[name]["parentSpanId"] == whole["spanId"] for name in ("queue", "prefill", "decode"))
    assert int(spans["queue"]["endTimeUnixNano"]) <= int(spans["decode"]["startTimeUnixNano"])
    assert all(int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"]) for span in spans.values())
    attributes = {one["key"]: one["value"] for one in whole["attributes"]}
    assert attributes["gen_ai.usage.output_tokens"] == {"intValue": "5"}
    assert "secret" not in json.dumps(collector.got)
    assert not [span for span in collector.spans() if span["traceId"] == "a" * 32]
    assert traced.metric("headrace_traces_exported_total") >= 1


@pytest.mark.server
def test_log_lines_are_json_and_hold_no_prompt(traced: Running) -> None:
    with httpx.Client(base_url=traced.url, trust_env=False) as http:
        http.post("/v1/completions", json={"prompt": "secret words", "max_tokens": 3}, headers={"x-request-id": "line-1"})
    traced.eventually(lambda: any("line-1" in line for line in traced.lines))
    lines = [json.loads(line) for line in traced.lines]
    line = next(line for line in lines if line.get("request_id") == "line-1")
    assert (line["method"], line["route"], line["status"], line["generated_tokens"]) == ("POST", "/completions", 200, 3)
    assert len(line["trace_id"]) == 32
    assert {"time", "level", "logger", "message"} <= set(line)
    assert any("listening on" in one["message"] for one in lines)
    assert "secret" not in "".join(traced.lines)


@pytest.mark.server
def test_requests_are_logged_when_asked_for(own: Any) -> None:
    running = own(log_requests=True)
    running.post("/v1/completions", {"prompt": "x", "max_tokens": 1})
    running.eventually(lambda: any("POST /completions 200" in line for line in running.lines))
