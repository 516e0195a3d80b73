"""The HTTP server: OpenAI-compatible endpoints over one engine process, strict about what it accepts."""
