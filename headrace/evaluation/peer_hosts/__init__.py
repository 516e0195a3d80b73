"""Programs that serve a model with a peer's own package.

They run in the peer's virtual environment, where headrace is not installed: standard library and the peer's package only. Each is
started as ``python HOST.py MODEL.gguf THREADS STREAMS CONTEXT PORT`` and answers ``/health`` with 200 once it is ready.
"""
