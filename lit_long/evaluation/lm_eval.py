"""lm-eval's tasks on our models, without exporting them (extra `eval`).

**The adapter**, `Harness`: log-likelihoods and texts come from our own engine.

    import lm_eval
    from lit_long.evaluation.lm_eval import Harness
    lm_eval.simple_evaluate(Harness(evaluated), tasks=["hellaswag"], num_fewshot=0)

What it does otherwise than lm-eval's HFLM: logits are computed where something is scored and nowhere else, and what requests share (shots, the
question before its options) is read once, where that pays. What it does alike: a context beyond the model's range loses
its beginning. lm-eval does not tell; here `truncated` counts the requests, for the score's sake.

**From a name to documents and requests**, `load_parts`: task files, local data in place of downloads, shots, and the checks. Task files are
lm-eval's own, those in tasks/ beside this file, where the paper's prompt is another, or the user's. A task of a table is looked for in its
own folder only; any other name in all of lm-eval's, which takes seconds.

**Its tasks as tasks of ours**, `HarnessTask`: its prompts, shots, filters and metrics; our model, samples, resuming and statistics. lm-eval
builds the requests of every document; `Harness` answers them; lm-eval scores each document, and the numbers become samples. A score is the
mean over documents, as lm-eval's own; a task of several parts (MMLU) also has one for each part. Every request is made beforehand, and
``data`` of a score begins the digest of them all: prompts, shots, texts and right answers. So nothing that lm-eval, the data set or the seed
might change goes unnoticed when an evaluation is resumed or compared.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from lit_long.batch import Batch, right_padded
from lit_long.config import UserError
from lit_long.data.token_store import Store
from lit_long.evaluation import babilong, ruler
from lit_long.evaluation.evaluated_model import EvaluatedModel
from lit_long.evaluation.in_memory_corpus import InMemoryCorpus
from lit_long.evaluation.lm_eval_tasks import CUSTOM, SPECS, VERIFIED, Spec, row_remark
from lit_long.evaluation.measurement import Measurement
from lit_long.evaluation.public_data import Unavailable, draw_rows, local_rows
from lit_long.evaluation.registry import file_digest, is_task_file, read_task_file
from lit_long.evaluation.samples import Key
from lit_long.evaluation.statistics import geometric, mean, share
from lit_long.evaluation.task import Sample, Task, by
from lit_long.generation import Sampler, continue_tokens
from lit_long.generation.prefix import empty_prefix, pass_tokens, shared_beginnings
from lit_long.generation.tables import same_tables
from lit_long.model.attention import without_cudnn

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError:
    raise UserError("lm-eval is not installed, which this needs: pip install 'lit-long[eval]'") from None

NEW_TOKENS = 256  # HFLM's, where a task does not say
Row = tuple[int, ...]
Scored = tuple[float, bool]


class Harness(TemplateLM):
    """A `EvaluatedModel` as lm-eval's model.

    Args:
        longest: tokens of a prompt at most, where that is less than the model's range; a longer one loses its beginning.

    ``cuts`` says of every request, in the order asked, whether it lost something; ``truncated`` counts them, of ``asked``.
    """

    backend = "causal"

    def __init__(self, evaluated: EvaluatedModel, longest: int | None = None) -> None:
        super().__init__()
        self.evaluated, self.longest = evaluated, longest or evaluated.context
        self.cuts: list[bool] = []

    @property
    def truncated(self) -> int:
        return sum(self.cuts)

    @property
    def asked(self) -> int:
        return len(self.cuts)

    @property
    def max_length(self) -> int:
        return self.evaluated.context

    @property
    def eot_token_id(self) -> int:
        tokenizer = self.evaluated.tokenizer
        return tokenizer.eos[0] if tokenizer.eos else tokenizer.separator

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        bos = self.evaluated.tokenizer.bos
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return self.evaluated.tokenizer.where

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        return self.evaluated.tokenizer.encode(string) if add_special_tokens is not False else self.evaluated.encode(string)

    def chat_template(self, chat_template: bool | str = False) -> str:
        return self.evaluated.tokenizer.chat_template or ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.evaluated.tokenizer.chat(chat_history, add_generation_prompt)

    @torch.inference_mode()
    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]], **options: Any) -> list[Scored]:
        """(sum of log-probabilities, whether all are the likeliest) of each continuation after its context, both in tokens."""
        rows: dict[Row, list[int]] = {}  # what is read, and the requests that it serves
        for number, (_, context, continuation) in enumerate(requests):
            if not continuation:
                raise UserError(
                    f"lm-eval asks for the likelihood of nothing after {self.evaluated.tokenizer.decode(context)[-40:]!r}"
                )
            if len(continuation) > self.max_length:
                raise UserError(
                    f"lm-eval asks for the likelihood of {len(continuation):,} tokens at once, beyond the model's range of {self.max_length:,}"
                )
            whole = self.cut(self.cut(context, self.longest) + continuation, self.max_length + 1)
            self.cuts.append(len(whole) < len(context + continuation))
            rows.setdefault(tuple(whole[:-1]), []).append(number)
        found: list[Scored] = [(0.0, False)] * len(requests)
        wanted = {row: max(len(requests[number][2]) for number in numbers) for row, numbers in rows.items()}
        for row, hidden_TD in self.last_hidden_states(wanted):
            longest = wanted[row]
            targets_RT = torch.full((len(rows[row]), longest), -1)  # of each request, at the end of the row
            for place, number in enumerate(rows[row]):
                targets_RT[place, longest - len(requests[number][2]) :] = torch.tensor(requests[number][2])
            logs_RT, hits_RT = self.scored(hidden_TD, targets_RT)
            for place, number in enumerate(rows[row]):
                own = slice(longest - len(requests[number][2]), None)
                found[number] = (float(logs_RT[place, own].double().sum()), bool(hits_RT[place, own].all()))
        return found

    def last_hidden_states(self, wanted: dict[Row, int]) -> Iterator[tuple[Row, torch.Tensor]]:
        """Each row with the hidden states [T, D] of its last tokens, as many as are wanted. What rows share before these is read once, where that pays."""
        if not wanted:
            return
        rows, model = list(wanted), self.evaluated.model
        empty = empty_prefix(model, min(map(len, rows)), max(map(len, rows)))
        beginnings = [row[: len(row) - wanted[row]] if empty else () for row in rows]
        root = shared_beginnings(beginnings, pass_tokens(model.embed_tokens.weight.device))
        waiting = [(root, empty)]
        while waiting:
            shared, prefix = waiting.pop()
            if shared.length:
                prefix = prefix.extended(shared.new)
            for group in self.batches([rows[number] for number in shared.texts]):
                rests = [row[shared.length :] for row in group]
                hidden_BTD = prefix.hidden_states(rests) if shared.length else self.hidden_states(rests)
                for row, rest, hidden_TD in zip(group, rests, hidden_BTD, strict=True):
                    yield row, hidden_TD[len(rest) - wanted[row] : len(rest)]
            waiting += [(inner, prefix) for inner in shared.inner]

    def scored(self, hidden_TD: torch.Tensor, targets_RT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each request R the log-probability of its targets, and whether they are the likeliest, [R, T] on the CPU; anything where the target is -1.

        Logits exist for as many tokens at once as in the loss: a whole text's would take gigabytes.
        """
        logs, hits = [], []
        chunk = self.evaluated.model.loss_chunk
        for hidden, targets_RC in zip(hidden_TD.split(chunk), targets_RT.split(chunk, dim=1), strict=True):
            logs_CV = self.evaluated.model.head(hidden).float().log_softmax(-1).cpu()
            logs.append(logs_CV.gather(1, targets_RC.clamp(min=0).t()).t())
            hits.append(logs_CV.argmax(-1) == targets_RC)
        return torch.cat(logs, dim=1), torch.cat(hits, dim=1)

    def cut(self, tokens: list[int], room: int) -> list[int]:
        """The last ``room`` tokens; where bos is the first, it stays so."""
        if len(tokens) <= room:
            return tokens
        bos = tokens[:1] if room > 1 and tokens[0] == self.evaluated.tokenizer.bos else []
        return [*bos, *tokens[len(tokens) - room + len(bos) :]]

    def batches(self, rows: list[Row]) -> list[list[Row]]:
        """Rows to be read together, up to the evaluated's ``batch_tokens`` with padding. An encoder that looks at the length of the context
        gets rows of one length only."""
        pattern, groups = self.evaluated.model.pattern, []
        for row in sorted(rows, key=len, reverse=True):
            group = groups[-1] if groups else []
            fits = group and (len(group) + 1) * len(group[0]) <= self.evaluated.batch_tokens
            if fits and (
                len(group[0]) == len(row) or all(same_tables(layers, len(row), len(group[0])) for layers in pattern.groups)
            ):
                group.append(row)
            else:
                groups.append([row])
        return groups

    def hidden_states(self, rows: list[Row]) -> torch.Tensor:
        """Hidden states [B, T, D] of rows padded on their right, which causality hides."""
        tokens_BT = right_padded(rows).to(self.evaluated.model.embed_tokens.weight.device)
        positions = torch.arange(tokens_BT.shape[1], device=tokens_BT.device).expand_as(tokens_BT)
        batch = Batch(tokens_BT, tokens_BT, torch.zeros_like(tokens_BT), positions, False)
        with without_cudnn(tokens_BT.device):  # texts are of any length
            return self.evaluated.model.hidden_states(batch)

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
            new, stop, drawn = settings_of(options, self.evaluated)
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
            for place, text in self.sampled(rows, new, stop, *drawn) if drawn else self.evaluated.write(rows, new, stop):
                found[numbers[order[place]]] = text
        self.cuts += cuts
        return found

    def sampled(
        self, rows: list[list[int]], new: int, stop: list[str], temperature: float, top_p: float
    ) -> Iterator[tuple[int, str]]:
        """Texts that are drawn, each alone and from its own seed: what else is asked does not change them."""
        model, tokenizer = self.evaluated.model, self.evaluated.tokenizer
        for place, row in enumerate(rows):
            sampler = Sampler(temperature, top_p, zlib.crc32(repr(row).encode()))
            yield place, continue_tokens(model, tokenizer, [row], new, sampler=sampler, stop=stop)[0]


def settings_of(options: dict[str, Any], evaluated: EvaluatedModel) -> tuple[int, list[str], tuple[float, float] | None]:
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
    ends = {evaluated.tokenizer.tokenizer.decode([end], skip_special_tokens=False) for end in evaluated.tokenizer.eos}
    return new, [text for text in until if text and text not in ends], (temperature, top_p) if draws else None


HUB = "hub"
SCROLLS = "tau/scrolls"  # whose loading script the `datasets` library no longer runs
GENERATED = 20  # documents of every length, if not told otherwise
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
Made = tuple[str, int, Any, list[Any], Any]


@dataclass(frozen=True)
class Wanted:
    """What of a task is asked.

    Args:
        count: documents of each part and length, drawn by ``seed``; 0 for all (of a generated one, 20).
        seed: of the documents, of the examples that are shots, and of generated documents.
        data: a folder of data sets; "hub" lets lm-eval download them.
        run_code: whether a task may run what the model wrote.
        shots: examples before each question; None: as many as the task has.
        texts: held-out texts and the domain, of tasks that hide something in them.
    """

    count: int
    seed: int
    data: str
    run_code: bool = False
    shots: int | None = None
    texts: tuple[InMemoryCorpus | Store, str] | None = None


def load_parts(
    name: str, spec: Spec, evaluated: EvaluatedModel, lengths: list[int], asked: Wanted, remarks: list[str]
) -> Iterator[Made]:
    """(domain, length, task, requests, right answer) of every document to be asked. What a reader must know of the data goes into ``remarks``.

    Raises:
        Unavailable: the data set is not there, or the task runs code and may not.
        UserError: see `HarnessTask`.
    """
    manager = one_file(Path(name).expanduser()) if is_task_file(name) else task_files(spec.folder)
    for domain, names in spec.tasks.items():
        for leaf in leaves(manager, names):
            settings = manager.task_index[leaf].cfg or {}
            if settings.get("unsafe_code") and not asked.run_code:
                raise Unavailable(
                    f"{name}: runs programs that the model wrote, with limits but not shut in; run_code=true allows it, on a machine "
                    f"that may be lost"
                )
            long = spec.long or spec.made or bool((settings.get("metadata") or {}).get("long"))
            for length in lengths if spec.made else [None]:
                task = build(manager, leaf, spec, rows_for(name, spec, evaluated, length, asked, settings, remarks))
                made = list(requests_of(name, leaf, task, asked))
                each_length = [length] if length else lengths if long else [max(lengths)]
                yield from ((domain, each, task, *document) for each in each_length for document in made)


@cache
def task_files(folder: str) -> Any:
    """lm-eval's manager of the task files in one of its folders, in ours, or in all ("")."""
    import lm_eval.tasks

    place = Path(__file__).parent / "tasks" if folder == CUSTOM else Path(lm_eval.tasks.__file__).parent / folder
    return manager_of(place)


def one_file(file: Path) -> Any:
    """lm-eval's manager of one task file. It reads every task file below ``include_path``, which may be a whole home: the file is linked to from
    a folder of its own."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "task.yaml").symlink_to(file.resolve())
        manager = manager_of(Path(folder))
    for entry in manager.task_index.values():
        entry.yaml_path = entry.yaml_path and file.resolve()
    return manager


def manager_of(folder: Path) -> Any:
    import lm_eval.tasks

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # what matters is told by us
    return lm_eval.tasks.TaskManager(include_defaults=False, include_path=str(folder))


def leaves(manager: Any, names: tuple[Any, ...]) -> list[str]:
    """Task names; a tag or group becomes the tasks in it. Groups may hold groups, by name or written out."""
    found: list[str] = []
    for name in names:
        if isinstance(name, dict):
            members = name["task"] if isinstance(name["task"], list) else [name["task"]]
            found += leaves(manager, tuple(members))
            continue
        entry = manager.task_index[name]
        inner = (entry.cfg or {}).get("task")
        members = sorted(entry.tags) if entry.kind.name == "TAG" else inner if isinstance(inner, list) else None
        found += [name] if members is None else leaves(manager, tuple(members))
    return found


def build(manager: Any, leaf: str, spec: Spec, rows: dict[str, Any] | None) -> Any:
    """lm-eval's task, on the data set ``rows``; None lets lm-eval read its own."""
    overrides: dict[str, Any] = {"task": leaf}
    if spec.shots is not None:
        overrides["num_fewshot"] = spec.shots
    if rows is not None:
        overrides["custom_dataset"] = lambda **options: rows
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # bars of datasets
            return manager.load({"group": "lit_long", "task": [overrides]})["tasks"][leaf]
    except UserError:
        raise
    except Exception as error:  # of lm-eval, datasets, the hub's client or the task's own code: whatever it is, it is this task's
        raise UserError(f"{leaf}: lm-eval cannot build it: {described(error)}") from error


def rows_for(
    name: str,
    spec: Spec,
    evaluated: EvaluatedModel,
    length: int | None,
    asked: Wanted,
    settings: dict[str, Any],
    remarks: list[str],
) -> dict[str, Any] | None:
    """The task's data set by split: generated, from local files, or None for lm-eval to read what the task file names, or to download."""
    from datasets import Dataset

    data = asked.data
    if spec.made and length is not None:
        evaluated.require(length, name)  # before documents are made in vain
        count, folder = asked.count or GENERATED, data.removeprefix(HUB)
        if asked.texts:
            rows = babilong.documents(name, evaluated, *asked.texts, length, count, asked.seed, folder)
        else:
            rows = ruler.documents(name, evaluated, length, count, asked.seed, folder)
            if len(rows) < count:
                remarks.append(
                    f"{length:,} tokens: lm-eval's generator made {len(rows)} of {count} documents; the others did not fit"
                )
        return {settings.get("test_split", "test"): Dataset.from_list(rows)}
    path, config = settings.get("dataset_path"), settings.get("dataset_name")
    if is_task_file(name) and (settings.get("dataset_kwargs") or "class" in settings or not path or Path(path).exists()):
        return None
    if data == HUB and path != SCROLLS:
        return None
    if data in ("", HUB):
        ways = "data=FOLDER that holds it" + ("" if path == SCROLLS else ", or data=hub to download it")
        raise Unavailable(f"{name}: needs the data set {path}{f' ({config})' if config else ''}: {ways}")
    scored = settings.get("test_split") or settings.get("validation_split")
    shots = settings.get("num_fewshot") if spec.shots is None else spec.shots
    own = (settings.get("fewshot_config") or {}).get("samples")  # examples that come with the task
    examples = (
        next((settings[key] for key in ("fewshot_split", *SPLITS) if settings.get(key)), None) if shots and not own else None
    )
    found = {split: Dataset.from_list(local_rows(data, path, config, split)) for split in {scored, examples} - {None}}
    remarks += filter(
        None, (row_remark(path, config, split, len(rows), split != scored) for split, rows in sorted(found.items()))
    )
    # lm-eval wants every split that a task names, whether or not anything is taken from it.
    return {settings[key]: found.get(settings[key], found[scored]) for key in SPLITS if settings.get(key)}


def requests_of(name: str, leaf: str, task: Any, asked: Wanted) -> Iterator[tuple[list[Any], Any]]:
    """Requests and right answer of each document that is asked."""
    if task.config.num_fewshot and len(getattr(task.sampler, "df", [])) < task.config.num_fewshot:
        raise UserError(f"{leaf}: has {len(task.sampler.df)} examples, and {task.config.num_fewshot} shots are asked for")
    task.set_fewshot_seed(asked.seed)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # lm-eval's bars
            task.build_all_requests(samples=drawn(len(task.eval_docs), asked))
    except Exception as error:  # again whatever a task's own code does with an odd document
        raise UserError(f"{leaf}: lm-eval cannot ask its documents: {described(error)}") from error
    documents: dict[int, list[Any]] = {}
    for request in task.instances:
        documents.setdefault(request.doc_id, []).append(request)
    for number, requests in documents.items():
        yield requests, reference(f"{leaf}, document {number}", task, requests[0].doc)


def drawn(documents: int, asked: Wanted) -> list[int] | None:
    """Which of a task's documents are asked, in their order; None for all."""
    chosen = draw_rows(documents, asked.count, asked.seed)
    return None if len(chosen) == documents else chosen


def reference(where: str, task: Any, doc: dict[str, Any]) -> Any:
    """The right answer. Raises UserError when there is none, which would count as wrong, whatever is answered."""
    target = task.doc_to_target(doc)
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = task.doc_to_choice(doc)
        right = task.doc_to_text(doc) if task.multiple_input else target
        rights = right if isinstance(right, list) else [right]
        good = rights and all(0 <= each < len(choices) if isinstance(each, int) else each in choices for each in rights)
        if not good:
            raise UserError(
                f"{where}: its right answer, {right!r}, is none of its {len(choices)} choices; is it a split without answers?"
            )
        return right
    given = target if isinstance(target, list) else [target]
    if not given or not all(str(each).strip() for each in given):
        raise UserError(f"{where}: its reference is empty, and every answer would count as wrong; is it a split without answers?")
    return target


def described(error: Exception) -> str:
    """The kind of error and its first line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"


AT_ONCE = 64  # documents that are answered before their samples are written
ROUGE, ROUGE_GEO = ("rouge1", "rouge2", "rougeL"), "rouge_geo"


@dataclass(frozen=True)
class Item:
    """One document: lm-eval's task, the document and its requests."""

    task: Any
    requests: list[Any]
    reference: Any


class HarnessTask(Task):
    """A task of lm-eval's by its name in lm_eval_tasks.py, by lm-eval's own, or by the path of a task file.

    Args:
        lengths: of prompts: the most tokens of a data set's, and of a generated one with its answer. lm-eval's generators stop up to 25 units short
            of it (`ruler`), so samples of generated ones have ``prompt_tokens``.

    Raises:
        Unavailable: the data set is not there, or the task runs code and may not.
        UserError: it is damaged or has no right answers, or lm-eval cannot build the task.
    """

    def __init__(self, name: str, evaluated: EvaluatedModel, lengths: list[int], wanted: Wanted) -> None:
        file = read_task_file(name, "tasks") if is_task_file(name) else None
        self.name = file.name if file else name
        self.code = {"code": file_digest(file)} if file else {}
        self.wanted = wanted
        self.spec = SPECS.get(name) or Spec("", {"all": (self.name,)})
        if wanted.shots is not None:
            self.spec = replace(self.spec, shots=wanted.shots)
        self.verified = None if file else name in VERIFIED  # of a user's own task nothing is claimed
        self.items: dict[Key, Item] = {}
        versions, remarks = set(), []
        for domain, length, task, requests, reference in load_parts(name, self.spec, evaluated, lengths, wanted, remarks):
            index = sum(1 for key in self.items if (key.domain, key.length) == (domain, length))
            self.items[Key(domain, length, index)] = Item(task, requests, reference)
            versions.add(str(task.VERSION))
        self.remarks = list(dict.fromkeys(remarks))
        if not self.items:
            raise UserError(f"{name}: its data set has no documents")
        shots = next(iter(self.items.values())).task.config.num_fewshot or 0
        self.shots = self.spec.shots if self.spec.shots is not None else shots
        whose = "of a task file" if file else "lit-long's" if self.spec.folder == CUSTOM else "lm-eval's"
        self.prompt = f"{whose}, version {', '.join(sorted(versions))}; {self.shots} shots"
        self.digest = digest(self.items)

    def settings(self) -> dict[str, Any]:
        return {"data": self.digest, "shots": self.shots, "count": self.wanted.count, "seed": self.wanted.seed} | self.code

    def keys(self) -> list[Key]:
        return list(self.items)

    def measure(self, evaluated: EvaluatedModel, keys: list[Key]) -> Iterator[Sample]:
        longest = None if self.spec.made else keys[0].length
        harness = Harness(evaluated, longest)
        for start in range(0, len(keys), AT_ONCE):
            group = keys[start : start + AT_ONCE]
            cuts = answer(harness, [request for key in group for request in self.items[key].requests])
            for key in group:
                item = self.items[key]
                cut = any(cuts[id(request)] for request in item.requests)
                read = {"prompt_tokens": len(evaluated.tokenizer.encode(item.requests[0].args[0]))} if self.spec.made else {}
                yield key, {"reference": item.reference, "truncated": cut, **read, **scored(self.name, item)}

    def scores(self, samples: list[dict[str, Any]]) -> list[Measurement]:
        rows = []
        for (length,), group in by(samples, "length"):
            domains = [domain for (domain,), _ in by(group, "domain")]
            for domain in dict.fromkeys(["all", *domains]):
                own = [each["metrics"] for each in group if domain in ("all", each["domain"])]
                found = statistics(own)
                for metric, values in found.items():
                    main = metric == (self.spec.metric or (ROUGE_GEO if ROUGE_GEO in found else next(iter(found))))
                    settings = {"shots": self.shots, "verified": self.verified, "main": main}
                    rows.append(Measurement(metric, domain, length, **values, unit="documents", settings=settings))
        return rows


def answer(harness: Harness, requests: list[Any]) -> dict[int, bool]:
    """Give every request its answer; whether each prompt was cut, by the request's id."""
    cuts: dict[int, bool] = {}
    for kind in dict.fromkeys(request.request_type for request in requests):
        own = [request for request in requests if request.request_type == kind]
        before = len(harness.cuts)
        answers = getattr(harness, kind)(own, disable_tqdm=True)  # the evaluation tells its progress itself
        for request, found in zip(own, answers, strict=True):
            request.resps, request.filtered_resps = [found], {}
        # A rolling likelihood has several windows, none of which is cut.
        new = harness.cuts[before:] if kind != "loglikelihood_rolling" else [False] * len(own)
        cuts |= {id(request): cut for request, cut in zip(own, new, strict=True)}
    return cuts


def scored(name: str, item: Item) -> dict[str, Any]:
    """lm-eval's numbers for one answered document, and what was answered. The first of several filters gives its metrics their plain names."""
    metrics: dict[str, float] = {}
    doc = item.requests[0].doc
    for place, pipeline in enumerate(item.task._filters):
        pipeline.apply(item.requests)
        try:
            found = item.task.process_results(doc, [request.filtered_resps[pipeline.name] for request in item.requests])
        except Exception as error:  # whatever the task's own code does with a document of another form
            raise UserError(f"{name}, document {item.requests[0].doc_id}: lm-eval cannot score it: {described(error)}") from error
        for metric, value in found.items():
            if metric.isdigit():  # RULER's are called by lengths, -1 for those that the document does not have
                if int(metric) != doc["max_length"]:
                    continue
                metric = "score"
            if not isinstance(value, int | float) and not hasattr(value, "item"):
                raise UserError(
                    f"{name}: its {metric} is no number of one document, so it cannot be sampled here; run lm-eval itself"
                )
            metrics[metric if not place else f"{metric},{pipeline.name}"] = float(value)
    return {"metrics": metrics, "answers": [request.resps[0] for request in item.requests]}


def statistics(samples: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Value, standard error and interval of every metric; of ROUGE-1, -2 and -L also the geometric mean of their means (SCROLLS)."""
    found = {}
    for metric in samples[0]:
        values = [each[metric] for each in samples]
        found[metric] = share([bool(value) for value in values]) if set(values) <= {0.0, 1.0} else mean(values)
    if set(ROUGE) <= samples[0].keys():
        found[ROUGE_GEO] = geometric([[each[metric] for metric in ROUGE] for each in samples])
    return found


def digest(items: dict[Key, Item]) -> str:
    """Of all requests and right answers."""
    found = hashlib.sha256()
    for key, item in items.items():
        asked = [[request.request_type, repr(request.args)] for request in item.requests]
        found.update(json.dumps([list(key), asked, repr(item.reference)]).encode())
    return found.hexdigest()
