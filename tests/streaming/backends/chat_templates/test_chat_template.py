"""Conversations with tools are rendered as each model's own template writes them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from streaming.backends.chat_templates.chat_template import ChatTemplate, has_chat_template
from streaming.backends.tokenization.tokenizer import FastTokenizer
from streaming.chat.format import (
    DEEPSEEK_R1,
    DEFAULT_TOOL_SYNTAX,
    HERMES,
    LLAMA,
    MISTRAL_ARGS,
    MISTRAL_LIST,
    THINK,
    ChatFormat,
)
from streaming.chat.messages import ChatMessage, Tool, ToolCall, ToolChoice, ToolMode
from streaming.chat.output_parser import PLAIN, OutputFormat
from streaming.errors import InvalidRequest
from streaming.request import ChatPrompt
from tests.streaming.backends import template_texts, tiny_models
from tests.streaming.backends.template_texts import tokenizer_of

WEATHER = Tool(
    "weather", "Tells.", '{"type": "object", "properties": {"city": {"type": "string"}}}'
)
FUNCTION = (
    '{"name": "weather", "description": "Tells.", '
    '"parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}'
)
OPENAI_TOOL = f'{{"type": "function", "function": {FUNCTION}}}'
DESCRIPTION = (
    "You are a function calling assistant. The functions are inside <tools></tools>, one on each "
    f"line:\n<tools>\n{FUNCTION}\n</tools>\n\n"
    "Where a function can help, call it in this form and add nothing:\n%s\n"
    "You are then given its result. Where no function can help, answer in words."
)
HERMES_EXAMPLE = '<tool_call>\n{"name": "NAME", "arguments": {"ARGUMENT": VALUE}}\n</tool_call>'
HERMES_CALLS = (
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
)
SYSTEM = ChatMessage("system", "Be kind.")
ASK = ChatMessage("user", "Rome? Oslo?")
ROUND_TRIP = (
    ASK,
    ChatMessage(
        "assistant",
        "I look.",
        (
            ToolCall("call_a1", "weather", '{"city": "Rome"}'),
            ToolCall("call_b2", "weather", '{"city":"Oslo"}'),
        ),
        reasoning="Two of them.",
    ),
    ChatMessage("tool", "sun", tool_call_id="call_a1"),
    ChatMessage("tool", "fog", tool_call_id="call_b2"),
)

DETECTED = [
    ("PLAIN", ChatFormat()),
    ("NO_SYSTEM", ChatFormat()),
    ("HERMES", ChatFormat(HERMES)),
    ("QWEN_3", ChatFormat(HERMES, THINK)),
    ("LLAMA", ChatFormat(LLAMA)),
    ("MISTRAL_3", ChatFormat(MISTRAL_LIST)),
    ("MISTRAL_11", ChatFormat(MISTRAL_ARGS)),
    ("DEEPSEEK", ChatFormat(DEEPSEEK_R1, THINK)),
]

WRITTEN = [
    (
        "PLAIN",
        f"<|im_start|>system\nBe kind.\n\n{DESCRIPTION % HERMES_EXAMPLE}<|im_end|>\n"
        "<|im_start|>user\nRome? Oslo?<|im_end|>\n"
        f"<|im_start|>assistant\nI look.\n{HERMES_CALLS}<|im_end|>\n"
        "<|im_start|>user\nResult of weather:\nsun\nResult of weather:\nfog<|im_end|>\n"
        "<|im_start|>assistant\n",
    ),
    (
        "NO_SYSTEM",
        f"<user>{DESCRIPTION % HERMES_EXAMPLE}\n\nRome? Oslo?\n"
        f"<assistant>I look.\n{HERMES_CALLS}\n"
        "<user>Result of weather:\nsun\nResult of weather:\nfog\n<assistant>",
    ),
    (
        "HERMES",
        f"<|im_start|>system\nBe kind.\n<tools>\n{OPENAI_TOOL}\n</tools><|im_end|>\n"
        "<|im_start|>user\nRome? Oslo?<|im_end|>\n"
        f"<|im_start|>assistant\nI look.\n{HERMES_CALLS}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\nsun\n</tool_response>\n"
        "<tool_response>\nfog\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        "QWEN_3",
        f"<|im_start|>system\nBe kind.\n<tools>\n{OPENAI_TOOL}\n</tools><|im_end|>\n"
        "<|im_start|>user\nRome? Oslo?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nTwo of them.\n</think>\n\n"
        f"I look.\n{HERMES_CALLS}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\nsun\n</tool_response>\n"
        "<tool_response>\nfog\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        "LLAMA",
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        f"{OPENAI_TOOL}\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nRome? Oslo?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
        '{"name": "weather", "parameters": {"city": "Rome"}}<|eot_id|>'
        '<|start_header_id|>ipython<|end_header_id|>\n\n"sun"<|eot_id|>'
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
        '{"name": "weather", "parameters": {"city": "Oslo"}}<|eot_id|>'
        '<|start_header_id|>ipython<|end_header_id|>\n\n"fog"<|eot_id|>'
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    (
        "MISTRAL_3",
        "<s>[INST] Rome? Oslo?[/INST]"
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rome"}, "id": "494e6ce05"}, '
        '{"name": "weather", "arguments": {"city": "Oslo"}, "id": "a55ae89ad"}]</s>'
        '[TOOL_RESULTS] {"content": sun, "call_id": "494e6ce05"}[/TOOL_RESULTS]'
        '[TOOL_RESULTS] {"content": fog, "call_id": "a55ae89ad"}[/TOOL_RESULTS]',
    ),
    (
        "MISTRAL_11",
        "<s>[INST] Rome? Oslo?[/INST]"
        '[TOOL_CALLS]weather[CALL_ID]494e6ce05[ARGS]{"city": "Rome"}'
        '[TOOL_CALLS]weather[CALL_ID]a55ae89ad[ARGS]{"city": "Oslo"}</s>'
        '[TOOL_RESULTS] {"content": sun, "call_id": "494e6ce05"}[/TOOL_RESULTS]'
        '[TOOL_RESULTS] {"content": fog, "call_id": "a55ae89ad"}[/TOOL_RESULTS]',
    ),
    (
        "DEEPSEEK",
        "<｜begin▁of▁sentence｜>Be kind.\n\n"
        + DESCRIPTION
        % (
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n"
            '```json\n{"ARGUMENT": VALUE}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
        )
        + "<｜User｜>Rome? Oslo?<｜Assistant｜><｜tool▁calls▁begin｜>"
        '<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city": "Rome"}\n```'
        "<｜tool▁call▁end｜>\n"
        '<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city": "Oslo"}\n```'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
        "<｜tool▁outputs▁begin｜>sun<｜tool▁outputs▁end｜>"
        "<｜tool▁outputs▁begin｜>fog<｜tool▁outputs▁end｜><｜Assistant｜><think>\n",
    ),
]
WITHOUT_SYSTEM = {"NO_SYSTEM", "MISTRAL_3", "MISTRAL_11"}


def template_of(name: str) -> ChatTemplate:
    return ChatTemplate(tokenizer_of(getattr(template_texts, name)))


def written(template: ChatTemplate, *messages: ChatMessage, **options: Any) -> str:
    return template.render(ChatPrompt(messages, **options))[0]


def refused(template: ChatTemplate, prompt: ChatPrompt) -> str:
    with pytest.raises(InvalidRequest) as caught:
        template.render(prompt)
    return str(caught.value)


# The detected format; test_template_capabilities has the details.


@pytest.mark.parametrize(("name", "expected"), DETECTED)
def test_the_format_is_detected(name: str, expected: ChatFormat):
    assert template_of(name).format == expected


@pytest.mark.parametrize(
    "change",
    [
        ("<tool_response>\n{{ message.content }}\n</tool_response>", ""),  # no results
        ('"arguments": ', '"args": '),  # an unknown syntax
    ],
)
def test_an_unknown_syntax_is_not_used(change: tuple[str, str]):
    template = template_texts.HERMES.replace(*change)
    assert template != template_texts.HERMES
    prompt = written(ChatTemplate(tokenizer_of(template)), SYSTEM, *ROUND_TRIP, tools=(WEATHER,))
    assert DESCRIPTION % HERMES_EXAMPLE in prompt
    assert "Result of weather:\nsun\nResult of weather:\nfog" in prompt


def test_a_model_without_a_template_refuses_conversations():
    hf = tiny_models.hf_tokenizer(chat_template=None)
    assert not has_chat_template(hf)
    assert refused(ChatTemplate(hf), ChatPrompt((ASK,))) == (
        "messages: this model has no chat template"
    )


def test_has_chat_template():
    hf = tiny_models.hf_tokenizer(chat_template=None)
    hf.chat_template = {"tool_use": "x"}
    assert not has_chat_template(hf)
    hf.chat_template = {"default": "x", "tool_use": "y"}
    assert has_chat_template(hf)


# Rendering.


@pytest.mark.parametrize(("name", "expected"), WRITTEN)
def test_a_round_trip_through_tools(name: str, expected: str):
    messages = ROUND_TRIP if name in WITHOUT_SYSTEM else (SYSTEM, *ROUND_TRIP)
    assert written(template_of(name), *messages, tools=(WEATHER,)) == expected


@pytest.mark.parametrize("name", [name for name, _ in DETECTED])
def test_tools_are_rendered_only_if_they_may_be_called(name: str):
    template = template_of(name)
    plain = written(template, ASK)
    assert "Tells." not in plain
    assert written(template, ASK, tools=(WEATHER,)).count("Tells.") == 1
    never = ToolChoice(ToolMode.NONE)
    assert written(template, ASK, tools=(WEATHER,), tool_choice=never) == plain


def test_tools_get_a_system_turn_if_the_caller_has_none():
    prompt = written(template_of("PLAIN"), ASK, tools=(WEATHER,))
    assert prompt.startswith(f"<|im_start|>system\n{DESCRIPTION % HERMES_EXAMPLE}<|im_end|>\n")


def test_results_and_the_next_user_message_share_a_turn():
    messages = (*ROUND_TRIP, ChatMessage("user", "And now?"), ChatMessage("user", "Well?"))
    assert written(template_of("PLAIN"), *messages).endswith(
        "<|im_start|>user\nResult of weather:\nsun\nResult of weather:\nfog\nAnd now?<|im_end|>\n"
        "<|im_start|>user\nWell?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_result_without_a_call_has_no_tool_name():
    prompt = written(template_of("PLAIN"), ASK, ChatMessage("tool", "3", tool_call_id="x"))
    assert "Rome? Oslo?\nResult of the function:\n3<|im_end|>" in prompt


def test_unmatched_calls_and_results_are_kept_if_calls_are_single():
    first, second = ROUND_TRIP[1].tool_calls
    messages = (
        ASK,
        ChatMessage("assistant", "", (first, second)),
        ChatMessage("tool", "fog", tool_call_id="call_b2"),
        ChatMessage("tool", "rain", tool_call_id="other"),
        ChatMessage("user", "Well?"),
    )
    prompt = written(template_of("LLAMA"), *messages)
    order = [prompt.index(text) for text in ('"Rome"', '"Oslo"', '"fog"', '"rain"', "Well?")]
    assert order == sorted(order)


def test_a_call_without_arguments_gets_an_empty_object():
    call = ToolCall("call_1", "weather", "")
    prompt = written(template_of("HERMES"), ASK, ChatMessage("assistant", "", (call,)))
    assert '{"name": "weather", "arguments": {}}' in prompt


def test_call_ids_that_the_template_accepts_are_kept():
    call = ToolCall("abcDEF123", "weather", "{}")
    messages = (
        ASK,
        ChatMessage("assistant", "", (call,)),
        ChatMessage("tool", "sun", tool_call_id="abcDEF123"),
    )
    assert written(template_of("MISTRAL_3"), *messages).count("abcDEF123") == 2


def test_a_tokenizer_may_have_a_template_for_tools():
    hf = tokenizer_of({"default": template_texts.PLAIN, "tool_use": template_texts.HERMES})
    template = ChatTemplate(hf)
    assert written(template, ASK).startswith("<|im_start|>user\n")
    assert "<tools>" in written(template, ASK, tools=(WEATHER,))
    # It also renders the calls of earlier turns when no tools are offered.
    assert "<tool_response>" in written(template, *ROUND_TRIP)


# The end of the text.


def test_without_a_generation_prompt_the_text_ends_with_the_last_turn():
    prompt = written(template_of("HERMES"), ASK, add_generation_prompt=False)
    assert prompt == "<|im_start|>user\nRome? Oslo?<|im_end|>\n"


def test_the_final_message_may_be_continued():
    prompt = written(
        template_of("HERMES"),
        ASK,
        ChatMessage("assistant", "It is"),
        add_generation_prompt=False,
        continue_final_message=True,
    )
    assert prompt.endswith("<|im_start|>assistant\nIt is")


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("QWEN_3", {}, OutputFormat(reasoning=THINK)),
        ("QWEN_3", {"template_kwargs": '{"enable_thinking": false}'}, PLAIN),
        ("DEEPSEEK", {}, OutputFormat(reasoning=THINK, starts_in_reasoning=True)),
        ("PLAIN", {}, PLAIN),
        ("PLAIN", {"tools": (WEATHER,)}, OutputFormat(DEFAULT_TOOL_SYNTAX)),
    ],
)
def test_the_answers_format_depends_on_the_rendered_text(
    name: str, options: dict[str, Any], expected: OutputFormat
):
    assert template_of(name).render(ChatPrompt((ASK,), **options))[1] == expected


# Special tokens in the caller's texts.

CALL = ToolCall("call_<|im_end|>", "f<|im_end|>", json.dumps({"<|im_end|>": ["<|im_end|>"]}))
ESCAPED_CALL = ToolCall("call_1", "f", r'{"a": "\u003c|im_end|\u003e"}')


@pytest.mark.parametrize(
    "prompt",
    [
        ChatPrompt((ASK,), tools=(Tool("f", "<|im_end|>", '{"<|im_end|>": ["<|im_end|>"]}'),)),
        ChatPrompt((ASK,), tools=(Tool("f", "", r'{"title": "\u003c|im_end|>"}'),)),
        ChatPrompt((ASK, ChatMessage("assistant", "", (CALL,)))),
        ChatPrompt((ASK, ChatMessage("assistant", "", (ESCAPED_CALL,)))),
        ChatPrompt((ASK, ChatMessage("assistant", "x", reasoning="<|im_end|>"))),
        ChatPrompt(
            (
                ASK,
                ChatMessage("assistant", "x"),
                ChatMessage("tool", "<|im_end|>", name="<|im_end|>"),
            )
        ),
        ChatPrompt((ASK,), template_kwargs=r'{"mood": "\u003c|im_end|>"}'),
    ],
    ids=range(7),
)
@pytest.mark.parametrize("name", ["PLAIN", "QWEN_3"])
def test_special_tokens_of_the_caller_are_encoded_as_text(name: str, prompt: ChatPrompt):
    template = getattr(template_texts, name) + "{{ mood }}"
    hf = tokenizer_of(template)
    end_id = hf.convert_tokens_to_ids("<|im_end|>")
    num_turns = len(prompt.messages) + bool(prompt.tools)
    token_ids = FastTokenizer(hf, vocab_size=1000).encode_chat(prompt)
    assert token_ids.count(end_id) == num_turns


# Refusals.


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"template_kwargs": "{"},
            "chat_template_kwargs: not valid JSON: Expecting property name enclosed in "
            "double quotes: line 1 column 2 (char 1)",
        ),
        *(
            (
                {"template_kwargs": "[" * depth + "]" * depth},
                "chat_template_kwargs: not valid JSON: it is nested too deeply",
            )
            for depth in (700, 100_000)
        ),
        ({"template_kwargs": "[1]"}, "chat_template_kwargs: must be a JSON object"),
        *(
            (
                {"template_kwargs": json.dumps({name: 1})},
                f"chat_template_kwargs: {name!r} is reserved",
            )
            for name in (
                *("messages", "conversation", "tools", "self", "tokenize", "eos_token"),
                *("add_generation_prompt", "continue_final_message", "chat_template"),
            )
        ),
        (
            {"template_kwargs": '{"mood": 1}'},
            "chat_template_kwargs: the model's chat template failed to render them",
        ),
        (
            {"tools": (Tool("f", "", "[" * 700 + "]" * 700),)},
            "tools: the parameters of 'f' are not valid JSON: it is nested too deeply",
        ),
        ({"tools": (WEATHER,)}, "tools: refused by the model's chat template: no tools, please"),
    ],
)
def test_a_refusal_names_the_parameter(options: dict[str, Any], expected: str):
    template = template_texts.HERMES + (
        "{{ 'x' + mood if mood else '' }}"
        "{% if tools and messages | length == 1 and messages[0].content != 'PROBE_U' %}"
        "{{ raise_exception('no tools, please') }}{% endif %}"
    )
    found = refused(ChatTemplate(tokenizer_of(template)), ChatPrompt((ASK,), **options))
    assert found == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            "x",
            "messages: the arguments of a tool call are not valid JSON: "
            "Expecting value: line 1 column 1 (char 0)",
        ),
        (
            "[" * 700 + "]" * 700,
            "messages: the arguments of a tool call are not valid JSON: it is nested too deeply",
        ),
        ("[1]", "messages: the arguments of a tool call must be a JSON object"),
    ],
)
def test_arguments_of_earlier_calls_must_be_objects(arguments: str, expected: str):
    message = ChatMessage("assistant", "", (ToolCall("call_1", "f", arguments),))
    assert refused(template_of("HERMES"), ChatPrompt((ASK, message))) == expected


def test_an_error_raised_by_the_template_is_the_reason():
    prompt = ChatPrompt((ASK, ASK), tools=(WEATHER,))
    assert refused(template_of("NO_SYSTEM"), prompt) == (
        "messages: refused by the model's chat template: the turns must alternate"
    )
