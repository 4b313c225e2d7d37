"""OpenAI's own client over a real socket, with only the base URL changed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from streaming.backends.scripted import (
    Gate,
    ScriptMatcher,
    repeat_prompt,
    say,
    scripted_backend,
)
from streaming.output_constraint import GrammarMatcher, OutputConstraint
from tests.app.chat_answers import ask, call, check_chunks, check_completion, joined, tool

LiveServer = Callable[..., str]
Connect = Callable[..., openai.OpenAI]


class Weather(BaseModel):
    city: str
    degrees: int


class TrustingCompiler:
    """Accepts every grammar; the script must produce matching text."""

    def __init__(self) -> None:
        self.asked: list[OutputConstraint] = []

    def compile(self, constraint: OutputConstraint, *, count: int = 1) -> list[GrammarMatcher]:
        self.asked.append(constraint)
        return [ScriptMatcher() for _ in range(count)]


@pytest.fixture
def connect(live_server: LiveServer) -> Iterator[Connect]:
    clients: list[openai.OpenAI] = []

    def make(*args: Any, **settings: Any) -> openai.OpenAI:
        url = live_server(*args, api_keys=("secret",), **settings)
        sdk = openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0)
        clients.append(sdk)
        return sdk

    yield make
    for sdk in clients:
        sdk.close()


def test_models(connect: Connect):
    sdk = connect(scripted_backend())
    [model] = list(sdk.models.list())
    assert sdk.models.retrieve("scripted") == model
    assert (model.id, model.object, model.owned_by) == ("scripted", "model", "tokenwire")
    assert model.created > 1_600_000_000
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.models.retrieve("gpt-4")
    assert caught.value.code == "model_not_found"


def test_chat_with_logprobs_and_usage(connect: Connect):
    sdk = connect(scripted_backend(say("héllo")))
    answer = sdk.chat.completions.create(
        model="scripted",
        messages=[{"role": "developer", "content": "be kind"}, {"role": "user", "content": "hi"}],
        n=2,
        logprobs=True,
        top_logprobs=3,
        seed=1,
        temperature=0.5,
        max_completion_tokens=100,
        user="me",
        metadata={"page": "1"},
        store=False,
        service_tier="auto",
        extra_body={"top_k": 5, "priority": -1, "chat_template_kwargs": {"a": 1}},
    )
    check_completion(answer.to_dict())
    assert [choice.message.content for choice in answer.choices] == ["héllo"] * 2
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert usage_of(answer).completion_tokens == 2 * len(logprobs.content)
    assert [len(token.top_logprobs) for token in logprobs.content] == [3] * 7


def usage_of(answer: Any) -> openai.types.CompletionUsage:
    assert answer.usage is not None
    usage: openai.types.CompletionUsage = answer.usage
    return usage


def test_chat_streams(connect: Connect):
    sdk = connect(scripted_backend(say("<think>hm</think>wörld"), reasons=True))
    parts = list(
        sdk.chat.completions.create(
            model="scripted",
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    check_chunks([part.to_dict() for part in parts])
    [choice] = joined(part.to_dict() for part in parts)
    assert choice["message"]["content"] == "wörld"
    assert choice["message"]["reasoning_content"] == "hm"
    details = usage_of(parts[-1]).completion_tokens_details
    assert details is not None
    assert details.reasoning_tokens == len("<think>hm</think>")


def test_a_round_of_tools(connect: Connect):
    script = say(call("get_weather", '{"city": "Paris"}'), "Sunny.")
    sdk = connect(scripted_backend(script))
    messages: list[Any] = ask("What is the weather in Paris?")
    tools: Any = [tool("get_weather", parameters={"type": "object"})]
    first = sdk.chat.completions.create(
        model="scripted", messages=messages, tools=tools, tool_choice="required"
    )
    check_completion(first.to_dict())
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    assert message.tool_calls is not None
    [made] = message.tool_calls
    assert made.type == "function"
    assert json.loads(made.function.arguments) == {"city": "Paris"}
    messages += [message, {"role": "tool", "tool_call_id": made.id, "content": "21 degrees"}]
    second = sdk.chat.completions.create(model="scripted", messages=messages, tools=tools)
    check_completion(second.to_dict())
    assert second.choices[0].message.content == "Sunny."


def test_parse_returns_objects(connect: Connect):
    compiler = TrustingCompiler()
    script = say(
        '{"city": "Paris", "degrees": 21}', call("Weather", '{"city": "Rome", "degrees": 30}')
    )
    backend = dataclasses.replace(scripted_backend(script), grammars=compiler)
    sdk = connect(backend)
    answer = sdk.chat.completions.parse(
        model="scripted",
        messages=[{"role": "user", "content": "hi"}],
        response_format=Weather,
    )
    assert answer.choices[0].message.parsed == Weather(city="Paris", degrees=21)
    called = sdk.chat.completions.parse(
        model="scripted",
        messages=[{"role": "user", "content": "hi"}],
        tools=[openai.pydantic_function_tool(Weather)],
    )
    assert called.choices[0].message.tool_calls is not None
    [made] = called.choices[0].message.tool_calls
    assert made.function.parsed_arguments == Weather(city="Rome", degrees=30)
    assert len(compiler.asked) == 2


def test_the_stream_helper_assembles_an_answer(connect: Connect):
    sdk = connect(scripted_backend(say("Look." + call("f", '{"a": 1}'))))
    with sdk.chat.completions.stream(
        model="scripted",
        messages=[{"role": "user", "content": "hi"}],
        tools=[tool("f", strict=True, parameters={"type": "object"})],  # type: ignore[list-item]
    ) as events:
        kinds = {event.type for event in events}
        final = events.get_final_completion()
    assert {"content.delta", "content.done"} <= kinds
    assert {
        "tool_calls.function.arguments.delta",
        "tool_calls.function.arguments.done",
    } <= kinds
    message = final.choices[0].message
    assert message.content == "Look."
    assert message.tool_calls is not None
    assert message.tool_calls[0].function.arguments == '{"a": 1}'


async def test_the_async_client_creates_streams_and_disconnects(live_server: LiveServer):
    gate = Gate()
    backend = scripted_backend(say("hello", "wörld", "x" * 4000), gate=gate)
    url = live_server(backend)
    messages: list[Any] = ask()
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as sdk:
        gate.allow(6)
        answer = await sdk.chat.completions.create(model="scripted", messages=messages)
        check_completion(answer.to_dict())
        assert answer.choices[0].message.content == "hello"
        gate.allow(7)
        stream = await sdk.chat.completions.create(model="scripted", messages=messages, stream=True)
        parts = [part.to_dict() async for part in stream]
        check_chunks(parts)
        assert joined(parts)[0]["message"]["content"] == "wörld"
        gate.allow(2)
        stream = await sdk.chat.completions.create(model="scripted", messages=messages, stream=True)
        async for part in stream:
            if part.choices[0].delta.content:
                break
        await stream.close()
    async with httpx.AsyncClient(base_url=url) as calling:
        num_steps = 0
        while (await calling.get("/health")).json()["active"]:
            gate.allow()
            num_steps += 1
    gate.open()
    assert num_steps < 4000


def test_errors_of_chat(connect: Connect):
    def script(_):
        return [ord("a"), RuntimeError("no")]

    sdk = connect(scripted_backend(script))
    messages: list[Any] = ask()
    with pytest.raises(openai.NotFoundError) as not_found:
        sdk.chat.completions.create(model="gpt-4", messages=messages)
    with pytest.raises(openai.UnprocessableEntityError) as invalid:
        sdk.chat.completions.create(model="scripted", messages=messages, temperature=9)
    with pytest.raises(openai.APIError) as failed:
        list(sdk.chat.completions.create(model="scripted", messages=messages, stream=True))
    with pytest.raises(openai.InternalServerError) as broken:
        sdk.chat.completions.create(model="scripted", messages=messages)
    with pytest.raises(openai.AuthenticationError):
        sdk.with_options(api_key="wrong").chat.completions.create(
            model="scripted", messages=messages
        )
    assert (not_found.value.code, invalid.value.param) == ("model_not_found", "temperature")
    assert (failed.value.code, broken.value.code) == ("engine_error", "engine_error")


def test_completions_echo_with_logprobs(connect: Connect):
    sdk = connect(scripted_backend(repeat_prompt))
    answer = sdk.completions.create(
        model="scripted", prompt="abc", echo=True, logprobs=1, max_tokens=1, temperature=0
    )
    [choice] = answer.choices
    assert choice.logprobs is not None
    assert (choice.text, choice.logprobs.tokens) == ("abca", ["a", "b", "c", "a"])
    assert choice.logprobs.text_offset == [0, 1, 2, 3]


def test_completions_of_several_prompts(connect: Connect):
    sdk = connect(scripted_backend(repeat_prompt))
    answer = sdk.completions.create(
        model="scripted", prompt=["héllo", "you"], n=2, logprobs=1, temperature=0, seed=1
    )
    assert [each.text for each in answer.choices] == ["héllo", "héllo", "you", "you"]
    assert [each.finish_reason for each in answer.choices] == ["stop"] * 4
    logprobs = answer.choices[2].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["y", "o", "u", "<eos>"]
    assert usage_of(answer).total_tokens == 6 + 3 + 2 * (7 + 4)


def test_completions_stream(connect: Connect):
    sdk = connect(scripted_backend(say("wörld")))
    parts = list(
        sdk.completions.create(
            model="scripted", prompt="a", stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(each.text for part in parts for each in part.choices) == "wörld"
    assert usage_of(parts[-1]).completion_tokens == len("wörld".encode()) + 1


def test_errors_of_completions(connect: Connect):
    def script(_):
        return [ord("a"), RuntimeError("no")]

    sdk = connect(scripted_backend(script))
    with pytest.raises(openai.NotFoundError) as not_found:
        sdk.completions.create(model="gpt-4", prompt="a")
    with pytest.raises(openai.UnprocessableEntityError) as invalid:
        sdk.completions.create(model="scripted", prompt="a", temperature=9)
    with pytest.raises(openai.APIError) as failed:
        list(sdk.completions.create(model="scripted", prompt="a", stream=True))
    with pytest.raises(openai.AuthenticationError):
        sdk.with_options(api_key="wrong").models.list()
    assert (not_found.value.code, invalid.value.param) == ("model_not_found", "temperature")
    assert failed.value.code == "engine_error"
