"""Handler of plain completions: several prompts, echo, best_of, logprobs, streaming."""

from __future__ import annotations

from starlette.types import ASGIApp

from headrace.errors import HeadraceError
from headrace.server.completion_answer import CompletionAnswer
from headrace.server.generation import Generation, Job
from headrace.server.language import Prompt
from headrace.server.protocol import limits
from headrace.server.protocol.completions import CompletionRequest
from headrace.server.protocol.tokens import Rendered, RenderedList
from headrace.server.rendering import encode_json, json_bytes, json_response
from headrace.server.requests import Call
from headrace.server.sampling import (
    Wanted,
    check_stream_options,
    extension_grammar,
    most_drafted,
    new_seed,
    output_room,
    sampling_params,
    stop_strings,
)
from headrace.server.service import Service
from headrace.server.sse import EventStream

DEFAULT_MAX_TOKENS = 16
"""The API's own default for completions."""


async def complete(service: Service, call: Call[CompletionRequest]) -> ASGIApp:
    """``POST /completions``."""
    body = call.body
    _check(body)
    standing = service.tenants.standing(call.tenant, body)
    prompts = await service.language.prompts(body.prompt, "prompt", limits.MAX_PROMPTS)
    choices = body.best_of or body.n or 1
    if len(prompts) * choices > limits.MAX_SEQUENCES:
        raise HeadraceError("invalid_value", f"Prompts times choices must be at most {limits.MAX_SEQUENCES}.", param="n")
    jobs = _jobs(service, body, prompts, choices)
    generation = Generation(service, jobs, standing, call.claim)
    answer = CompletionAnswer(service, body, prompts, generation)
    seeds = ",".join(str(seed) for seed in dict.fromkeys(job.params.seed for job in jobs))
    if body.stream:
        stream = EventStream(generation, answer.events, answer.tail, service.settings)
        stream.header("x-headrace-seed", seeds)
        return stream
    async with generation as turns:
        async for pieces in turns:
            answer.add(pieces)
    data = await service.language.aside(lambda: encode_json(answer.whole()), answer.weight)
    return json_bytes(data, {"x-headrace-seed": seeds})


async def render(service: Service, call: Call[CompletionRequest]) -> ASGIApp:
    """``POST /completions/render``: the prompts as the model would see them."""
    body = call.body
    _check(body)
    language = service.language
    prompts = await language.prompts(body.prompt, "prompt", limits.MAX_PROMPTS)
    data = [
        Rendered(prompt.text if prompt.text is not None else language.decode(prompt.ids), prompt.ids, len(prompt.ids))
        for prompt in prompts
    ]
    return json_response(RenderedList(data=data, model=service.model_name))


def _check(body: CompletionRequest) -> None:
    check_stream_options(body)
    n = body.n or 1
    if body.best_of is not None and body.best_of < n:
        raise HeadraceError("invalid_value", "'best_of' must be at least 'n'.", param="best_of")
    if body.stream and body.best_of is not None and body.best_of > n:
        raise HeadraceError("invalid_value", "'best_of' above 'n' can't be streamed.", param="best_of")
    if body.max_tokens == 0 and not body.echo and body.prompt_logprobs is None:
        raise HeadraceError("invalid_value", "'max_tokens' 0 needs 'echo' or 'prompt_logprobs'.", param="max_tokens")


def _jobs(service: Service, body: CompletionRequest, prompts: list[Prompt], choices: int) -> list[Job]:
    """One job a prompt. Prompts without a given seed get one each, so that equal prompts differ as separate calls would."""
    language = service.language
    constraint = extension_grammar(body)
    ranked = body.best_of is not None and body.best_of > (body.n or 1)
    prompt_logprobs = body.prompt_logprobs
    if body.echo and body.logprobs is not None:
        prompt_logprobs = max(body.logprobs, prompt_logprobs or 0)
    wanted_tokens = body.max_tokens
    jobs = []
    for number, prompt in enumerate(prompts):
        room = output_room(len(prompt.ids), wanted_tokens, language.context_length, prompt.param)
        wanted = Wanted(
            max_tokens=room if wanted_tokens is not None else min(room, max(DEFAULT_MAX_TOKENS, body.min_tokens or 0)),
            choices=choices,
            top_logprobs=0 if ranked and body.logprobs is None else body.logprobs,
            prompt_logprobs=prompt_logprobs,
            grammar=constraint.grammar,
        )
        jobs.append(
            Job(
                prompt=prompt.ids,
                params=sampling_params(body, wanted, language.tokenizer.vocab_size, new_seed()),
                stop=stop_strings(body),
                deadline=body.deadline_ms / 1000 if body.deadline_ms is not None else None,
                first_index=number * choices,
                grammar_param=constraint.param,
                speculation=most_drafted(body),
            )
        )
    return jobs
