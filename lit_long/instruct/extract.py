"""The parts of a reply, between tags or what is left of them: small models forget to close them, change their case or write labels instead."""

from __future__ import annotations

import html
import re

_ASKS = re.compile(r"\W*(who|whom|whose|what|which|when|where|why|how)\b", re.IGNORECASE)
# How reasoning models mark their thoughts: tags, Mistral's brackets, Kimi's triangles, Cohere's and others' special tokens, and the
# channels of gpt-oss, in which whatever is not the final one is a thought.
_NAMES = r"(?:\w+:)?(?:think|thinks|thinking|thought|thoughts|reasoning|reflection|scratchpad|analysis)"
_THOUGHTS = [
    (rf"<\s*(?P<name>{_NAMES})\b[^<>]*>", rf"<\s*/\s*(?P<name>{_NAMES})\s*>"),
    (r"\[\s*THINK\s*\]", r"\[\s*/\s*THINK\s*\]"),
    (r"◁\s*think\s*▷", r"◁\s*/\s*think\s*▷"),
    (r"<\|\s*(?:begin|start)_(?:of_)?th(?:ink|inking|ought)\s*\|>", r"<\|\s*end_(?:of_)?th(?:ink|inking|ought)\s*\|>"),
]
_THOUGHTS = [(re.compile(opens, re.IGNORECASE), re.compile(ends, re.IGNORECASE)) for opens, ends in _THOUGHTS]
_CHANNEL = re.compile(
    r"(?:<\|start\|>\s*assistant\s*)?<\|channel\|>\s*(?P<name>\w+)[^<]*<\|message\|>(?P<text>.*?)(?:<\|(?:end|return|call)\|>|\Z)",
    re.DOTALL,
)
_ANY_TAG = re.compile(r"<\s*/?\s*[A-Za-z]\w*\b[^<>]*>")


def after_thoughts(text: str) -> str:
    """The text without a reasoning model's thoughts: what is marked so; what stands before an end mark alone, for many templates begin
    the thoughts in the prompt; and all that follows a mark that is never closed, for the reply ended in its thoughts."""
    text = _CHANNEL.sub(lambda message: message["text"] if message["name"] == "final" else "", text)
    kept, at = "", 0
    while True:
        found = [
            (match.start(), is_end, match, ends)
            for opens, ends in _THOUGHTS
            for is_end, mark in enumerate((opens, ends))
            if (match := mark.search(text, at))
        ]
        if not found:
            return kept + text[at:]
        start, is_end, mark, ends = min(found, key=lambda one: one[:2])
        if is_end:
            kept, at = "", mark.end()
            continue
        kept += text[at:start]
        close = next((other for other in ends.finditer(text, mark.end()) if _name(other) == _name(mark)), None)
        if close is None:
            return kept
        at = close.end()


def _name(mark: re.Match[str]) -> str:
    return mark.groupdict().get("name", "").lower()


def closing_thoughts(prompt: str) -> str:
    """What ends the thoughts that a chat template begins at the end of ``prompt``; nothing where it begins none."""
    opened = re.search(rf"<({_NAMES})>\s*\Z", prompt, re.IGNORECASE)
    return f"\n</{opened[1]}>\n\n" if opened else ""


def between(text: str, names: tuple[str, ...]) -> dict[str, str]:
    """What stands in each of ``names``, in this order in the text; a name that cannot be found is left out.

    ``<question>…</question>`` in any case, with spaces or attributes inside the tag, unclosed (up to the next name or the end), escaped
    as ``&lt;question&gt;``; or, where there is no tag at all, a line that begins with ``Question:``. Thoughts are left out.
    """
    text = after_thoughts(html.unescape(text) if "&lt;" in text else text)
    found: dict[str, str] = {}
    at = 0
    for number, name in enumerate(names):
        opened = _opening(name, text, at)
        if opened is None:
            continue
        ends = [match.start() for other in names[number + 1 :] if (match := _opening(other, text, opened.end()))]
        if closed := re.compile(rf"<\s*/\s*{name}\s*>|<\s*/?\s*\w*\s*$", re.IGNORECASE).search(text, opened.end()):
            ends.append(closed.start())
        stop = min(ends, default=len(text))
        if content := _clean(text[opened.end() : stop]):
            found[name] = content
        at = stop
    return found


def first_question(text: str) -> dict[str, str]:
    """The first sentence that asks something, of a reply that was to be a question and nothing else; the mark at its end may be missing."""
    text = after_thoughts(html.unescape(text) if "&lt;" in text else text)
    text = between(text, ("question",)).get("question", _clean(text))
    if "?" not in text and not _ASKS.match(text):
        return {}
    before = re.split(r"[.!:]\s+", text.partition("?")[0])[-1]
    return {"question": f"{_clean(before)}?"} if before.strip() else {}


def _opening(name: str, text: str, start: int) -> re.Match[str] | None:
    tag = re.compile(rf"<\s*{name}\b[^<>]*>\s*:?", re.IGNORECASE).search(text, start)
    return tag or re.compile(rf"^[ \t>*#-]*{name}[ \t*]*:[ \t*]*", re.IGNORECASE | re.MULTILINE).search(text, start)


def _clean(text: str) -> str:
    """Without tags, quotation marks around the whole, and white space around and within."""
    text = re.sub(r"\s+", " ", _ANY_TAG.sub(" ", text)).strip().strip("*`").strip()
    if len(text) > 1 and text[0] in "\"'“" and text[-1] in "\"'”" and not any(mark in text[1:-1] for mark in '"“”'):
        text = text[1:-1].strip()
    return text
