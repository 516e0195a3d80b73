"""Text in and out of models: tokenizers, chat templates, streaming, grammars, tool calls."""
