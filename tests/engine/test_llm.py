"""The Python API with the bundled model."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

import headrace
from headrace import LLM, SamplingParams
from headrace.engine.build import build_engine
from headrace.engine.sampling_params import GrammarSpec
from headrace.engine.settings import EngineSettings
from headrace.errors import HeadraceError
from headrace.scheduling.settings import SchedulingSettings

GREEDY = SamplingParams(max_tokens=12, temperature=0.0)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(settings=EngineSettings(threads=1, pool_mib=128), scheduling=SchedulingSettings(max_waiting=20)) as model:
        yield model


def test_the_version_is_the_projects() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert headrace.__version__ == project["project"]["version"]
    with pytest.raises(AttributeError):
        _ = headrace.no_such_name


@pytest.mark.model
def test_generate_answers_in_order_and_batching_changes_nothing(llm: LLM) -> None:
    prompts: list[str | list[int]] = ["The capital of France is", "Water boils at", [504, 3575, 282, 4649, 314]]
    together = llm.generate(prompts, GREEDY)
    assert together[0].text.startswith(" Paris")
    assert together[0].tokens == together[2].tokens
    assert [llm.generate(prompt, GREEDY)[0].answers for prompt in prompts] == [generation.answers for generation in together]


@pytest.mark.model
def test_more_prompts_than_the_queue_holds(llm: LLM) -> None:
    generations = llm.generate([f"Number {i} is" for i in range(50)], SamplingParams(max_tokens=2, temperature=0.0), progress=True)
    assert [len(generation.tokens) for generation in generations] == [2] * 50


@pytest.mark.model
def test_stream_is_generate_in_pieces_and_may_be_left(llm: LLM) -> None:
    params = SamplingParams(max_tokens=12, temperature=0.8, seed=3)
    assert "".join(llm.stream("Once upon a time", params)) == llm.generate("Once upon a time", params)[0].text
    pieces = llm.stream("Once upon a time", SamplingParams(max_tokens=500, ignore_eos=True))
    assert next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert llm._engine.live == 0
    llm._engine.check_integrity()


@pytest.mark.model
def test_chat_uses_the_models_template(llm: LLM) -> None:
    question = [{"role": "user", "content": "What is 2+2? Answer with one number."}]
    one, other = llm.chat([question, question], GREEDY)
    assert one.answers == other.answers == llm.chat(question, GREEDY)[0].answers
    assert llm.render(question)[0] in llm.tokenizer.special_ids


@pytest.mark.model
def test_stop_strings_end_the_text(llm: LLM) -> None:
    free = llm.generate("Count: one, two, three,", SamplingParams(max_tokens=16, temperature=0.0))[0].text
    stop = free[5:9]
    cut = llm.generate("Count: one, two, three,", SamplingParams(max_tokens=16, temperature=0.0, stop=(stop,)))[0]
    assert (cut.text, cut.finish) == (free[: free.index(stop)], "stop")
    assert llm._engine.live == 0


@pytest.mark.model
def test_grammars_hold_for_every_choice(llm: LLM) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 10}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    params = SamplingParams(max_tokens=80, temperature=1.0, n=3, seed=5, grammar=GrammarSpec("json_schema", json.dumps(schema)))
    for answer in llm.generate("A person as JSON: ", params)[0].answers:
        person = json.loads(answer.text)
        assert set(person) == {"name", "age"}
        assert 0 <= person["age"] <= 150
        assert answer.finish == "stop"
    choice = SamplingParams(max_tokens=8, temperature=1.5, n=4, grammar=GrammarSpec("choice", '["red", "green"]'))
    assert {answer.text for answer in llm.generate("Colour:", choice)[0].answers} <= {"red", "green"}


@pytest.mark.model
def test_embeddings_have_length_one_and_tell_texts_apart(llm: LLM) -> None:
    cat, kitten, market = llm.embed(["A cat sleeps.", "A kitten sleeps.", "The stock market fell by three percent today."])
    assert math.isclose(sum(x * x for x in cat), 1.0, rel_tol=1e-9)
    assert sum(a * b for a, b in zip(cat, kitten, strict=True)) > sum(a * b for a, b in zip(cat, market, strict=True))


@pytest.mark.model
def test_refusals_stop_the_call_and_leave_the_model_usable(llm: LLM) -> None:
    with pytest.raises(HeadraceError) as refused:
        llm.generate(["fine", ""], GREEDY)
    assert refused.value.param == "prompt"
    with pytest.raises(HeadraceError) as refused:
        llm.generate(["fine", "x"], [GREEDY, SamplingParams(grammar=GrammarSpec("regex", "("))])
    assert refused.value.code == "invalid_grammar"
    with pytest.raises(HeadraceError, match="2 prompts"):
        llm.generate(["a", "b"], [GREEDY])
    assert llm._engine.live == 0
    assert llm.generate("The capital of France is", GREEDY)[0].text.startswith(" Paris")


def test_options_are_given_once() -> None:
    with pytest.raises(HeadraceError, match="settings"):
        LLM("gemma-3-270m", settings=EngineSettings())
    with pytest.raises(HeadraceError, match="device"):
        EngineSettings(device="gpu")


@pytest.mark.model
def test_a_context_beyond_the_models_is_refused() -> None:
    with pytest.raises(HeadraceError, match="8,192"):
        LLM(settings=EngineSettings(context_length=9000))


def tiny_tokenizer(*specials: str) -> tokenizers.Tokenizer:
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=list(specials), show_progress=False)
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.train_from_iterator(["the water turns the wheel and the wheel turns the stone"] * 4, trainer)
    return made


@pytest.mark.torch
def test_a_folder_with_safetensors_and_its_own_tokenizer_generates(tmp_path: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer("<s>", "</s>")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    torch.manual_seed(0)
    vocab = tokenizer.get_vocab_size()
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    ids = tokenizer.encode("the water").ids
    with LLM(settings=EngineSettings(model=str(tmp_path), threads=1, pool_mib=16)) as llm:
        [found] = llm.generate([ids], SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True))
        assert llm.tokenizer.encode("the water") == ids
    expected = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=1)
    assert list(found.tokens) == expected[0, len(ids) :].tolist()


@pytest.mark.torch
def test_a_folder_made_for_vectors_pools_its_last_row(tmp_path: Path) -> None:
    import torch
    from transformers import Qwen3Config, Qwen3Model

    tokenizer = tiny_tokenizer("<end>")
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 0)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": false, "pooling_mode_lasttoken": true}')
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=128, eos_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    model: Any = Qwen3Model(config)
    model.save_pretrained(tmp_path)
    with LLM(settings=EngineSettings(model=str(tmp_path), threads=1, pool_mib=16)) as llm:
        [found] = llm.embed(["the water"])
    ids = tokenizer.encode("the water").ids
    assert ids[-1] == 0
    rows = model(torch.tensor([ids])).last_hidden_state[0].detach().double().numpy()
    cosines = rows @ np.array(found) / np.linalg.norm(rows, axis=1)
    assert cosines[-1] > 0.999
    assert cosines[:-1].max() < 0.9


@pytest.mark.torch
def test_row_forms_of_the_native_kernels_are_refused_on_torch() -> None:
    with pytest.raises(HeadraceError, match="weights a8 says how native kernels round rows") as caught:
        build_engine(EngineSettings(device="torch", weights="a8", threads=1))
    assert (caught.value.code, caught.value.param) == ("invalid_setting", "weights")
