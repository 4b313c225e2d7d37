from __future__ import annotations

import pytest

from app.responses.admission import submit, warm_up
from streaming import ChatMessage, ChatPrompt, GenerationRequest
from streaming.backends.scripted import scripted_backend
from streaming.errors import InvalidRequest, ModelNotFound, PromptTooLong
from tests.support import running_engine

QUESTION = ChatMessage("user", "hi")
OLD_TURNS = tuple(
    ChatMessage(role, letter * 30) for letter in "abc" for role in ("user", "assistant")
)


def request_of(*messages: ChatMessage, model: str | None = None) -> GenerationRequest:
    return GenerationRequest(prompt=ChatPrompt(messages), model=model)


async def test_a_conversation_that_fits_is_submitted_whole():
    async with running_engine(scripted_backend()) as engine:
        whole = await submit(engine, request_of(*OLD_TURNS, QUESTION), truncates=True)
        part = await submit(engine, request_of(QUESTION), truncates=True)
        assert whole.prompt_tokens > part.prompt_tokens + 6 * 30


async def test_old_turns_are_dropped_only_if_the_request_allows_it():
    async with running_engine(scripted_backend(max_model_len=100)) as engine:
        request = request_of(*OLD_TURNS, QUESTION)
        with pytest.raises(PromptTooLong) as refused:
            await submit(engine, request)
        assert refused.value.param == "input"
        log = await submit(engine, request, truncates=True)
        assert log.prompt_tokens < 100


async def test_a_last_turn_that_does_not_fit_is_refused():
    async with running_engine(scripted_backend(max_model_len=100)) as engine:
        with pytest.raises(PromptTooLong):
            await submit(
                engine, request_of(QUESTION, ChatMessage("user", "x" * 200)), truncates=True
            )


async def test_a_warm_up_reads_the_prompt_without_the_answers_beginning():
    async with running_engine(scripted_backend()) as engine:
        answer = await submit(engine, request_of(QUESTION))
        log = await warm_up(engine, request_of(QUESTION))
        assert answer.prompt_tokens - log.prompt_tokens == len("assistant: ")
        with engine.subscribe(log) as reader:
            await reader.wait_ended()
        assert log.usage.completion_tokens == 1


async def test_a_warm_up_without_messages_has_ended_already():
    async with running_engine(scripted_backend()) as engine:
        log = await warm_up(engine, request_of())
        assert (log.is_ended, log.prompt_tokens, log.text) == (True, 0, "")


async def test_a_warm_up_that_the_template_refuses_has_ended_already():
    async with running_engine(scripted_backend(has_chat_template=False)) as engine:
        log = await warm_up(engine, request_of(QUESTION))
        assert (log.is_ended, log.prompt_tokens) == (True, 0)
        with pytest.raises(InvalidRequest):
            await submit(engine, request_of(QUESTION))


async def test_a_warm_up_is_refused_for_its_model_or_length():
    async with running_engine(scripted_backend(max_model_len=100)) as engine:
        with pytest.raises(ModelNotFound):
            await warm_up(engine, request_of(model="other"))
        with pytest.raises(PromptTooLong):
            await warm_up(engine, request_of(ChatMessage("user", "x" * 200)))
