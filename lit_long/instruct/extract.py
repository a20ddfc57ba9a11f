"""The parts of a reply, between tags or what is left of them: small models forget to close them, change their case or write labels instead."""

from __future__ import annotations

import html
import re

_ASKS = re.compile(r"\W*(who|whom|whose|what|which|when|where|why|how)\b", re.IGNORECASE)
_ANY_TAG = re.compile(r"<\s*/?\s*[A-Za-z]\w*\b[^<>]*>")


def between(text: str, names: tuple[str, ...]) -> dict[str, str]:
    """What stands in each of ``names``, in this order in the text; a name that cannot be found is left out.

    ``<question>…</question>`` in any case, with spaces or attributes inside the tag, unclosed (up to the next name or the end), escaped
    as ``&lt;question&gt;``; or, where there is no tag at all, a line that begins with ``Question:``.
    """
    text = html.unescape(text) if "&lt;" in text else text
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
