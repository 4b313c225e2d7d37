"""Validation before the queue, with the name of the field, and conversion to sequences."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from streaming.admission.input_processor import InputProcessor
from streaming.backend import EncodedPrompt, GrammarCompiler
from streaming.backends.scripted import EOS, ByteTokenizer, scripted_backend
from streaming.chat.format import DEFAULT_TOOL_SYNTAX, HERMES, LLAMA, THINK
from streaming.chat.messages import (
    ANY_TOOL,
    MAX_PARALLEL_CALLS,
    ChatMessage,
    Tool,
    ToolCall,
    ToolChoice,
    ToolMode,
)
from streaming.chat.output_parser import PLAIN, OutputFormat
from streaming.errors import InvalidRequest, ModelNotFound, PromptTooLong
from streaming.output_constraint import (
    AnswerGrammar,
    Grammar,
    GrammarKind,
    GrammarMatcher,
    OutputConstraint,
)
from streaming.request import (
    ChatPrompt,
    GenerationRequest,
    Prompt,
    TextPrompt,
    TokenPrompt,
)
from streaming.sampling_params import SamplingParams
from tests.support import WordCompiler, WordMatcher

LIMIT = 16
SURROGATE = "a\ud800b"


def make_processor(*, has_chat_template: bool = True) -> InputProcessor:
    return InputProcessor(
        scripted_backend(max_model_len=LIMIT, has_chat_template=has_chat_template)
    )


def chat(*contents: str, role: str = "user") -> ChatPrompt:
    return ChatPrompt(tuple(ChatMessage(role, content) for content in contents))


def refused(prompt: Prompt, **params: object) -> tuple[str, str | None]:
    """Return the class and the field of the error that `check` raises."""
    request = GenerationRequest(prompt=prompt, params=SamplingParams(**params))  # type: ignore[arg-type]
    with pytest.raises((InvalidRequest, PromptTooLong, ModelNotFound)) as caught:
        make_processor().check(request)
    return type(caught.value).__name__, caught.value.param


@pytest.mark.parametrize(
    "prompt",
    [
        TextPrompt("a"),
        TextPrompt(
            "x" * LIMIT
        ),  # as many characters as could fit; its tokens are counted by `encode`
        TextPrompt("日本 😀 \u0000"),
        TokenPrompt((0, EOS)),
        TokenPrompt((1,) * (LIMIT - 1)),
        chat("hi"),
        chat(""),
    ],
)
def test_a_prompt_that_may_fit_passes(prompt: Prompt):
    make_processor().check(GenerationRequest(prompt=prompt))


@pytest.mark.parametrize(
    ("prompt", "refusal"),
    [
        (TextPrompt(""), ("InvalidRequest", "prompt")),
        (TokenPrompt(()), ("InvalidRequest", "prompt")),
        (ChatPrompt(()), ("InvalidRequest", "messages")),
        (TextPrompt("x" * (LIMIT + 1)), ("PromptTooLong", "prompt")),
        (chat("x" * LIMIT, "x"), ("PromptTooLong", "messages")),
        (TokenPrompt((1,) * LIMIT), ("PromptTooLong", "prompt")),
        (TextPrompt(SURROGATE), ("InvalidRequest", "prompt")),
        (chat("fine", SURROGATE), ("InvalidRequest", "messages")),
        (chat("fine", role=SURROGATE), ("InvalidRequest", "messages")),
        (chat("fine", role="r" * LIMIT), ("PromptTooLong", "messages")),
        (TokenPrompt((1, -1)), ("InvalidRequest", "prompt")),
        (TokenPrompt((1, EOS + 1)), ("InvalidRequest", "prompt")),
        (TokenPrompt((10**30,)), ("InvalidRequest", "prompt")),
    ],
)
def test_a_prompt_that_cannot_be_served_is_refused_by_name(
    prompt: Prompt, refusal: tuple[str, str]
):
    assert refused(prompt) == refusal


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("stop", (SURROGATE,)),
        ("logit_bias", {EOS + 1: 1.0}),
        ("logit_bias", {-1: 1.0}),
        ("stop_token_ids", frozenset({EOS + 1})),
        ("stop_token_ids", frozenset({-1})),
    ],
)
def test_a_parameter_that_does_not_fit_the_model_is_refused_by_name(param: str, value: object):
    assert refused(TextPrompt("a"), **{param: value}) == ("InvalidRequest", param)


def test_stop_tokens_that_leave_none_before_min_tokens_are_refused_by_name():
    every_byte = frozenset(range(EOS))
    assert refused(TextPrompt("a"), min_tokens=1, stop_token_ids=every_byte) == (
        "InvalidRequest",
        "stop_token_ids",
    )


@pytest.mark.parametrize(
    "params",
    [
        {"stop_token_ids": frozenset(range(EOS))},
        {"stop_token_ids": frozenset(range(EOS - 1)), "min_tokens": 1},
        {
            "stop_token_ids": frozenset(range(EOS)),
            "min_tokens": 1,
            "grammar": Grammar(GrammarKind.REGEX, "a"),
        },
    ],
)
def test_stop_tokens_that_leave_some_pass(params: dict[str, Any]):
    """With a grammar, `min_tokens` bans nothing."""
    request = GenerationRequest(prompt=TextPrompt("a"), params=SamplingParams(**params))
    make_processor().check(request)


def test_token_ids_of_the_models_own_range_pass():
    params = SamplingParams(stop_token_ids=frozenset({0, EOS}), logit_bias={0: 1.0, EOS: 1.0})
    make_processor().check(GenerationRequest(prompt=TextPrompt("a"), params=params))


@pytest.mark.parametrize("model", [None, "scripted"])
def test_the_served_model_may_be_named(model: str | None):
    make_processor().check(GenerationRequest(prompt=TextPrompt("a"), model=model))


def test_another_model_is_refused_by_name():
    with pytest.raises(ModelNotFound) as caught:
        make_processor().check(GenerationRequest(prompt=TextPrompt("a"), model="gpt"))
    assert (caught.value.param, caught.value.served) == ("model", "scripted")


def test_a_model_without_a_template_refuses_messages():
    processor = make_processor(has_chat_template=False)
    with pytest.raises(InvalidRequest, match="scripted has no chat template") as caught:
        processor.check(GenerationRequest(prompt=chat("hi")))
    assert caught.value.param == "messages"
    processor.check(GenerationRequest(prompt=TextPrompt("hi")))


# Grammars.


def with_grammar(source: str) -> GenerationRequest:
    params = SamplingParams(grammar=Grammar(GrammarKind.REGEX, source))
    return GenerationRequest(prompt=TextPrompt("a"), params=params)


def test_a_backend_without_grammars_refuses_them_by_name():
    backend = dataclasses.replace(scripted_backend(), grammars=None)
    with pytest.raises(
        InvalidRequest, match="scripted does not support structured output"
    ) as caught:
        InputProcessor(backend).check(with_grammar("a"))
    assert caught.value.param == "response_format"


def test_a_grammar_is_unicode():
    processor = InputProcessor(dataclasses.replace(scripted_backend(), grammars=WordCompiler()))
    processor.check(with_grammar("日"))
    with pytest.raises(InvalidRequest, match="lone surrogate") as caught:
        processor.check(with_grammar(SURROGATE))
    assert caught.value.param == "response_format"


# Tools.

TOOL = Tool("f", "", "{}")
OTHER_TOOL = Tool("g", "", "{}")


def with_tools(choice: ToolChoice = ANY_TOOL, **options: Any) -> ChatPrompt:
    messages = (ChatMessage("user", "a"),)
    return ChatPrompt(messages, tools=(TOOL, OTHER_TOOL), tool_choice=choice, **options)


def constraint_of(
    prompt: Prompt, grammar: Grammar | None = None, *, answer: OutputFormat | None = None
) -> OutputConstraint | None:
    request = GenerationRequest(prompt=prompt, params=SamplingParams(grammar=grammar))
    encoded = EncodedPrompt([1], answer or OutputFormat(HERMES))
    return make_processor().constraint(request, encoded)


def test_a_backend_without_grammars_offers_no_tools():
    processor = InputProcessor(dataclasses.replace(scripted_backend(), grammars=None))
    with pytest.raises(InvalidRequest, match="scripted does not support tool schemas") as caught:
        processor.check(GenerationRequest(prompt=with_tools()))
    assert caught.value.param == "tools"
    processor.check(GenerationRequest(prompt=with_tools(ToolChoice(ToolMode.NONE))))


def test_several_calls_of_any_tool_are_allowed():
    assert constraint_of(with_tools()) == AnswerGrammar(
        output_format=OutputFormat(HERMES), tools=(TOOL, OTHER_TOOL), max_calls=MAX_PARALLEL_CALLS
    )


def test_a_named_tool_can_be_required():
    choice = ToolChoice(ToolMode.REQUIRED, frozenset({"g"}))
    assert constraint_of(with_tools(choice, parallel_tool_calls=False)) == AnswerGrammar(
        output_format=OutputFormat(HERMES), tools=(OTHER_TOOL,), must_call=True, max_calls=1
    )


@pytest.mark.parametrize(("asked", "max_calls"), [(None, 1), (True, MAX_PARALLEL_CALLS)])
def test_a_syntax_from_the_prompt_allows_one_call_by_default(asked: bool | None, max_calls: int):
    prompt = with_tools(parallel_tool_calls=asked)
    assert constraint_of(prompt, answer=OutputFormat(DEFAULT_TOOL_SYNTAX)) == AnswerGrammar(
        output_format=OutputFormat(DEFAULT_TOOL_SYNTAX),
        tools=(TOOL, OTHER_TOOL),
        max_calls=max_calls,
    )


def test_a_syntax_may_allow_one_call_only():
    answer = OutputFormat(dataclasses.replace(HERMES, allows_several=False))
    assert constraint_of(with_tools(), answer=answer) == AnswerGrammar(
        output_format=answer, tools=(TOOL, OTHER_TOOL), max_calls=1
    )


GRAMMAR = Grammar(GrammarKind.REGEX, "a")
THINKING = OutputFormat(reasoning=THINK)


@pytest.mark.parametrize(
    ("prompt", "grammar", "answer", "expected"),
    [
        (TextPrompt("a"), None, PLAIN, None),
        (TextPrompt("a"), GRAMMAR, PLAIN, GRAMMAR),
        (chat("a"), None, PLAIN, None),
        (chat("a"), GRAMMAR, PLAIN, GRAMMAR),
        (chat("a"), None, THINKING, None),
        (chat("a"), GRAMMAR, THINKING, AnswerGrammar(output_format=THINKING, text=GRAMMAR)),
    ],
)
def test_reasoning_comes_before_the_constrained_text(
    prompt: Prompt, grammar: Grammar | None, answer: OutputFormat, expected: OutputConstraint | None
):
    assert constraint_of(prompt, grammar, answer=answer) == expected


def test_a_response_format_is_an_alternative_to_calls():
    answer = OutputFormat(dataclasses.replace(HERMES, is_only_at_start=True))
    assert constraint_of(with_tools(), GRAMMAR) == AnswerGrammar(
        output_format=answer,
        tools=(TOOL, OTHER_TOOL),
        max_calls=MAX_PARALLEL_CALLS,
        text=GRAMMAR,
    )
    must_call = constraint_of(with_tools(ToolChoice(ToolMode.REQUIRED)), GRAMMAR)
    assert isinstance(must_call, AnswerGrammar)
    assert must_call.text is None


def test_bare_json_calls_cannot_be_combined_with_a_response_format():
    with pytest.raises(InvalidRequest, match="writes tool calls as JSON") as caught:
        constraint_of(with_tools(), GRAMMAR, answer=OutputFormat(LLAMA))
    assert caught.value.param == "response_format"


# Continuing the last message.


def continued(*messages: ChatMessage, **options: Any) -> ChatPrompt:
    return ChatPrompt(messages, **{"continue_final_message": True, **options})


def test_the_last_assistant_message_may_be_continued():
    prompt = continued(ChatMessage("assistant", "a"), add_generation_prompt=False)
    make_processor().check(GenerationRequest(prompt=prompt))


@pytest.mark.parametrize(
    "prompt",
    [
        continued(ChatMessage("assistant", "a")),
        continued(ChatMessage("user", "a"), add_generation_prompt=False),
        continued(
            ChatMessage("assistant", "a", (ToolCall("c", "f", "{}"),)), add_generation_prompt=False
        ),
    ],
)
def test_messages_that_cannot_be_continued_are_refused_by_name(prompt: ChatPrompt):
    assert refused(prompt) == ("InvalidRequest", "continue_final_message")


# Tokenizing.


def test_each_kind_of_prompt_has_its_tokens():
    processor = InputProcessor(scripted_backend())
    assert processor.encode(TextPrompt("é")) == EncodedPrompt([0xC3, 0xA9])
    assert processor.encode(TokenPrompt((3, 1, 2))) == EncodedPrompt([3, 1, 2])
    assert bytes(processor.encode(chat("hi")).token_ids) == b"user: hi\nassistant: "


@pytest.mark.parametrize(
    ("prompt", "num_tokens"),
    [
        (TextPrompt("x" * LIMIT), 16),  # fits by characters, leaves no room for an answer
        (TextPrompt("日" * 6), 18),
        (chat("hi"), 20),
    ],
)
def test_a_prompt_without_room_for_an_answer_is_too_long(prompt: Prompt, num_tokens: int):
    with pytest.raises(PromptTooLong) as caught:
        make_processor().encode(prompt)
    error = caught.value
    assert (error.size, error.limit, error.unit) == (num_tokens, LIMIT - 1, "tokens")
    assert error.param == prompt.param


def test_a_prompt_with_room_for_one_token_is_accepted():
    assert len(make_processor().encode(TextPrompt("x" * (LIMIT - 1))).token_ids) == LIMIT - 1


class SilentTokenizer(ByteTokenizer):
    """Encodes every text as no tokens."""

    def encode(self, text: str) -> list[int]:
        return []

    def prepare_chat(self, prompt: ChatPrompt) -> EncodedPrompt:
        return EncodedPrompt([])


@pytest.mark.parametrize("prompt", [TextPrompt("\u200b"), chat("hi")])
def test_a_prompt_without_tokens_is_refused_by_name(prompt: Prompt):
    backend = dataclasses.replace(scripted_backend(), tokenizer=SilentTokenizer())
    with pytest.raises(InvalidRequest, match="must have at least one token") as caught:
        InputProcessor(backend).encode(prompt)
    assert caught.value.param == prompt.param


# Several requests at once.


class CountingTokenizer(ByteTokenizer):
    """Records the texts that it encodes; the answer to a conversation may call tools."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def encode(self, text: str) -> list[int]:
        self.texts.append(text)
        return super().encode(text)

    def prepare_chat(self, prompt: ChatPrompt) -> EncodedPrompt:
        return EncodedPrompt([1], OutputFormat(HERMES))


class AnyCompiler:
    """Compiles every constraint to the word `a`."""

    def compile(self, constraint: OutputConstraint, *, count: int = 1) -> list[GrammarMatcher]:
        return [WordMatcher("a") for _ in range(count)]


def counting_processor(grammars: GrammarCompiler) -> tuple[InputProcessor, CountingTokenizer]:
    tokenizer = CountingTokenizer()
    backend = dataclasses.replace(scripted_backend(), tokenizer=tokenizer, grammars=grammars)
    return InputProcessor(backend), tokenizer


def test_shared_prompts_and_grammars_are_processed_once_and_matchers_are_separate():
    compiler = WordCompiler()
    processor, tokenizer = counting_processor(compiler)
    free = GenerationRequest(prompt=TextPrompt("b"))
    requests = [with_grammar("x"), free, with_grammar("x"), with_grammar("y")]
    prepared = processor.prepare(requests, checkpoint=lambda: None)
    assert tokenizer.texts == ["a", "b"]
    assert compiler.compiled == [("x", 2), ("y", 1)]
    assert [each.request for each in prepared] == requests
    assert [bytes(each.prompt_ids) for each in prepared] == [b"a", b"b", b"a", b"a"]
    matchers = [each.matcher for each in prepared]
    assert matchers[1] is None
    assert len({id(matcher) for matcher in matchers}) == 4


def test_an_exception_of_the_checkpoint_stops_tokenizing():
    processor, tokenizer = counting_processor(WordCompiler())
    checkpoint = iter([None])
    with pytest.raises(StopIteration):
        processor.prepare(
            [GenerationRequest(prompt=TextPrompt(text)) for text in "abc"],
            checkpoint=lambda: next(checkpoint),
        )
    assert tokenizer.texts == ["a"]


def test_the_output_format_is_that_of_the_constraint():
    processor, _ = counting_processor(AnyCompiler())
    requests = [
        GenerationRequest(prompt=with_tools(), params=SamplingParams(grammar=grammar))
        for grammar in (None, GRAMMAR)
    ]
    requests.append(GenerationRequest(prompt=TextPrompt("a")))
    prepared = processor.prepare(requests, checkpoint=lambda: None)
    only_at_start = OutputFormat(dataclasses.replace(HERMES, is_only_at_start=True))
    assert [each.output_format for each in prepared] == [OutputFormat(HERMES), only_at_start, PLAIN]


class CountingDecodes(ByteTokenizer):
    """Counts the tokens that it decodes."""

    num_decoded = 0

    def decode(self, token_ids: Sequence[int]) -> str:
        self.num_decoded += len(token_ids)
        return super().decode(token_ids)


def test_prompt_texts_are_made_once_and_only_for_prompt_logprobs():
    tokenizer = CountingDecodes()
    processor = InputProcessor(dataclasses.replace(scripted_backend(), tokenizer=tokenizer))
    plain = GenerationRequest(prompt=TextPrompt("aé!"))
    scored = dataclasses.replace(plain, params=SamplingParams(prompt_logprobs=0))
    [unscored] = processor.prepare([plain], checkpoint=lambda: None)
    assert (unscored.prompt_texts, tokenizer.num_decoded) == ((), 0)
    [first] = processor.prepare([scored], checkpoint=lambda: None)
    num_decoded = tokenizer.num_decoded
    prepared = processor.prepare([plain, scored, scored, scored], checkpoint=lambda: None)
    assert first.prompt_texts == ("a", "", "é", "!")
    assert [each.prompt_texts for each in prepared] == [(), *[first.prompt_texts] * 3]
    assert tokenizer.num_decoded == 2 * num_decoded


# Sequences.


@pytest.mark.parametrize(("asked_s", "timeout_s"), [(None, 60.0), (5.0, 5.0), (100.0, 60.0)])
def test_the_deadline_is_the_earlier_of_both_timeouts(asked_s: float | None, timeout_s: float):
    request = GenerationRequest(prompt=TextPrompt("a"), timeout_s=asked_s)
    processor = make_processor()
    [prepared] = processor.prepare([request], checkpoint=lambda: None)
    sequence = processor.to_sequence(prepared, timeout_s=60.0)
    assert sequence.deadline_at == sequence.generation.submitted_at + timeout_s


def test_a_sequence_has_the_requests_fields_and_a_new_log():
    request = GenerationRequest(
        prompt=TextPrompt("abc"), caller="alice", priority=3, metadata={"k": "v"}
    )
    processor = make_processor()
    [prepared] = processor.prepare([request], checkpoint=lambda: None)
    first, second = (processor.to_sequence(prepared, timeout_s=60.0) for _ in range(2))
    log = first.generation
    assert (log.caller, log.model, log.metadata, log.prompt_tokens) == (
        *("alice", "scripted", {"k": "v"}, 3),
    )
    assert (list(first.prompt_ids), first.priority) == ([*b"abc"], 3)
    assert first.generation_id != second.generation_id


def test_tokens_are_decoded_if_the_model_has_them():
    processor = make_processor()
    assert processor.decode("tokens", [*"é".encode()]) == "é"
    with pytest.raises(InvalidRequest, match="token id 1000000 is not in") as caught:
        processor.decode("tokens", [10**6])
    assert caught.value.param == "tokens"


# Defaults.


@pytest.mark.parametrize(
    ("max_tokens", "expected"), [(None, 10), (1, 1), (10, 10), (11, 10), (10**9, 10)]
)
def test_max_tokens_is_at_most_what_the_context_leaves(max_tokens: int | None, expected: int):
    params = SamplingParams(max_tokens=max_tokens)
    assert make_processor().resolve_params(params, num_prompt_tokens=6).max_tokens == expected


def test_min_tokens_is_at_most_max_tokens():
    params = SamplingParams(min_tokens=12)
    resolved = make_processor().resolve_params(params, num_prompt_tokens=6)
    assert (resolved.min_tokens, resolved.max_tokens) == (10, 10)


def test_a_seed_is_kept_or_drawn():
    processor = make_processor()
    assert processor.resolve_params(SamplingParams(seed=7), num_prompt_tokens=1).seed == 7
    drawn = {
        processor.resolve_params(SamplingParams(), num_prompt_tokens=1).seed for _ in range(20)
    }
    assert len(drawn) == 20
    assert None not in drawn


def test_nothing_else_is_changed():
    params = SamplingParams(max_tokens=3, seed=1, temperature=0.5, stop=("x",), logit_bias={1: 2.0})
    assert make_processor().resolve_params(params, num_prompt_tokens=1) == params
