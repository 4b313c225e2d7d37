"""Stream a reply, drop the connection in the middle, and resume without losing text.

tokenwire serve                         # in another terminal
python examples/stream_and_resume.py "Tell me about the sea."
"""

from __future__ import annotations

import argparse
import asyncio
import json

from websockets.asyncio.client import connect


async def main(url: str, question: str) -> None:
    """Print the reply to a question. Drop the connection after five deltas and resume."""
    generation_id, cursor, num_frames = "", -1, 0

    async with connect(url) as socket:
        request = {
            "type": "generate",
            "messages": [{"role": "user", "content": question}],
            "max_tokens": 80,
        }
        await socket.send(json.dumps(request))
        async for message in socket:
            frame = json.loads(message)
            if frame["type"] == "accepted":
                generation_id = frame["generation_id"]
            elif frame["type"] == "delta":
                print(frame["text"], end="", flush=True)
                cursor = frame["seq"]
                num_frames += 1
                if num_frames == 5:
                    break
            elif frame["type"] in ("done", "error"):
                print(f"\n[{frame['type']} before the connection was dropped]")
                return

    print("[connection dropped]", end="", flush=True)

    async with connect(url) as socket:
        resume = {"type": "resume", "generation_id": generation_id, "after": cursor}
        await socket.send(json.dumps(resume))
        async for message in socket:
            frame = json.loads(message)
            if frame["type"] == "delta":
                print(frame["text"], end="", flush=True)
            elif frame["type"] == "done":
                usage = frame["usage"]
                print(f"\n[{frame['finish_reason']} after {usage['completion_tokens']} tokens]")
                return
            elif frame["type"] == "error":
                raise SystemExit(frame["error"]["message"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", nargs="?", default="Tell me about the sea.")
    parser.add_argument("--url", default="ws://127.0.0.1:8000/v1/stream")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.url, arguments.question))
