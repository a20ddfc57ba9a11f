"""A server that speaks OpenAI's chat protocol on 127.0.0.1, and misbehaves on purpose: a list of mischief is used up request by request."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[str], str]


class ChatServer(ThreadingHTTPServer):
    """``seen`` are the prompts, in the order they came; ``at_once`` the most that were under way together; ``bodies`` the requests.

    Args:
        refuse: looks at a request and returns (status, error object) to refuse it with, or None.
        beside: further fields of the reply's message; ``content`` takes the answer's place.
    """

    daemon_threads = True

    def __init__(self, answer: Answer, mischief: list[str] | None = None, delay: float = 0.0, refuse=None, beside=None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.mischief, self.delay = answer, list(mischief or []), delay
        self.refuse, self.beside = refuse or (lambda body: None), beside or {}
        self.seen: list[str] = []
        self.bodies: list[dict] = []
        self.times: list[float] = []
        self.under_way = self.at_once = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def server_close(self) -> None:
        """The end of a ``with`` block. Closed while it serves, a socket would keep its thread busy for ever."""
        self.shutdown()
        super().server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: ChatServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt, server = body["messages"][-1]["content"], self.server
        with server.lock:
            server.seen.append(prompt)
            server.bodies.append(body)
            server.times.append(time.monotonic())
            server.under_way += 1
            server.at_once = max(server.at_once, server.under_way)
            trick = server.mischief.pop(0) if server.mischief else ""
        time.sleep(server.delay)
        with server.lock:  # before the answer is out, which the client may follow with its next request at once
            server.under_way -= 1
        self.reply(trick, prompt, body["model"], server.refuse(body))

    def reply(self, trick: str, prompt: str, model: str, refused: tuple[int, dict] | None) -> None:
        if trick == "disconnect":
            self.connection.close()
            return
        status = int(trick) if trick.isdigit() else 200
        message = {"role": "assistant", "content": "" if trick == "empty" else self.server.answer(prompt)} | self.server.beside
        content = {"id": "1", "object": "chat.completion", "created": 0, "model": model}
        content |= {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        text = json.dumps({"error": {"message": f"status {status}"}} if status != 200 else content)
        if refused:
            status, text = refused[0], json.dumps(refused[1])
        text = {"broken": text[: len(text) // 2], "other": '"a string"', "nothing": "{}"}.get(trick, text)
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            if status == 429:
                self.send_header("Retry-After", "0.2")
            self.end_headers()
            self.wfile.write(text.encode())
        except OSError:  # the client has gone
            pass

    def log_message(self, *arguments: object) -> None:
        pass


def write_about(prompt: str) -> str:
    """Asks about the passage's last word, or judges by whether the answer stands in the passage."""
    passage = prompt.split('"""')[1]
    if found := re.search(r"^Question: (.*)\nAnswer: (.*)$", prompt, re.MULTILINE):
        right = found[2] in passage
        return f"<verdict>{'correct' if right else 'wrong'}</verdict><score>{9 * right}</score><reason>looked it up</reason>"
    word = passage.split()[-1]
    return f"<question>What is the last word after {passage.split()[0]} number {len(passage)}?</question><answer>{word}</answer>"
