"""Records `docs/resume.gif`: the chat page while the network is cut in the middle of a reply.

Run it with `python -m tests.e2e.record_resume`. It starts a server with the default model, a TCP
proxy that cuts the connection, and Chromium.
"""

from __future__ import annotations

import json
import time
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageColor, ImageDraw, ImageFont
from playwright.sync_api import Page, expect

from tests.e2e.browser import open_browser
from tests.e2e.server_process import ServerProcess
from tests.e2e.tcp_proxy import TcpProxy

TARGET = Path(__file__).parents[2] / "docs" / "resume.gif"
WIDTH, HEIGHT, CAPTION_HEIGHT = 760, 440, 34
FRAME_S = 0.2
QUESTION = "Explain in a short paragraph how a bicycle stays upright."
MAX_TOKENS = 110
OK_COLOUR, CUT_COLOUR = "#2b6a4a", "#a33a2c"
CUT_RGB = ImageColor.getrgb(CUT_COLOUR)
STREAMING_S, CUT_S, AFTER_S = 2.0, 2.6, 1.6
"""Seconds of streaming before the cut, without a network, and after the last token."""


class Recorder:
    """Collects frames of a page, each with a caption."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._font = ImageFont.load_default(size=16)
        self.frames: list[Image.Image] = []

    def record(self, caption: str, *, colour: str) -> None:
        """Add one frame."""
        started_at = time.monotonic()
        shot = Image.open(BytesIO(self._page.screenshot())).convert("RGB")
        frame = Image.new("RGB", (WIDTH, HEIGHT + CAPTION_HEIGHT), colour)
        frame.paste(shot, (0, CAPTION_HEIGHT))
        ImageDraw.Draw(frame).text((14, 8), caption, font=self._font, fill="white")
        self.frames.append(frame)
        self._page.wait_for_timeout(1000 * max(0.0, FRAME_S - (time.monotonic() - started_at)))

    def record_for(self, seconds: float, caption: str, *, colour: str) -> None:
        """Add frames for so many seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.record(caption, colour=colour)

    def _cut_frame(self) -> Image.Image:
        """Return a frame whose caption has the colour of a cut network."""
        return next(frame for frame in self.frames if frame.getpixel((0, 0)) == CUT_RGB)

    def save(self, target: Path) -> None:
        """Write an endless GIF; the last frame stays for two seconds."""
        colours = Image.new("RGB", (WIDTH, 2 * (HEIGHT + CAPTION_HEIGHT)))
        for index, frame in enumerate((self.frames[-1], self._cut_frame())):
            colours.paste(frame, (0, index * frame.height))
        palette = colours.quantize(colors=64)
        frames = [
            frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in self.frames
        ]
        duration_ms = round(1000 * FRAME_S)
        durations = [duration_ms] * (len(frames) - 1) + [2000]
        frames[0].save(target, save_all=True, append_images=frames[1:], duration=durations, loop=0)


def main() -> None:
    """Record the page and write the GIF."""
    server = ServerProcess()
    proxy = TcpProxy(server.url)
    try:
        with open_browser() as browser:
            settings = json.dumps({"max_tokens": MAX_TOKENS, "temperature": 0})
            entry = {"name": "tokenwire.v1.settings", "value": settings}
            page = browser.new_context(
                viewport={"width": WIDTH, "height": HEIGHT},
                storage_state={"origins": [{"origin": proxy.url, "localStorage": [entry]}]},  # type: ignore[arg-type]
            ).new_page()
            page.goto(proxy.url)
            reply = page.locator("[data-testid=message][data-role=assistant]").last
            page.get_by_test_id("composer").fill(QUESTION)
            recorder = Recorder(page)
            recorder.record_for(0.8, "connected", colour=OK_COLOUR)
            page.get_by_test_id("send").click()
            expect(reply.get_by_test_id("message-text")).not_to_be_empty()
            recorder.record_for(STREAMING_S, "connected: tokens arrive", colour=OK_COLOUR)
            proxy.cut()
            recorder.record_for(
                CUT_S, "network cut: the server keeps generating", colour=CUT_COLOUR
            )
            proxy.mend()
            while reply.get_attribute("data-status") != "done":
                recorder.record("network back: the stream resumes", colour=OK_COLOUR)
            recorder.record_for(AFTER_S, "complete, without a gap", colour=OK_COLOUR)
            recorder.save(TARGET)
    finally:
        proxy.close()
        server.stop()


if __name__ == "__main__":
    main()
