"""RULER's generated tasks (Hsieh et al. 2024), made by lm-eval's generators: as many documents as are asked for, from a seed.

lm-eval itself makes 500 of every length, from whatever state the random generators are in, and counts tokens with a tokenizer that it
loads by name. Here a document is a function of (task, tokenizer, length, seed), and tokens are the model's own. The documents of one
seed are those that lm-eval makes first from the same state, word for word.

The generators with essays for a haystack want the data set baber/paul_graham_essays (``data=FOLDER``).
"""

from __future__ import annotations

import contextlib
import io
import random
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_long.config import UserError
from lit_long.evaluation.public_data import Unavailable, local_rows

if TYPE_CHECKING:
    from lit_long.evaluation.evaluated_model import EvaluatedModel

ESSAYS = "baber/paul_graham_essays"
NIAH = {  # haystack, keys, values, and how many of keys, values, queries
    "niah_single_1": ("repeat", "words", "numbers", 1, 1, 1),
    "niah_single_2": ("essay", "words", "numbers", 1, 1, 1),
    "niah_single_3": ("essay", "words", "uuids", 1, 1, 1),
    "niah_multikey_1": ("essay", "words", "numbers", 4, 1, 1),
    "niah_multikey_2": ("needle", "words", "numbers", 1, 1, 1),
    "niah_multikey_3": ("needle", "uuids", "uuids", 1, 1, 1),
    "niah_multivalue": ("essay", "words", "numbers", 1, 4, 1),
    "niah_multiquery": ("essay", "words", "numbers", 1, 1, 4),
}
RULER = [*NIAH, "ruler_vt", "ruler_cwe", "ruler_fwe"]
EXAMPLE = 500  # tokens of the example that comes before variable tracking
Tokens = Callable[[str], Any]


def documents(task: str, evaluated: EvaluatedModel, length: int, count: int, seed: int, data: str) -> list[dict[str, Any]]:
    """``count`` documents of ``length`` tokens at most, the answer included, in lm-eval's schema.

    Raises:
        Unavailable: the essays are not there, or the length is too short.
        UserError: what lm-eval's generators need is not installed.
    """
    before = random.getstate(), np.random.get_state()
    quiet = io.StringIO()
    try:
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            make = generator(task, evaluated, length, data, seed)
            random.seed(f"{seed} {task} {length}"), np.random.seed(seed)
            return make(count)
    except ImportError as error:
        raise UserError(f"{task}: {error}; pip install 'lit-long[eval]'") from None
    except LookupError as error:
        raise Unavailable(f"{task}: needs nltk's punkt_tab, which is not there: {str(error).strip().splitlines()[0]}") from None
    except ValueError as error:
        raise Unavailable(f"{task}: cannot be made of {length:,} tokens: {error}") from None
    finally:
        random.setstate(before[0]), np.random.set_state(before[1])


def generator(task: str, evaluated: EvaluatedModel, length: int, data: str, seed: int) -> Callable[[int], list[dict[str, Any]]]:
    """From a count to documents. lm-eval's modules are imported here: they want wonderwords and nltk."""

    def tokens(text: str) -> SimpleNamespace:
        return SimpleNamespace(input_ids=evaluated.tokenizer.encode(text))

    if task in NIAH:
        return niah(task, tokens, length, data)
    if task == "ruler_vt":
        from lm_eval.tasks.ruler import vt_utils

        require(task, tokens, EXAMPLE, vt_utils.generate_input_output(5, 1, 4, is_icl=True)[0], 30)
        require(task, tokens, length, vt_utils.generate_input_output(10, 1, 4)[0], EXAMPLE + 30)
        return lambda count: traced(vt_utils.sys_vartrack_w_noise_random, tokens, length, count)
    if task == "ruler_cwe":
        from lm_eval.tasks.ruler import cwe_utils

        require(task, tokens, length, cwe_utils.generate_input_output(10, length)[1], 120)
        cwe_utils.RNG.seed(seed)
        return lambda count: cwe_utils.sys_word_pair_random(count, length, tokenizer=tokens)
    from lm_eval.tasks.ruler.fwe_utils import TEMPLATE, sys_kwext

    require(task, tokens, length, TEMPLATE, 50)
    return lambda count: sys_kwext(tokens, length, num_samples=count)


def require(task: str, tokens: Tokens, length: int, shortest: str, more: int) -> None:
    """Raise `Unavailable` when not even the shortest document fits: lm-eval's generators would try for ever, deaf to interruptions."""
    least = int(1.1 * len(tokens(shortest).input_ids)) + more
    if length < least:
        raise Unavailable(f"{task}: {length:,} tokens leave no room for what needs at least {least:,} with this tokenizer")


def traced(make: Callable[..., list[dict[str, Any]]], tokens: Tokens, length: int, count: int) -> list[dict[str, Any]]:
    """Variable tracking, after one example."""
    example = make(tokenizer=tokens, num_samples=1, max_seq_length=EXAMPLE, incremental=5)[0]
    return make(tokenizer=tokens, num_samples=count, max_seq_length=length, icl_example=example)


def niah(task: str, tokens: Tokens, length: int, data: str) -> Callable[[int], list[dict[str, Any]]]:
    hay, key, value, keys, values, queries = NIAH[task]
    words = essays(data, task) if hay == "essay" else None  # asked for first: lm-eval's module takes seconds to import
    from lm_eval.tasks.ruler.niah_utils import TEMPLATE
    from lm_eval.tasks.ruler.prepare_niah import generate_samples, get_haystack

    haystack = words or get_haystack(hay)
    return lambda count: generate_samples(
        haystack,
        tokens,
        max_seq_length=length,
        type_haystack=hay,
        type_needle_k=key,
        type_needle_v=value,
        template=TEMPLATE,
        num_samples=count,
        num_needle_k=keys,
        num_needle_v=values,
        num_needle_q=queries,
    )


def essays(data: str, task: str) -> list[str]:
    """The words of Paul Graham's essays, as lm-eval joins them."""
    if not data:
        raise Unavailable(f"{task}: its haystack is the data set {ESSAYS}: data=FOLDER that holds it")
    text = " ".join(row["text"] for row in local_rows(data, ESSAYS, None, "train"))
    return re.sub(r"\s+", " ", text).split(" ")
