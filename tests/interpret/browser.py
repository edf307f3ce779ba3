"""A real browser for tests: headless Chromium, driven over its DevTools protocol by tornado (which nbval brings along).

`with Browser() as browser: page = browser.open(path)`, then real mouse events and real keys.
"""

import asyncio
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from tornado.websocket import websocket_connect

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = """
    headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update
    disable-sync enable-features=IsolateSandboxedIframes window-size=1200,900 remote-debugging-port=0
"""
PATIENCE = 20  # seconds, for whatever is waited for
NAMED = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "PageUp": 33, "PageDown": 34}
ARROWS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
KEY_CODES = NAMED | ARROWS
TYPED = {"Enter": "\r", " ": " "}


def until(attempt, what):
    """What `attempt` returns once it is true."""
    end = time.monotonic() + PATIENCE
    while not (found := attempt()):
        assert time.monotonic() < end, f"waited {PATIENCE} s in vain for {what}"
        time.sleep(0.02)
    return found


class Browser:
    """One process with a profile of its own, gone at the end."""

    def __enter__(self):
        self.loop, self.events, self.calls = asyncio.new_event_loop(), [], 0
        self.folder = Path(tempfile.mkdtemp(prefix="browser-"))
        command = [PROGRAM, *(f"--{flag}" for flag in FLAGS.split()), f"--user-data-dir={self.folder}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port, path = until(self.port_and_path, f"{PROGRAM} to start")
            self.socket = self.finish(self.connect(f"ws://127.0.0.1:{port}{path}"))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.loop.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def port_and_path(self):
        assert self.process.poll() is None, f"{PROGRAM} ended with {self.process.returncode} before it was there"
        file = self.folder / "DevToolsActivePort"
        lines = file.read_text().splitlines() if file.exists() else []
        return lines if len(lines) == 2 else None

    async def connect(self, address):
        return await websocket_connect(address, max_message_size=2**28)

    async def exchange(self, message):
        await self.socket.write_message(json.dumps(message))
        while (answer := json.loads(await self.socket.read_message())).get("id") != message["id"]:
            self.events.append(answer)
        return answer

    def finish(self, coroutine):
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, PATIENCE))

    def call(self, method, session=None, **parameters):
        """The result of one command of the protocol; what happens meanwhile is kept in `events`."""
        self.calls += 1
        message = {"id": self.calls, "method": method, "params": parameters}
        answer = self.finish(self.exchange({**message, "sessionId": session} if session else message))
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def open(self, file, color_scheme="light", width=1200, height=900):
        """A new tab with the file, loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        page = Page(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        page.enable()
        page.call("Target.setAutoAttach", autoAttach=True, waitForDebuggerOnStart=False, flatten=True)
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": color_scheme}])
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        page.call("Page.navigate", url=Path(file).resolve().as_uri())
        page.wait_for("document.readyState === 'complete' && location.protocol === 'file:'")
        return page


class Page:
    """A tab, or a frame in one, by the session that the browser opened for it."""

    def __init__(self, browser, session):
        self.browser, self.session = browser, session

    def call(self, method, **parameters):
        return self.browser.call(method, self.session, **parameters)

    def evaluate(self, expression):
        """The value of a JavaScript expression; it must be one that JSON can hold."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, f"{expression}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def wait_for(self, expression):
        return until(lambda: self.evaluate(expression), expression)

    def happened(self, *methods):
        """The parameters of the events of these names so far."""
        self.evaluate("0")  # what happened before it has then been told
        events = [event for event in self.browser.events if event.get("sessionId") == self.session]
        return [event["params"] for event in events if event["method"] in methods]

    def requests(self):
        return [event["request"]["url"] for event in self.happened("Network.requestWillBeSent")]

    def complaints(self):
        """Exceptions, what was written to the console, and what the browser itself logs (a policy violated, ...)."""
        return self.happened("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")

    def frame(self):
        """The frame in this page, as a page."""

        def attached():
            frames = [e for e in self.happened("Target.attachedToTarget") if e["targetInfo"]["type"] == "iframe"]
            return frames and Page(self.browser, frames[0]["sessionId"])

        frame = until(attached, "a frame in a process of its own")
        frame.enable()
        return frame

    def enable(self):
        for domain in ("Runtime", "Network", "Log"):  # whose events are wanted, those of before included
            self.call(f"{domain}.enable")

    # ---- a hand on the mouse and one on the keyboard

    def middle(self, selector):
        """Where the middle of the element is in the window, scrolled to where it can be seen."""
        return self.evaluate(
            f"""(element => {{
                element.scrollIntoView({{block: "nearest"}});
                const box = element.getBoundingClientRect();
                return [box.x + box.width / 2, box.y + box.height / 2];
            }})(document.querySelector({json.dumps(selector)}))"""
        )

    def mouse(self, kind, x, y, **parameters):
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **parameters)

    def hover(self, selector):
        self.mouse("mouseMoved", *self.middle(selector))

    def click(self, selector):
        x, y = self.middle(selector)
        self.mouse("mouseMoved", x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button="left", clickCount=1)

    def press(self, *names):
        for name in names:
            key = {"key": name, "code": "Space" if name == " " else name, "windowsVirtualKeyCode": KEY_CODES[name]}
            text = {"text": TYPED[name]} if name in TYPED else {}
            self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **key, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", **key)
