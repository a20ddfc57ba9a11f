"""Any server that speaks OpenAI's chat protocol (vLLM, llama.cpp, a paid one), through the `openai` client: many requests at once, not too
many a minute, and again after what passes: a full server, a lost connection, a reply that is no JSON or says nothing.

Servers do not take the same parameters. One that a server refuses by its name is sent under its other name, or left out, from then on.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

from lit_long.config import UserError
from lit_long.config.ranges import Count, CountOrNone, NotNegative, Positive
from lit_long.instruct.extract import after_thoughts
from lit_long.instruct.generators import Request

LONGEST_WAIT = 60.0  # seconds between two tries
LIMITS = (
    "max_tokens",
    "max_completion_tokens",
)  # what the length of a reply is called: by most servers, by OpenAI's newer models


@dataclass
class EndpointConfig:
    """``url`` ends in /v1, as servers print it; ``model`` is the name they know. The key is read from the variable ``key_variable``."""

    url: str = ""
    model: str = ""
    key_variable: str = "OPENAI_API_KEY"
    concurrency: Count = 8  # requests under way
    per_minute: NotNegative = 0.0  # requests that begin, at most; 0 = no limit
    retries: CountOrNone = 6  # of a request, after the first try
    backoff: NotNegative = 1.0  # seconds before the first of them, twice as many before each next; the server may ask for more
    timeout: Positive = 120.0  # seconds of one try


class RateLimit:
    """Lets at most ``per_minute`` callers through a minute, evenly."""

    def __init__(self, per_minute: float) -> None:
        self._gap = 60 / per_minute if per_minute else 0.0
        self._next, self._lock = 0.0, threading.Lock()

    def wait(self) -> None:
        if not self._gap:
            return
        with self._lock:
            turn = max(self._next, time.monotonic())
            self._next = turn + self._gap
        time.sleep(max(0.0, turn - time.monotonic()))


class Endpoint:
    """``unanswered`` says of the requests that were given up why, by key.

    Raises:
        UserError: no `openai`, no url or model, or a server that refuses: no such model, no right key, a request it cannot read.
    """

    def __init__(
        self,
        config: EndpointConfig,
        temperature: float = 0.0,
        top_p: float = 1.0,
        say: Callable[[str], None] | None = None,
    ) -> None:
        if not config.url or not config.model:
            raise UserError("command line: generator=endpoint needs endpoint.url=http://HOST:PORT/v1 and endpoint.model=NAME")
        self.config, self.temperature, self.top_p = config, temperature, top_p
        self.openai = _openai()
        key = os.environ.get(config.key_variable) or "none"  # most servers of one's own want none
        self.client = self.openai.OpenAI(api_key=key, base_url=config.url, timeout=config.timeout, max_retries=0)
        self.rate_limit = RateLimit(config.per_minute)
        self.unanswered: dict[str, str] = {}
        self.say = say or partial(print, file=sys.stderr, flush=True)
        self._limit = LIMITS[0]
        self._refused: dict[str, str] = {}  # parameters that this server does not take, and its words
        self._lock = threading.Lock()
        self._stop = threading.Event()

    @property
    def name(self) -> str:
        return self.config.model

    @property
    def identity(self) -> str:
        return f"{self.config.url} {self.config.model} temperature={self.temperature:g} top_p={self.top_p:g}"

    def fits(self, prompt: str, tokens: int) -> bool:
        return True  # the server knows; it refuses what is too long

    def ask(self, requests: list[Request]) -> Iterator[dict[str, str]]:
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            futures = {pool.submit(self._patiently, request): request for request in requests}
            try:
                for future in as_completed(futures):
                    if (reply := future.result()) is not None:
                        yield {futures[future].key: reply}
            finally:  # a refusal, or an interruption: what waits is not asked any more
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                self._stop.clear()

    def _patiently(self, request: Request) -> str | None:
        """The reply, or None where every try failed."""
        passing = (
            self.openai.APIConnectionError,  # and its timeouts
            self.openai.RateLimitError,
            self.openai.InternalServerError,
            self.openai.APIResponseValidationError,
            ValueError,  # no JSON
        )
        reason = ""
        for attempt in range(self.config.retries + 1):
            self.rate_limit.wait()
            asked_to_wait = 0.0
            try:
                reply, thought = self._once(request)
                if after_thoughts(reply).strip():
                    return reply
                reason = "the reply holds no text"
                if thought or reply.strip():
                    reason = f"the reply ended in the model's thoughts, after {request.tokens} tokens; raise max_new_tokens and critique_tokens"
                    break
            except passing as error:
                reason = f"{type(error).__name__}: {error}"
                asked_to_wait = _retry_after(error)
            except self.openai.APIStatusError as error:
                raise UserError(f"{self.config.url}: refuses with status {error.status_code}: {_words(error)}") from None
            if attempt < self.config.retries:
                pause = min(LONGEST_WAIT, max(asked_to_wait, self.config.backoff * 2**attempt))
                if self._stop.wait(pause):
                    break
        self.unanswered[request.key] = reason
        return None

    def _once(self, request: Request) -> tuple[str, bool]:
        """The reply's text, and whether thoughts came beside it."""
        messages = [{"role": "user", "content": request.prompt}]
        while True:
            sent = self._parameters(request)
            try:
                completion = self.client.chat.completions.create(model=self.config.model, messages=messages, **sent)
                break
            except (self.openai.BadRequestError, self.openai.UnprocessableEntityError) as error:
                self._do_without(error, sent)
        choices = getattr(completion, "choices", None)  # a server may answer with anything, a string included
        message = getattr(choices[0], "message", None) if choices else None
        content = getattr(message, "content", None)
        if isinstance(content, list):  # parts, of which some are thoughts
            parts = [part for part in content if isinstance(part, dict)]
            return "".join(str(part.get("text") or "") for part in parts if part.get("type") == "text"), bool(parts)
        thought = any(getattr(message, name, None) for name in ("reasoning_content", "reasoning"))
        return content if isinstance(content, str) else "", thought

    def _parameters(self, request: Request) -> dict[str, Any]:
        wanted = {self._limit: request.tokens, "temperature": self.temperature, "top_p": self.top_p, "seed": request.seed % 2**31}
        return {name: value for name, value in wanted.items() if name not in self._refused}

    def _do_without(self, error: Any, sent: dict[str, Any]) -> None:
        """Rename or leave out the parameter that the server refuses by its name, for all requests to come. Raises the error where it names
        none that may go."""
        said = _words(error)
        names = [error.param] if isinstance(error.param, str) else re.findall(r"\w+", said)
        named = [*sent, *LIMITS]
        name = next((name for name in names if name in named), None)
        with self._lock:
            if name in LIMITS:
                if LIMITS[1] in sent:
                    raise UserError(
                        f"{self.config.url}: refuses {' and '.join(LIMITS)}, the length of a reply: {self._refused.get(LIMITS[0], said)}; "
                        f"{said}. Set max_new_tokens and critique_tokens to what it takes."
                    ) from None
                if self._limit in sent:
                    self._limit = LIMITS[1]
                    self._refused[LIMITS[0]] = said
                    self.say(f"{self.config.url}: does not take {LIMITS[0]} ({said}); asking with {LIMITS[1]}")
            elif name is None:
                raise error
            elif name not in self._refused:
                self._refused[name] = said
                self.say(f"{self.config.url}: does not take {name}={sent[name]} ({said}); asking without it")


def _words(error: Any) -> str:
    """What the server said of its refusal."""
    known = isinstance(error.body, dict) and isinstance(error.body.get("message"), str)
    return str(error.message) if known or not error.body else f"{error.message} {error.body}"


def _retry_after(error: Exception) -> float:
    response = getattr(error, "response", None)
    try:
        return float(response.headers.get("retry-after", 0)) if response is not None else 0.0
    except ValueError:  # a date
        return 0.0


def _openai() -> ModuleType:
    try:
        import openai
    except ImportError:
        raise UserError("generator=endpoint needs the package openai: pip install 'lit-long[instruct]'") from None
    return openai
