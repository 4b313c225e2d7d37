"""Send several prompts in one REST request and print the completions in order.

tokenwire serve                         # in another terminal
python examples/batch.py
"""

from __future__ import annotations

import argparse
import json
import urllib.request

PROMPTS = ["The capital of France is", "Water boils at", "The opposite of hot is"]


def main(url: str) -> None:
    """Complete `PROMPTS` in one request."""
    body = {"prompt": PROMPTS, "max_tokens": 12, "temperature": 0, "stop": ["\n", "."]}
    request = urllib.request.Request(
        f"{url}/v1/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        completion = json.load(response)
    for prompt, choice in zip(PROMPTS, completion["choices"], strict=True):
        print(f"{prompt}{choice['text']}  [{choice['finish_reason']}]")
    print(f"{completion['usage']['completion_tokens']} tokens generated")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    main(parser.parse_args().url)
