"""What the generator and the critic are asked: LLaMA 2 Long's structure (Figures 10 and 11), in words of our own.

The prompts' hash stands in every manifest: other words make other data.
"""

from __future__ import annotations

import hashlib

NORMAL = '''You write a question about a passage of a long document, and its correct answer. The question tests whether somebody has read the \
whole document, so it must make sense to a reader who does not know which passage you saw, and the passage alone must hold the answer. Put the \
question between <question> and </question>, and the answer between <answer> and </answer>. Add nothing else.

"""
{chunk}
"""'''

SHORT = '''You write a precise question about a passage of a long document, one that can be answered in a few words or a single phrase, and its \
correct answer. The question tests whether somebody has read the whole document, so it must make sense to a reader who does not know which passage \
you saw, and the passage alone must hold the answer. Put the question between <question> and </question>, and the answer between <answer> and \
</answer>. Add nothing else.

"""
{chunk}
"""

The answer must be short, with no explanation.'''

# In two turns, for models too small to do both at once: the question alone, and then its answer.
QUESTION = {
    "normal": """{chunk}

Write one question that this text answers.""",
    "short": """{chunk}

Write one question that this text answers in a few words.""",
}
# The second turn, and what a model is asked that wrote a question and stopped.
ANSWER = {
    "normal": '''Here is a passage.

"""
{chunk}
"""

Answer this question about it, from the passage alone: {question}''',
    "short": '''Here is a passage.

"""
{chunk}
"""

Answer this question about it in a few words, from the passage alone: {question}''',
}

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
    return hashlib.sha256("\0".join((NORMAL, SHORT, *QUESTION.values(), *ANSWER.values(), CRITIQUE)).encode()).hexdigest()
