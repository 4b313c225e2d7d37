"""Creation of responses over the scripted backend, without HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.responses.schemas.request import ResponseRequest
from streaming.backends.scripted import Gate, repeat_prompt, say, scripted_backend
from streaming.errors import InvalidRequest, ModelNotFound, PromptTooLong
from tests.app.response_events import check_events
from tests.app.responses.rig import body, complete, refusal, serving_responses, text_of


async def test_a_response_is_written_from_its_log():
    async with serving_responses(scripted_backend(say("hello"))) as (service, _):
        response = await complete(service)
        events = list(response.writer().events())
        assert check_events(events) == await service.registry.snapshot(response)
    assert await text_of(service, response) == "hello"


# Continue a response.


async def test_a_response_continues_an_earlier_one(tmp_path: Path):
    async with serving_responses(scripted_backend(repeat_prompt), directory=tmp_path) as (
        service,
        _,
    ):
        first = await complete(service, text="one", instructions="be nice")
        second = await complete(service, text="two", previous_response_id=first.response_id)
        assert await text_of(service, second) == (
            "user: one\nassistant: system: be nice\nuser: one\nassistant: \nuser: two\nassistant: "
        )
        items: list[Any] = [*second.context.items]
        assert [item["role"] for item in items] == ["user", "assistant", "user"]
        assert second.context.own == tuple(items[2:])
        assert items[2]["content"][0]["text"] == "two"


async def test_a_given_parent_is_not_looked_up():
    async with serving_responses(scripted_backend(repeat_prompt)) as (service, _):
        first = await complete(service, text="one", store=False)
        fields = {"text": "two", "previous_response_id": first.response_id}
        assert await refusal(complete(service, **fields)) == "previous_response_not_found"
        second = await complete(service, **fields, parent=first)
        assert len(second.context.items) == 3


async def test_an_open_response_cannot_be_continued():
    gate = Gate()
    async with serving_responses(scripted_backend(gate=gate), gate=gate) as (service, _):
        first = await service.create(body(background=True), caller="me")
        with pytest.raises(InvalidRequest, match="not ended"):
            await service.create(body(previous_response_id=first.response_id), caller="me")


async def test_references_are_resolved(tmp_path: Path):
    async with serving_responses(scripted_backend(repeat_prompt), directory=tmp_path) as (
        service,
        _,
    ):
        mine = {"role": "user", "content": "mine", "id": "my-own"}
        first = await complete(service, text=[mine, {"role": "user", "content": "two"}])
        names = [item["id"] for item in first.finish().conversation()][1:]
        items = [{"type": "item_reference", "id": name} for name in names]
        second = await complete(service, text=items)
        assert second.context.items == first.finish().conversation()[1:]
        by_my_own = [{"type": "item_reference", "id": "my-own"}]
        third = await complete(service, text=by_my_own, previous_response_id=first.response_id)
        assert third.context.items[-1] == third.context.items[0]
        for caller, item in (("me", by_my_own[0]), ("you", items[0])):
            with pytest.raises(InvalidRequest, match="no item") as refused:
                await service.create(body([item]), caller=caller)
            assert refused.value.param == "input[0].id"


async def test_items_of_an_open_response_cannot_be_referenced():
    gate = Gate()
    async with serving_responses(scripted_backend(gate=gate), gate=gate) as (service, _):
        first = await service.create(body(background=True), caller="me")
        item = {"type": "item_reference", "id": first.context.items[0]["id"]}
        with pytest.raises(InvalidRequest, match="no item"):
            await service.create(body([item]), caller="me")


async def test_deleting_the_first_does_not_break_the_second(tmp_path: Path):
    async with serving_responses(scripted_backend(repeat_prompt), directory=tmp_path) as (
        service,
        _,
    ):
        first = await complete(service, text="one")
        second = await complete(service, text="two", previous_response_id=first.response_id)
        await service.registry.delete(first.response_id, caller="me")
        third = await complete(service, text="three", previous_response_id=second.response_id)
        assert len(third.context.items) == 5


async def test_a_warm_up_has_no_output_and_can_be_continued():
    prompts: list[str] = []

    def script(sequence: Any) -> list[int]:
        prompts.append(bytes(sequence.prompt_ids).decode())
        return [ord("x")] * 3

    async with serving_responses(scripted_backend(script)) as (service, _):
        fields: dict[str, Any] = {"text": None, "instructions": "be nice", "generate": False}
        first = await complete(service, **fields, max_output_tokens=20)
        response = check_events(list(first.writer().events()))
        assert (response["status"], response["output"]) == ("completed", [])
        assert response["max_output_tokens"] == 20
        second = await complete(service, text="well", generate=False)
        third = await complete(service, previous_response_id=second.response_id)
        with pytest.raises(PromptTooLong):
            await service.create(body("x" * 5000, generate=False), caller="me")
    assert prompts == [
        "system: be nice\n",
        "user: well\n",
        "user: well\nuser: hi\nassistant: ",
    ]
    assert [each.generation.usage.completion_tokens for each in (first, second, third)] == [1, 1, 4]


@pytest.mark.parametrize("has_chat_template", [True, False])
async def test_a_warm_up_with_nothing_to_read_is_complete_at_once(has_chat_template: bool):
    """Without a template the prompt is refused, as by a template that requires a user message."""
    backend = scripted_backend(has_chat_template=has_chat_template)
    async with serving_responses(backend) as (service, engine):
        text = None if has_chat_template else "hi"
        response = await service.create(body(text, generate=False), caller="me")
        assert response.is_ended
        assert check_events(list(response.writer().events()))["status"] == "completed"
        assert engine.stats.num_running == engine.stats.num_waiting == 0
        with pytest.raises(ModelNotFound):
            await service.create(body(None, generate=False, model="other"), caller="me")


# Refusals.


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": True, "store": False}, "background"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_tool_calls": 0}, "max_tool_calls"),
        ({"temperature": 3}, "temperature"),
        ({"top_logprobs": 21, "include": ["message.output_text.logprobs"]}, "top_logprobs"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": -1}, "top_logprobs"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"stop": [""]}, "stop"),
        ({"timeout_s": -1}, "timeout_s"),
    ],
)
async def test_errors_name_the_field_of_this_dialect(fields: dict[str, Any], param: str):
    async with serving_responses(scripted_backend()) as (service, _):
        request = ResponseRequest.model_validate({"input": "hi", **fields})
        with pytest.raises(InvalidRequest) as refused:
            await service.create(request, caller="me")
        assert refused.value.param == param
        assert service.registry.live.num_open == 0


async def test_another_model_is_refused():
    async with serving_responses(scripted_backend()) as (service, _):
        with pytest.raises(ModelNotFound):
            await service.create(body(model="other"), caller="me")


async def test_a_conversation_that_does_not_fit_is_refused_or_truncated():
    async with serving_responses(scripted_backend(repeat_prompt, max_model_len=100)) as (
        service,
        _,
    ):
        turns = [{"role": "user", "content": f"{number}" * 30} for number in range(4)]
        with pytest.raises(PromptTooLong) as refused:
            await service.create(body(turns), caller="me")
        assert refused.value.param == "input"
        fields: dict[str, Any] = {"text": turns, "truncation": "auto", "instructions": "be nice"}
        response = await complete(service, **fields)
        assert (
            await text_of(service, response)
            == (f"system: be nice\nuser: {'3' * 30}\nassistant: "[:36])
        )
        assert len(response.context.items) == 4, "the stored context is not truncated"
        turns[-1]["content"] = "3" * 100
        with pytest.raises(PromptTooLong):
            await complete(service, **fields)


async def test_a_prompt_longer_than_the_context_is_counted():
    async with serving_responses(scripted_backend(max_model_len=50)) as (service, _):
        assert await service.count_input_tokens(body("x" * 45), caller="me") == 63
        assert service.registry.live.num_open == 0
