"""What servers do otherwise than each other: thoughts in the text or beside it, and parameters that they refuse by name."""

from __future__ import annotations

import pytest

from lit_long.config import UserError
from lit_long.instruct.chunks import Item
from lit_long.instruct.critique import read_verdict
from lit_long.instruct.endpoint import Endpoint, EndpointConfig
from lit_long.instruct.extract import after_thoughts, between, closing_thoughts, first_question
from lit_long.instruct.generators import Request
from tests.instruct.server import ChatServer, write_about
from tests.instruct.test_generate import rows, run, store, texts  # noqa: F401 the fixtures

THOUGHT = (
    "\nI must write a <question> and an <answer>, then a <verdict>wrong</verdict>. Let me look for a fact: Line 3 is about the river. "
    "Question: what? Answer: no.\n"
)
REPLY = "<question>Which river does the text name?</question>\n<answer>The text is about river 12.</answer>"
WRAPPERS = {
    "think": "<think>{}</think>\n",
    "no opening": "{}</think>\n",
    "capitals and spaces": "< Think >{}</ THINK >",
    "attributes": '<thinking effort="high">{}</thinking>',
    "thought": "Sure. <thought>{}</thought>",
    "reasoning": "<reasoning>{}</reasoning>",
    "seed": "<seed:think>{}</seed:think>",
    "mistral": "[THINK]{}[/THINK]",
    "kimi": "◁think▷{}◁/think▷",
    "special tokens": "<|begin_of_thought|>{}<|end_of_thought|>",
    "cohere": "<|START_THINKING|>{}<|END_THINKING|>",
    "gpt-oss": "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>",
    "nested": "<think>a<think>{}</think> so <answer>x</answer></think>",
    "one in the other": "<thinking>a<reasoning>{}</reasoning> so <answer>x</answer></thinking>",
    "twice": "<think>{}</think><think><answer>x</answer></think>",
    "escaped": "&lt;think&gt;{}&lt;/think&gt;",
    "mentions itself": "<think>I may close with &lt;think&gt; or <think> {}</think>",
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_what_follows_the_thoughts_is_the_answer(wrapper: str) -> None:
    thoughts = WRAPPERS[wrapper].format(THOUGHT)
    assert between(thoughts + REPLY, ("question", "answer")) == between(REPLY, ("question", "answer"))
    assert read_verdict(thoughts + "<verdict>correct</verdict><score>9</score>").score == 0.9
    assert read_verdict(thoughts).verdict == "unclear"
    assert first_question(thoughts + "Which river is it?") == {"question": "Which river is it?"}


@pytest.mark.parametrize(
    "wrapper", ["<think>{}", "[THINK]{}", "<|channel|>analysis<|message|>{}", "◁think▷{}", "<thinking>a</think>{}"]
)
def test_a_reply_that_ends_in_its_thoughts_says_nothing(wrapper: str) -> None:
    assert after_thoughts(wrapper.format(THOUGHT + REPLY)) == ""


def test_replies_without_thoughts_stay_as_they_are() -> None:
    for reply in (REPLY, "<verdict>correct</verdict><reason>I think <b>so</b></reason>", "Think [1] of <|x|>, </reason>"):
        assert after_thoughts(reply) == reply


def test_a_template_that_begins_the_thoughts_has_them_ended() -> None:
    assert closing_thoughts("<user>Hi<assistant><think>\n") == "\n</think>\n\n"
    assert closing_thoughts("<user>What does <think> do?<assistant>") == ""


def test_a_server_that_thinks(store, tmp_path) -> None:  # noqa: F811
    """Generator and critic alike: every example is what it would be without thoughts."""
    for name, wrapper in (("plain", "{}"), ("thinks", f"<think>{THOUGHT}</think>\n{{}}")):
        with ChatServer(lambda prompt, wrapper=wrapper: wrapper.format(write_about(prompt))) as server:
            endpoint = Endpoint(EndpointConfig(server.url, "m", backoff=0.01))
            run(store, tmp_path / name, endpoint, endpoint, n=6)
    assert rows(tmp_path / "thinks") == rows(tmp_path / "plain") and len(rows(tmp_path / "plain")) == 6


def ask(server: ChatServer, said: list[str] | None = None, **config) -> tuple[list[str], Endpoint]:
    item = Item(0, "d", "text " * 9, 0, 9, "normal", 0.0, 7)
    requests = [Request(f"generate/{i}", item, f'say """{i}"""', "", (), 50, i) for i in range(6)]
    endpoint = Endpoint(
        EndpointConfig(server.url, "m", backoff=0.01, **config), 0.7, 0.9, (said if said is not None else []).append
    )
    return sorted(reply for found in endpoint.ask(requests) for reply in found.values()), endpoint


BESIDE = {
    "reasoning_content": ({"reasoning_content": THOUGHT}, True),
    "reasoning": ({"reasoning": THOUGHT}, True),
    "parts": (
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]}, {"type": "text", "text": "Yes."}]},
        True,
    ),
    "nothing but reasoning_content": ({"content": None, "reasoning_content": THOUGHT}, False),
    "empty beside reasoning": ({"content": "", "reasoning": THOUGHT}, False),
    "cut off": ({"content": f"<think>{THOUGHT}"}, False),
}


@pytest.mark.parametrize("kind", BESIDE)
def test_thoughts_beside_the_text(kind: str) -> None:
    beside, answers = BESIDE[kind]
    with ChatServer(lambda prompt: "Yes.", beside=beside) as server:
        replies, endpoint = ask(server)
    assert replies == (["Yes."] * 6 if answers else [])
    if not answers:  # asking again would end the same way
        assert len(server.seen) == 6
        assert all(
            "ended in the model's thoughts, after 50 tokens; raise max_new_tokens" in why for why in endpoint.unanswered.values()
        )


def refuse(*names: str, param: bool = True, status: int = 400, words: str = "Unsupported parameter: '{}' is not supported"):
    def look(body: dict) -> tuple[int, dict] | None:
        found = next((name for name in names if name in body), None)
        error = {"message": words.format(found), "type": "invalid_request_error", "code": "unsupported_parameter"}
        return (status, {"error": error | ({"param": found} if param else {})}) if found else None

    return look


@pytest.mark.parametrize("param", [True, False])
@pytest.mark.parametrize(
    "names", [("max_tokens",), ("temperature",), ("top_p",), ("seed",), ("max_tokens", "temperature", "top_p", "seed")]
)
def test_a_parameter_that_is_refused_by_name(names: tuple[str, ...], param: bool) -> None:
    """Renamed or left out, told once, and remembered."""
    said: list[str] = []
    with ChatServer(lambda prompt: "Yes.", refuse=refuse(*names, param=param)) as server:
        replies, endpoint = ask(server, said, concurrency=1)
    assert replies == ["Yes."] * 6 and not endpoint.unanswered
    assert len(server.bodies) == 6 + len(names)
    sent = set(server.bodies[-1]) - {"model", "messages"}
    renamed = {
        "max_completion_tokens" if name == "max_tokens" and name in names else name
        for name in ("max_tokens", "temperature", "top_p", "seed")
    }
    assert sent == renamed - (set(names) - {"max_tokens"})
    assert len(said) == len(names) and all(any(f"does not take {name}" in line for line in said) for name in names)
    assert server.bodies[-1].get("max_completion_tokens", 50) == 50


def test_many_requests_at_once_find_out_together() -> None:
    said: list[str] = []
    words = "Unsupported parameter: use 'max_completion_tokens' instead."
    with ChatServer(lambda prompt: "Yes.", delay=0.02, refuse=refuse("max_tokens", param=False, words=words)) as server:
        replies, _ = ask(server, said, concurrency=6)
    assert replies == ["Yes."] * 6 and len(said) == 1


def test_pydantic_style_refusals() -> None:
    def look(body: dict) -> tuple[int, dict] | None:
        return (422, {"detail": [{"loc": ["body", "top_p"], "msg": "extra fields not permitted"}]}) if "top_p" in body else None

    with ChatServer(lambda prompt: "Yes.", refuse=look) as server:
        assert ask(server)[0] == ["Yes."] * 6


@pytest.mark.parametrize(
    ("look", "words"),
    [
        (
            refuse("max_tokens", "max_completion_tokens", words="{} is too large: 50"),
            "max_tokens is too large: 50; .*max_new_tokens",
        ),
        (refuse("messages", words="messages are too long"), "refuses with status 400: .*messages are too long"),
        (refuse("model", param=False, words="no such model"), "refuses with status 400: .*no such model"),
    ],
)
def test_what_no_other_name_helps(look, words: str) -> None:
    with ChatServer(lambda prompt: "Yes.", refuse=look) as server, pytest.raises(UserError, match=words):
        ask(server, concurrency=1)
    assert len(server.bodies) <= 3
