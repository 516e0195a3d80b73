"""Serves a GGUF file with xllamacpp (llama.cpp as a wheel) until it is stopped; see the package's docstring for the arguments."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Start the package's own server and wait."""
    import xllamacpp

    threads, streams, context, port = map(int, sys.argv[2:6])
    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.n_ctx = context * streams
    params.n_parallel = streams
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_prompt = False
    params.port = port
    server = xllamacpp.Server(params)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    del server


if __name__ == "__main__":
    main()
