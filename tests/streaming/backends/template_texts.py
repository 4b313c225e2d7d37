"""Short chat templates with the marks and the structure of the templates of models in use."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tests.streaming.backends import tiny_models

_NEWLINE = "{{ '\n' }}"
"""A newline after a block; Jinja would remove a literal one."""
_TURNS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = _TURNS
"""No tools; renders any role."""

NO_SYSTEM = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('the turns must alternate') }}{% endif %}"
    "<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""No tools, no system turn, and turns that must alternate."""

_HERMES_TOOLS = (
    "{% if tools %}<|im_start|>system\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}\n{% endif %}"
    "<tools>\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}</tools><|im_end|>\n"
    "{% elif messages[0].role == 'system' %}"
    "<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
)
_HERMES_TURNS = (
    "{% for message in messages %}"
    "{% if message.role == 'tool' %}"
    "{% if not loop.previtem or loop.previtem.role != 'tool' %}<|im_start|>user{% endif %}"
    + _NEWLINE
    + "<tool_response>\n{{ message.content }}\n</tool_response>"
    "{% if loop.last or loop.nextitem.role != 'tool' %}<|im_end|>\n{% endif %}"
    "{% elif message.role != 'system' %}<|im_start|>{{ message.role }}\n"
    "{% if message.reasoning_content %}<think>\n{{ message.reasoning_content }}\n</think>\n\n"
    "{% endif %}{{ message.content }}"
    "{% for call in message.tool_calls or [] %}"
    "{% if message.content or not loop.first %}" + _NEWLINE + "{% endif %}"
    '<tool_call>\n{"name": "{{ call.function.name }}", "arguments": '
    "{% if call.function.arguments is string %}{{ call.function.arguments }}"
    "{% else %}{{ call.function.arguments | tojson }}{% endif %}}\n</tool_call>"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
)
HERMES = (
    _HERMES_TOOLS
    + _HERMES_TURNS.replace(
        "{% if message.reasoning_content %}<think>\n{{ message.reasoning_content }}\n</think>\n\n"
        "{% endif %}",
        "",
    )
    + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Like Hermes 2 Pro and Qwen 2.5."""
QWEN_3 = (
    _HERMES_TOOLS + _HERMES_TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""Like Qwen 3: reasoning that can be switched off."""

LLAMA = (
    "<|begin_of_text|>{% for message in messages %}"
    "{% if message.tool_calls and message.tool_calls | length != 1 %}"
    "{{ raise_exception('one call at a time') }}{% endif %}"
    "<|start_header_id|>{{ 'ipython' if message.role == 'tool' else message.role }}"
    "<|end_header_id|>\n\n"
    "{% if loop.first and tools %}"
    "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}"
    "{% if message.tool_calls %}"
    '{"name": "{{ message.tool_calls[0].function.name }}", '
    '"parameters": {{ message.tool_calls[0].function.arguments | tojson }}}'
    "{% elif message.role == 'tool' %}{{ message.content | tojson }}"
    "{% else %}{{ message.content }}{% endif %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
"""Like Llama 3.1."""

_MISTRAL_IDS = (
    "{% if call.id | length != 9 %}{{ raise_exception('ids have 9 characters') }}{% endif %}"
)
_MISTRAL_HEAD = (
    "<s>{% for message in messages %}{% if message.role == 'user' %}"
    "{% if tools and loop.last %}"
    "[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "[INST] {{ message.content }}[/INST]{% elif message.tool_calls %}"
)
_MISTRAL_TAIL = (
    "</s>{% elif message.role == 'tool' %}"
    '[TOOL_RESULTS] {"content": {{ message.content }}, "call_id": "{{ message.tool_call_id }}"}'
    "[/TOOL_RESULTS]{% elif message.role == 'assistant' %} {{ message.content }}</s>"
    "{% else %}{{ raise_exception('only user, assistant and tool') }}{% endif %}{% endfor %}"
)
MISTRAL_3 = (
    f"{_MISTRAL_HEAD}[TOOL_CALLS] [{{% for call in message.tool_calls %}}{_MISTRAL_IDS}"
    """{{ (call.function | tojson)[:-1] }}, "id": "{{ call.id }}"}"""
    f"{{{{ ', ' if not loop.last else ']' }}}}{{% endfor %}}{_MISTRAL_TAIL}"
)
"""Like version 3 of Mistral's tokenizers."""
MISTRAL_11 = (
    f"{_MISTRAL_HEAD}{{% for call in message.tool_calls %}}{_MISTRAL_IDS}[TOOL_CALLS]"
    "{{ call.function.name }}[CALL_ID]{{ call.id }}[ARGS]{{ call.function.arguments | tojson }}"
    f"{{% endfor %}}{_MISTRAL_TAIL}"
)
"""Like version 11 of Mistral's tokenizers."""

DEEPSEEK = (
    "<｜begin▁of▁sentence｜>{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content }}"
    "{% elif message.role == 'user' %}<｜User｜>{{ message.content }}"
    "{% elif message.tool_calls %}<｜Assistant｜><｜tool▁calls▁begin｜>"
    "{% for call in message.tool_calls %}"
    "{{ '' if loop.first else '\n' }}<｜tool▁call▁begin｜>{{ call.type }}<｜tool▁sep｜>"
    "{{ call.function.name + '\n```json\n' + call.function.arguments + '\n```' }}"
    "<｜tool▁call▁end｜>{% endfor %}<｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
    "{% elif message.role == 'tool' %}"
    "<｜tool▁outputs▁begin｜>{{ message.content }}<｜tool▁outputs▁end｜>"
    "{% else %}<｜Assistant｜>{{ message.content.split('</think>')[-1] }}<｜end▁of▁sentence｜>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)
"""Like DeepSeek R1: calls but no tools, and answers that begin inside reasoning."""

IM_MARKS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
MISTRAL_MARKS = (
    *("<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
)
LLAMA_MARKS = (
    *("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "<|python_tag|>",
)
DEEPSEEK_MARKS = (
    *("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
    *("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>"),
    *("<｜tool▁call▁end｜>", "<｜tool▁sep｜>", "<｜tool▁outputs▁begin｜>"),
    *("<｜tool▁outputs▁end｜>", "<think>", "</think>"),
)


def tokenizer_of(
    template: str | dict[str, str], *, special: Iterable[str] = (), added: Iterable[str] = ()
) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with additional tokens.

    Args:
        template: its chat template, or several by name.
        special: special tokens, which decoding omits.
        added: plain tokens that are never split.
    """
    rust = tiny_models.rust_tokenizer()
    rust.add_special_tokens([AddedToken(text, special=True) for text in special])
    rust.add_tokens([AddedToken(text, special=False) for text in added])
    tokenizer = tiny_models.hf_tokenizer(rust)
    tokenizer.chat_template = template
    return tokenizer
