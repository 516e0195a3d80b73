"""``headrace chat``: talk to a model in the terminal."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import click

from headrace.cli.arguments import arguments
from headrace.cli.local import SamplingArguments, open_llm
from headrace.cli.options import LOCAL_SETTINGS, settings_options
from headrace.errors import HeadraceError
from headrace.settings.sources import Effective

Messages = list[dict[str, str]]
Speaker = Callable[[Messages], Iterator[str]]


@click.command()
@click.option("--url", help="Talk to a running OpenAI-compatible server instead of loading a model here.")
@click.option("--system", help="Instructions that stand before the conversation.")
@arguments(SamplingArguments)
@settings_options(*LOCAL_SETTINGS)
def chat(effective: Effective, sampling: SamplingArguments, url: str | None, system: str | None) -> None:
    """Talk to a model. `/new` forgets the conversation, Ctrl-C stops an answer, Ctrl-D ends.

    \b
    headrace chat
    headrace chat --system "You answer in one sentence." --temperature 0.7
    headrace chat --url http://127.0.0.1:8080
    """
    with ExitStack() as stack:
        if url is not None:
            speaker = _remote(stack.enter_context(asyncio.Runner()), url, sampling)
        else:
            llm = stack.enter_context(open_llm(effective))
            params = sampling.params()

            def speaker(messages: Messages) -> Iterator[str]:
                return llm.stream(llm.render(messages), params)

        converse(speaker, system)


def converse(speaker: Speaker, system: str | None) -> None:
    """The loop of question and answer; a refused question is taken back and the conversation goes on."""
    opening = [{"role": "system", "content": system}] if system else []
    messages: Messages = list(opening)
    while True:
        try:
            question = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            break
        if question == "/new":
            messages = list(opening)
        elif question:
            messages.append({"role": "user", "content": question})
            answer = _say(speaker, messages)
            if answer is None:
                messages.pop()
            else:
                messages.append({"role": "assistant", "content": answer})


def _say(speaker: Speaker, messages: Messages) -> str | None:
    """Print one answer as it comes; what was said, or ``None`` when it was refused. Ctrl-C keeps what was said so far."""
    pieces: list[str] = []
    try:
        for piece in speaker(messages):
            pieces.append(piece)
            click.echo(piece, nl=False)
            sys.stdout.flush()
    except KeyboardInterrupt:
        click.echo(" …", nl=False)
    except HeadraceError as error:
        click.echo(f"headrace: {error.message}", err=True)
        return None
    click.echo()
    return "".join(pieces)


def _remote(runner: asyncio.Runner, url: str, sampling: SamplingArguments) -> Speaker:
    """Answers of a server. Only what OpenAI's API knows is sent."""
    from headrace.evaluation.load import first_model
    from headrace.evaluation.streaming_client import RequestFailedError, Stream, parse_url, stream

    endpoint = parse_url(url)
    try:
        model = runner.run(first_model(endpoint))
    except RequestFailedError as error:
        raise HeadraceError("invalid_setting", f"{url}: {error}", param="url") from None

    def speak(messages: Messages) -> Iterator[str]:
        body: dict[str, Any] = {"model": model, "messages": messages, "stream": True, "max_tokens": sampling.max_tokens}
        body |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
        result = Stream(0.0)
        task = runner.get_loop().create_task(stream(endpoint, "/v1/chat/completions", body, result))
        told = 0
        try:
            while not task.done() or told < len(result.text):
                if told < len(result.text):
                    told += 1
                    yield result.text[told - 1]
                else:
                    runner.run(asyncio.wait({task}, timeout=0.02))
            task.result()
        except RequestFailedError as error:
            raise HeadraceError("invalid_value", str(error)) from None
        finally:
            task.cancel()

    return speak
