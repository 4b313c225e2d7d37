"""Use the official OpenAI client: a streamed chat completion and a tool call.

tokenwire serve                         # in another terminal
python -m pip install openai
python examples/openai_tools.py
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from openai import OpenAI

TEMPERATURES = {"Paris": 18, "Oslo": 4}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_temperature",
            "description": "The temperature in a city, in degrees Celsius.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": list(TEMPERATURES)}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]


def main(url: str) -> None:
    """Stream a reply, then let the model call a tool and use its result."""
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    model = client.models.list().data[0].id

    messages: list[Any] = [{"role": "user", "content": "Name three colours."}]
    stream = client.chat.completions.create(
        model=model, messages=messages, max_tokens=60, temperature=0, stream=True
    )
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()

    messages = [{"role": "user", "content": "How warm is it in Paris?"}]
    answer = client.chat.completions.create(
        model=model, messages=messages, tools=TOOLS, tool_choice="required", temperature=0
    )
    call: Any = (answer.choices[0].message.tool_calls or [])[0]
    arguments = json.loads(call.function.arguments)  # always matches the tool's schema
    print(f"[{call.function.name}({arguments})]")

    result = f"{TEMPERATURES[arguments['city']]} degrees"
    messages += [
        answer.choices[0].message,
        {"role": "tool", "tool_call_id": call.id, "content": result},
    ]
    answer = client.chat.completions.create(
        model=model, messages=messages, max_tokens=60, temperature=0
    )
    print(answer.choices[0].message.content)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    main(parser.parse_args().url)
