"""Options of the HTTP server, declared once; flags, YAML keys, environment and docs come from here."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.placement.joining import Joining, read_joining
from headrace.placement.roles import Role, read_instances
from headrace.placement.scaling import ScalingRule, read_span
from headrace.settings.declaration import option, validate
from headrace.settings.log_lines import FORMATS


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How the server listens, whom it lets in, and when it says no. Raises ``invalid_setting`` at construction."""

    host: str = option("127.0.0.1", help="Address to listen on.")
    port: int = option(8080, minimum=0, maximum=65_535, help="TCP port; 0 takes a free one and prints it.")
    api_key_file: str | None = option(
        None, help="File of API keys, each with its limits, weight and priority; every route but /livez then wants a key."
    )
    served_name: str | None = option(None, help="Name of the model in the API (default: the model's own name).")
    pin: tuple[str, ...] = option((), help="Models that are loaded at start and never leave for others or for being idle.")
    unload_after: float = option(
        -1.0, unit="s", minimum=-1.0, maximum=1e9, help="Idle time after which a model leaves memory. 0: at once; -1: never."
    )
    memory_mib: int | None = option(
        None, unit="MiB", minimum=1, maximum=2**32, help="Memory that all models may take together. Default: what is free at start."
    )
    adapter_dir: tuple[str, ...] = option(
        (), help="Folder of adapters: each sub-folder that holds one is served, and only from below it may one be loaded by HTTP."
    )
    instances: tuple[str, ...] = option(
        ("1",),
        help="Engine processes of each model, which share threads and pages out: how many, or what each takes, such as "
        "prefill,decode (roles: all, prefill for new requests, decode for those with a first token). 1..4: as many as the load "
        "wants. join:N@HOST:PORT: N that join from other machines (`headrace instance`). ray:N@ADDRESS: N that a Ray cluster "
        "runs; ray:N: one of this machine.",
    )
    max_queue: int = option(256, unit="requests", minimum=1, maximum=100_000, help="Requests in flight before new ones get 429.")
    max_body_kib: int = option(8192, unit="KiB", minimum=1, maximum=1_048_576, help="Largest request body; more gets 413.")
    keepalive: float = option(10.0, unit="s", minimum=0.05, maximum=3600.0, help="Silence before a stream gets a comment line.")
    drain: float = option(30.0, unit="s", minimum=0.0, maximum=3600.0, help="Longest wait for running requests at shutdown.")
    log_requests: bool = option(False, help="Log one line a request.")
    log_format: str = option("text", choices=FORMATS, help="How log lines are written: for people, or as JSON objects.")
    otlp_endpoint: str | None = option(
        None, help="Address of an OpenTelemetry collector (OTLP over HTTP) that gets a trace of each request. Default: none."
    )
    state_dir: str | None = option(
        None, help="Folder for files, batches and fine-tuning jobs. Default: headrace/state in the user's folder for data."
    )
    max_file_mib: int = option(512, unit="MiB", minimum=1, maximum=1_048_576, help="Largest uploaded file.", public=False)
    max_tenant_files_mib: int = option(
        4096, unit="MiB", minimum=1, maximum=2**30, help="What the files of one key may take together.", public=False
    )
    max_tenant_files: int = option(10_000, minimum=1, maximum=1_000_000, help="Files that one key may keep.", public=False)
    max_json_depth: int = option(64, minimum=4, maximum=512, help="Deepest nesting of a JSON body.", public=False)
    body_timeout: float = option(30.0, unit="s", minimum=0.1, maximum=3600.0, help="Longest wait for a whole body.", public=False)
    load_timeout: float = option(600.0, unit="s", minimum=0.1, maximum=86_400, help="Longest wait for a load.", public=False)
    restart_delay: float = option(0.5, unit="s", minimum=0.01, maximum=60, help="Wait after a first crash.", public=False)
    lag_window: float = option(10.0, unit="s", minimum=0.1, maximum=600.0, help="Span of the loop lag metrics.", public=False)
    text_threads: int = option(1, minimum=1, maximum=8, help="Threads that tokenise large prompts.", public=False)
    send_timeout: float = option(
        60.0, unit="s", minimum=0.1, maximum=3600.0, help="Longest wait for a client that doesn't read its stream.", public=False
    )

    def __post_init__(self) -> None:
        validate(self)
        read_instances(self.instances)

    @property
    def roles(self) -> tuple[Role, ...]:
        """What each instance takes, in their order."""
        return read_instances(self.instances)

    @property
    def joining(self) -> Joining | None:
        """Where instances of other machines join; ``None``: all are processes of this one."""
        return read_joining(self.instances)

    @property
    def scaling(self) -> ScalingRule | None:
        """Between how many instances the load decides; ``None``: all run."""
        return read_span(self.instances)
