"""Runs in a peer's own virtual environment, never in ours: serves a GGUF through xllamacpp (llama.cpp) until it is stopped.

``python peer_host.py MODEL.gguf THREADS STREAMS CONTEXT``; prints its URL on the first line.
"""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Start the peer's server and wait."""
    import xllamacpp

    model, threads, streams, context = sys.argv[1], *map(int, sys.argv[2:5])
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx = context * streams
    params.n_parallel = streams
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_prompt = False
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    del server


if __name__ == "__main__":
    main()
