"""Run two generations on one WebSocket, matched by `id`, and cancel one of them.

tokenwire serve                         # in another terminal
python examples/two_streams.py
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import Counter

from websockets.asyncio.client import connect

PROMPTS = {"poem": "The sea is", "story": "Once upon a time"}


async def main(url: str) -> None:
    """Stream `PROMPTS` at the same time, and cancel the poem after three deltas."""
    texts = dict.fromkeys(PROMPTS, "")
    num_deltas: Counter[str] = Counter()
    running = set(PROMPTS)

    async with connect(url) as socket:
        for name, prompt in PROMPTS.items():
            request = {"type": "generate", "id": name, "prompt": prompt, "max_tokens": 40}
            await socket.send(json.dumps({**request, "ignore_eos": True}))
        while running:
            frame = json.loads(await socket.recv())
            match frame["type"]:
                case "queued":
                    print(f"[{frame['id']}: position {frame['position'] + 1} in the queue]")
                case "delta":
                    name = frame["id"]
                    texts[name] += frame["text"]
                    num_deltas[name] += 1
                    if name == "poem" and num_deltas[name] == 3:
                        await socket.send(json.dumps({"type": "cancel", "id": "poem"}))
                case "done":
                    running.discard(frame["id"])
                    print(f"[{frame['id']}: {frame['finish_reason']}]{texts[frame['id']]}")
                case "error":
                    raise SystemExit(frame["error"]["message"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="ws://127.0.0.1:8000/v1/stream")
    asyncio.run(main(parser.parse_args().url))
