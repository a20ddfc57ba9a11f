"""What the generator and the critic are asked: LLaMA 2 Long's structure (Figures 10 and 11), in words of our own.

The prompts' hash stands in every manifest: other words make other data.
"""

from __future__ import annotations

import hashlib

NORMAL = '''The passage between the triple quotes is one part of a long document.

"""
{chunk}
"""

Write one question about this passage and its correct answer. The question will test whether somebody has read the whole document, so it must \
make sense to a reader who does not know which passage you saw, and the passage alone must hold the answer. Reply in this form and add nothing:
<question>the question</question>
<answer>the answer</answer>'''

SHORT = '''The passage between the triple quotes is one part of a long document.

"""
{chunk}
"""

Write one precise question about this passage whose correct answer is a few words or a single phrase. The question will test whether somebody has \
read the whole document, so it must make sense to a reader who does not know which passage you saw, and the passage alone must hold the answer. \
Reply in this form and add nothing:
<question>the question</question>
<answer>the answer</answer>
The answer must be short, with no explanation.'''

CRITIQUE = '''Here is a passage between triple quotes, and an answer that somebody gave to a question about it.

"""
{chunk}
"""

Question: {question}
Answer: {answer}

Check the answer against the passage. It is correct only if it answers this very question and the passage says so. Reply in this form and add \
nothing:
<verdict>correct or wrong</verdict>
<score>from 0, certainly wrong, to 10, certainly correct</score>
<reason>one sentence</reason>'''

GENERATE = {"normal": NORMAL, "short": SHORT}
VERDICTS = ("correct", "wrong")


def digest() -> str:
    """sha256 of all prompts."""
    return hashlib.sha256("\0".join((NORMAL, SHORT, CRITIQUE)).encode()).hexdigest()
