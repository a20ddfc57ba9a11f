"""A real browser, Debian's Chromium without a screen, driven over the DevTools protocol through a pipe: no driver, no further package."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """One page. A context manager."""

    def __init__(self, width: int = 1280, height: int = 800) -> None:
        self.folder = tempfile.mkdtemp(prefix="lit-long-browser-")
        read, write = (os.pipe() for _ in range(2))  # what the browser reads, what it writes
        options = [
            *(
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
                "--no-first-run",
            ),
            *("--remote-debugging-pipe", f"--user-data-dir={self.folder}", f"--window-size={width},{height}"),
            *(
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
            ),
        ]
        line = f'exec "$@" 3<&{read[0]} 4>&{write[1]}'  # the protocol's two ends are files 3 and 4
        with open(f"{self.folder}/log", "wb") as log:
            words = ["bash", "-c", line, "bash", str(PROGRAM), *options, "about:blank"]
            self.process = subprocess.Popen(words, pass_fds=(read[0], write[1]), stdout=log, stderr=log)
        os.close(read[0])
        os.close(write[1])
        self.requests, self.answers = os.fdopen(read[1], "wb", 0), os.fdopen(write[0], "rb", 0)
        self.number, self.rest, self.session = 0, b"", ""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.size(width, height)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(600)
        self.requests.close()
        self.answers.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ask(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """The answer to one request; events on the way are left aside. ``session``: of another target than the page."""
        self.number += 1
        request: dict[str, Any] = {"id": self.number, "method": method, "params": params}
        if session or self.session:
            request["sessionId"] = session or self.session
        self.requests.write(json.dumps(request).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                new = self.answers.read(1 << 16)
                assert new, "the browser is gone: " + Path(self.folder, "log").read_text()[-2000:]
                self.rest += new
            message, _, self.rest = self.rest.partition(b"\0")
            answer = json.loads(message)
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def open(self, url: str) -> None:
        self.ask("Page.navigate", url=url)

    def type(self, selector: str, text: str) -> None:
        """Type into a field."""
        self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        self.ask("Input.insertText", text=text)

    def text(self) -> str:
        """What a reader sees."""
        return self.run("document.body ? document.body.innerText : ''") or ""

    def frame_text(self) -> str:
        """What a reader sees in the page's frame, which is a target of its own."""
        (frame,) = [one for one in self.ask("Target.getTargets")["targetInfos"] if one["type"] == "iframe"]
        session = self.ask("Target.attachToTarget", targetId=frame["targetId"], flatten=True)["sessionId"]
        answer = self.ask("Runtime.evaluate", session, expression="document.body.innerText", returnByValue=True)
        return answer["result"]["value"]

    def size(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", **size)

    def wait_for(self, *words: str, seconds: float = 600) -> str:
        """The page's text, once all of ``words`` are in it."""
        deadline = time.monotonic() + seconds
        while lacking := [word for word in words if word not in (text := self.text())]:
            assert time.monotonic() < deadline, f"{lacking} did not appear in:\n{text[:4000]}"
            time.sleep(0.3)
        return text

    def wait_until_still(self, seconds: float = 60.0) -> None:
        """Wait until the picture has not changed for a second: what loads later has come, animations are over."""
        deadline, last, since = time.monotonic() + seconds, b"", time.monotonic()
        while time.monotonic() < deadline and time.monotonic() - since < 1.5:
            picture = self.picture()
            if picture != last:
                last, since = picture, time.monotonic()
            time.sleep(0.3)

    def picture(self) -> bytes:
        """A PNG of the window."""
        return base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"])
