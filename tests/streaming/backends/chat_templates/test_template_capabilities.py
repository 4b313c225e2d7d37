"""What probes detect in the templates of models in use, and in templates that fall short."""

from __future__ import annotations

import pytest
from jinja2 import TemplateError

from streaming.backends.chat_templates.chat_turns import Turn
from streaming.backends.chat_templates.template_capabilities import (
    Render,
    TemplateCapabilities,
    detect_capabilities,
    detect_reasoning,
)
from streaming.chat.format import (
    DEEPSEEK_R1,
    HERMES,
    LLAMA,
    MAGISTRAL_THINK,
    MISTRAL_ARGS,
    MISTRAL_LIST,
    MISTRAL_TIGHT_LIST,
    THINK,
)
from tests.streaming.backends import template_texts
from tests.streaming.backends.template_texts import tokenizer_of

RESULT = "<tool_response>\n{{ message.content }}\n</tool_response>"
TOOLS = "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"


def render_with(template: str) -> Render:
    hf = tokenizer_of(template)

    def render(turns: list[Turn], tools: list[Turn]) -> str:
        try:
            text: str = hf.apply_chat_template(
                turns, tools=tools or None, tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, TypeError):
            return ""
        return text

    return render


def changed(template: str, old: str, new: str) -> str:
    assert old in template
    return template.replace(old, new)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("PLAIN", TemplateCapabilities(writes_system=True)),
        ("NO_SYSTEM", TemplateCapabilities()),
        ("HERMES", TemplateCapabilities(HERMES, writes_tools=True, writes_system=True)),
        ("QWEN_3", TemplateCapabilities(HERMES, writes_tools=True, writes_system=True)),
        ("LLAMA", TemplateCapabilities(LLAMA, writes_tools=True, writes_system=True)),
        ("MISTRAL_3", TemplateCapabilities(MISTRAL_LIST, takes_any_id=False, writes_tools=True)),
        ("MISTRAL_11", TemplateCapabilities(MISTRAL_ARGS, takes_any_id=False, writes_tools=True)),
        ("DEEPSEEK", TemplateCapabilities(DEEPSEEK_R1, takes_text=True, writes_system=True)),
    ],
)
def test_templates_in_use(name: str, expected: TemplateCapabilities):
    assert detect_capabilities(render_with(getattr(template_texts, name))) == expected


def test_a_section_may_begin_without_a_space():
    template = changed(template_texts.MISTRAL_3, "[TOOL_CALLS] [", "[TOOL_CALLS][")
    assert detect_capabilities(render_with(template)).syntax == MISTRAL_TIGHT_LIST


@pytest.mark.parametrize(
    ("old", "new"),
    [(RESULT, ""), ('"arguments": ', '"args": '), ("message.tool_calls or []", "[]")],
    ids=["no results", "unknown syntax", "no calls"],
)
def test_calls_that_cannot_be_used_have_no_syntax(old: str, new: str):
    template = changed(template_texts.HERMES, old, new)
    assert detect_capabilities(render_with(template)) == TemplateCapabilities(writes_system=True)


def test_tools_that_are_left_out_are_detected():
    template = changed(template_texts.HERMES, TOOLS, "")
    assert detect_capabilities(render_with(template)) == TemplateCapabilities(
        HERMES, writes_system=True
    )


@pytest.mark.parametrize(
    ("templates", "expected"),
    [
        ([], None),
        ([template_texts.HERMES], None),
        ([template_texts.HERMES, template_texts.QWEN_3], THINK),
        (["{{ message.content.split('</think>')[-1] }}"], THINK),
        (["[THINK]{{ message.reasoning }}[/THINK]"], MAGISTRAL_THINK),
        (["<think>"], None),
    ],
)
def test_reasoning_is_detected_by_its_end_mark(templates: list[str], expected: object):
    assert detect_reasoning(templates) == expected
