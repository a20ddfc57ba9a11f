"""lm-eval's tasks on our models, without exporting them (extra `eval`): log-likelihoods and texts come from our own engine.

    import lm_eval
    from lit_long.evaluation.harness import Harness
    lm_eval.simple_evaluate(Harness(subject), tasks=["hellaswag"], num_fewshot=0)

What it does otherwise than lm-eval's HFLM: logits are computed where something is scored and nowhere else, and requests that differ in their
last token only (the options of multiple choice) read their context once. What it does alike: a context beyond the model's range loses
its beginning. lm-eval does not tell; here `truncated` counts the requests, for the score's sake. HFLM cuts off bos, too; here it stays,
for a model that was trained with it never reads without.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from lit_long.batch import Batch
from lit_long.config import UserError
from lit_long.evaluation.subject import Subject
from lit_long.generation import Sampler, continue_tokens
from lit_long.generation.tables import same_tables

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError:
    raise UserError("lm-eval is not installed, which this needs: pip install 'lit-long[eval]'") from None

NEW_TOKENS = 256  # HFLM's, where a task does not say
Scored = tuple[float, bool]


class Harness(TemplateLM):
    """A `Subject` as lm-eval's model.

    Args:
        longest: tokens of a prompt at most, where that is less than the model's range; a longer one loses its beginning.

    ``cuts`` says of every request, in the order asked, whether it lost something; ``truncated`` counts them, of ``asked``.
    """

    backend = "causal"

    def __init__(self, subject: Subject, longest: int | None = None) -> None:
        super().__init__()
        self.subject, self.longest = subject, longest or subject.context
        self.cuts: list[bool] = []

    @property
    def truncated(self) -> int:
        return sum(self.cuts)

    @property
    def asked(self) -> int:
        return len(self.cuts)

    @property
    def max_length(self) -> int:
        return self.subject.context

    @property
    def eot_token_id(self) -> int:
        words = self.subject.words
        return words.eos[0] if words.eos else words.separator

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        bos = self.subject.words.bos
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return self.subject.words.where

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        return self.subject.words.encode(string) if add_special_tokens is not False else self.subject.encode(string)

    def chat_template(self, chat_template: bool | str = False) -> str:
        return self.subject.words.chat_template or ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.subject.words.chat(chat_history, add_generation_prompt)

    @torch.inference_mode()
    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]], **options: Any) -> list[Scored]:
        """(sum of log-probabilities, whether all are the likeliest) of each continuation after its context, both in tokens."""
        rows: dict[tuple[int, ...], list[int]] = {}  # what is read, and the requests that it serves
        for number, (_, context, continuation) in enumerate(requests):
            if not continuation:
                raise UserError(f"lm-eval asks for the likelihood of nothing after {self.subject.words.decode(context)[-40:]!r}")
            if len(continuation) > self.max_length:
                raise UserError(
                    f"lm-eval asks for the likelihood of {len(continuation):,} tokens at once, beyond the model's range of {self.max_length:,}"
                )
            whole = self.cut(self.cut(context, self.longest) + continuation, self.max_length + 1)
            self.cuts.append(len(whole) < len(context + continuation))
            rows.setdefault(tuple(whole[:-1]), []).append(number)
        found: list[Scored] = [(0.0, False)] * len(requests)
        for group in self.batches(list(rows)):
            for row, hidden_TD in zip(group, self.hidden(group), strict=True):
                longest = max(len(requests[number][2]) for number in rows[row])
                logs_TV = self.subject.model.head(hidden_TD[len(row) - longest : len(row)]).float().log_softmax(-1).cpu()
                best_T = logs_TV.argmax(-1)
                for number in rows[row]:
                    targets_T = torch.tensor(requests[number][2])
                    own = logs_TV[longest - len(targets_T) :]
                    score = float(own.gather(1, targets_T[:, None]).double().sum())
                    found[number] = (score, bool((best_T[longest - len(targets_T) :] == targets_T).all()))
        return found

    def cut(self, tokens: list[int], room: int) -> list[int]:
        """The last ``room`` tokens; where bos is the first, it stays so."""
        if len(tokens) <= room:
            return tokens
        bos = tokens[:1] if room > 1 and tokens[0] == self.subject.words.bos else []
        return [*bos, *tokens[len(tokens) - room + len(bos) :]]

    def batches(self, rows: list[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
        """Rows to be read together, up to the subject's ``batch_tokens`` with padding. An encoder that looks at the length of the context
        gets rows of one length only."""
        encoder, groups = self.subject.model.encoder, []
        for row in sorted(rows, key=len, reverse=True):
            group = groups[-1] if groups else []
            fits = group and (len(group) + 1) * len(group[0]) <= self.subject.batch_tokens
            if fits and (len(group[0]) == len(row) or same_tables(encoder, len(row), len(group[0]))):
                group.append(row)
            else:
                groups.append([row])
        return groups

    def hidden(self, rows: list[tuple[int, ...]]) -> torch.Tensor:
        """Hidden states [B, T, D] of rows padded on their right, which causality hides."""
        tokens_BT = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
        for place, row in enumerate(rows):
            tokens_BT[place, : len(row)] = torch.tensor(row)
        tokens_BT = tokens_BT.to(self.subject.model.embed_tokens.weight.device)
        positions = torch.arange(tokens_BT.shape[1], device=tokens_BT.device).expand_as(tokens_BT)
        return self.subject.model.hidden_states(Batch(tokens_BT, tokens_BT, torch.zeros_like(tokens_BT), positions, False))

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Summed log-probabilities of whole texts, in windows that do not overlap in what they predict."""
        texts = [self.tok_encode(request.args[0]) for request in requests]
        if empty := [number for number, tokens in enumerate(texts) if not tokens]:
            raise UserError(f"lm-eval asks for the likelihood of text {empty[0]}, which is empty")
        windows = [
            (number, (None, *make_disjoint_window(window)))
            for number, tokens in enumerate(texts)
            for window in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1)
        ]
        sums = [0.0] * len(texts)
        scored = self._loglikelihood_tokens([window for _, window in windows])
        for (number, _), (score, _) in zip(windows, scored, strict=True):
            sums[number] += score
        return sums

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The text after each context, up to its stop strings."""
        asked: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            asked.setdefault(repr(sorted(request.args[1].items(), key=str)), []).append(number)
        found, cuts = [""] * len(requests), [False] * len(requests)
        for numbers in asked.values():
            options = dict(requests[numbers[0]].args[1])
            new, stop, drawn = settings_of(options, self.subject)
            room = min(self.max_length - new, self.longest)
            if room < 1:
                raise UserError(
                    f"lm-eval asks for {new:,} new tokens, which leaves nothing of the model's range of {self.max_length:,}"
                )
            prompts = [self.tok_encode(requests[number].args[0]) for number in numbers]
            for number, prompt in zip(numbers, prompts, strict=True):
                cuts[number] = len(prompt) > room
            order = sorted(range(len(numbers)), key=lambda place: len(prompts[place]))
            rows = [self.cut(prompts[place], room) or [self.prefix_token_id] for place in order]
            for place, text in self.sampled(rows, new, stop, *drawn) if drawn else self.subject.write(rows, new, stop):
                found[numbers[order[place]]] = text
        self.cuts += cuts
        return found

    def sampled(
        self, rows: list[list[int]], new: int, stop: list[str], temperature: float, top_p: float
    ) -> Iterator[tuple[int, str]]:
        """Texts that are drawn, each alone and from its own seed: what else is asked does not change them."""
        model, words = self.subject.model, self.subject.words
        for place, row in enumerate(rows):
            sampler = Sampler(temperature, top_p, zlib.crc32(repr(row).encode()))
            yield place, continue_tokens(model, words, [row], new, sampler=sampler, stop=stop)[0]


def settings_of(options: dict[str, Any], subject: Subject) -> tuple[int, list[str], tuple[float, float] | None]:
    """New tokens, stop strings (without the end token's own text, which ends every row), and temperature and top_p if texts are drawn, of lm-eval's ``gen_kwargs``.

    Raises:
        UserError: options that our engine does not have.
    """
    until = options.pop("until", None) or []
    until = [until] if isinstance(until, str) else until
    new = next((int(options.pop(key)) for key in ("max_gen_toks", "max_new_tokens", "max_tokens") if key in options), NEW_TOKENS)
    temperature, top_p = float(options.pop("temperature", 0.0) or 0.0), float(options.pop("top_p", 1.0))
    draws = bool(options.pop("do_sample", temperature > 0)) and temperature > 0
    if options:
        raise UserError(f"lm-eval's task sets {', '.join(sorted(options))} for generation, which lit-long does not have")
    ends = {subject.words.tokenizer.decode([end], skip_special_tokens=False) for end in subject.words.eos}
    return new, [text for text in until if text and text not in ends], (temperature, top_p) if draws else None
