"""Use the official OpenAI client over one WebSocket: two turns, with resume after a drop.

The client's reconnect hook sends the last event's number, and the server continues from there.

tokenwire serve                         # in another terminal
python -m pip install "openai[realtime]"
python examples/responses_socket.py
"""

from __future__ import annotations

import argparse
from typing import Any

from openai import OpenAI

QUESTIONS = ("What is the capital of France?", "And of Italy?")


def main(url: str) -> None:
    """Ask `QUESTIONS` as one conversation and print the streamed answers."""
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    model = client.models.list().data[0].id
    response_id: str | None = None
    cursor = -1

    def resume(_: Any) -> Any:
        """Return the query parameters that resume after the last event received."""
        return {"extra_query": {"resume": response_id, "starting_after": str(cursor)}}

    with client.responses.connect(on_reconnecting=resume) as connection:
        for question in QUESTIONS:
            print(f"> {question}")
            connection.response.create(
                model=model,
                input=question,
                previous_response_id=response_id,
                store=False,
                temperature=0,
                max_output_tokens=60,
            )
            for event in connection:
                if event.type == "error":
                    raise SystemExit(event.error.message)
                cursor = event.sequence_number
                if event.type == "response.created":
                    response_id = event.response.id
                elif event.type == "response.output_text.delta":
                    print(event.delta, end="", flush=True)
                elif event.type in ("response.completed", "response.incomplete"):
                    break
                elif event.type == "response.failed":
                    raise SystemExit(event.response.error)
            print()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    main(parser.parse_args().url)
