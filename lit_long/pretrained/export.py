"""Writing a Hugging Face folder: what transformers 4 and 5, vLLM and the rest load without this suite.

config.json                        shape and positional encoder, in transformers 4's layout and in 5's
model.safetensors, or parts        weights, in parts of 5 GB with an index when there are more
tokenizer.json …                   the tokenizer, its special tokens, the chat template
generation_config.json             ids at which a generation ends
README.md                          the model card: where it comes from

The folder appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from lit_long.config import ModelConfig, UserError
from lit_long.model.llama import Llama
from lit_long.positions import build
from lit_long.pretrained.rope_config import hf_from_position
from lit_long.pretrained.weights import misfit
from lit_long.tokenizers.huggingface import optional
from lit_long.tokenizers.tokenizer import ModelTokenizer, copy_tokenizer, has_state

PART_BYTES = 5 * 10**9
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FAST = "PreTrainedTokenizerFast"
# What belongs to a tokenizer in a Hugging Face folder; taken over as it is when the model's tokenizer came from one.
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "generation_config.json")


def write_huggingface(
    out: Path,
    tensors: Iterable[tuple[str, Tensor]],
    model: ModelConfig,
    position: dict[str, Any],
    context: int,
    words: ModelTokenizer,
    card: str,
    dtype: str = "auto",
    beside: dict[str, str] | None = None,
) -> None:
    """Write the folder ``out``, which must not exist or be empty.

    Args:
        tensors: every parameter of the Llama of shape ``model``, in any order; converted to ``dtype`` (``auto``: kept as they are).
        position: scheme and settings that it is to be used with.
        context: tokens of context it is for.
        beside: further files, text by name.

    Raises:
        UserError: transformers cannot express ``position``, a tensor is missing or does not fit, or ``out`` is in use.
    """
    config = model_config(model, position, context, words)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={out}: is there already and not empty; name another folder or remove it")
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype}: must be one of {', '.join(DTYPES)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    writing = out.with_name(f".{out.name}.{os.getpid()}.writing")
    writing.mkdir()
    try:
        kept = write_weights(writing, checked(tensors, model, DTYPES[dtype]))
        name = str(kept).removeprefix("torch.")
        write_json(writing / "config.json", config | {"torch_dtype": name, "dtype": name})
        write_words(writing, words, context)
        for file, text in {"README.md": card, **(beside or {})}.items():
            (writing / file).write_text(text, encoding="utf-8")
        if out.exists():
            out.rmdir()
        os.replace(writing, out)
    finally:
        shutil.rmtree(writing, ignore_errors=True)


def copy_adapter(stage: Path, out: Path) -> None:
    """Copy the adapter of a finished training stage, in peft's format, to the folder ``out``.

    Raises:
        UserError: the stage has none, or ``out`` is in use.
    """
    source = stage / "adapter"
    if not source.is_dir():
        raise UserError(
            f"{stage}: there is no adapter in it; it was trained without one, or has not ended. Leave out adapter=true"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={out}: is there already and not empty; name another folder or remove it")
    shutil.copytree(source, out, dirs_exist_ok=True)


def model_config(model: ModelConfig, position: dict[str, Any], context: int, words: ModelTokenizer) -> dict[str, Any]:
    """config.json, but for its precision."""
    ends = list(words.eos)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": model.d_ffn,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": model.norm_eps,
        "tie_word_embeddings": model.tie_embeddings,
        "bos_token_id": words.bos,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
    } | hf_from_position(position, model, context)


def checked(tensors: Iterable[tuple[str, Tensor]], model: ModelConfig, dtype: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
    """The tensors under Hugging Face's names, each found to fit, and all of them there."""
    with torch.device("meta"):
        llama = Llama(model, build({"scheme": "nope"}, model.head_dim))
    waiting = {name: tuple(parameter.shape) for name, parameter in llama.named_parameters()}
    for name, tensor in tensors:
        expected, found = {n: s for n, s in waiting.items() if n == name}, {name: tuple(tensor.shape)}
        if expected != found:
            raise UserError(f"the checkpoint does not fit its settings: {misfit(expected, found)}")
        del waiting[name]
        yield (name if name.startswith("lm_head") else f"model.{name}"), tensor.to(dtype or tensor.dtype).contiguous()
    if waiting:
        raise UserError(f"the checkpoint does not fit its settings: {misfit(waiting, {})}")


def write_weights(folder: Path, tensors: Iterator[tuple[str, Tensor]]) -> torch.dtype:
    """Weights in parts, and their index when there are several. Holds one part in memory. Returns the precision of the last."""
    parts: list[dict[str, int]] = []
    held: dict[str, Tensor] = {}
    dtype = torch.float32

    def write() -> None:
        save_file(held, folder / f"part-{len(parts)}", metadata={"format": "pt"})
        parts.append({name: tensor.nbytes for name, tensor in held.items()})
        held.clear()

    for name, tensor in tensors:
        if held and sum(other.nbytes for other in held.values()) + tensor.nbytes > PART_BYTES:
            write()
        held[name], dtype = tensor, tensor.dtype
    write()
    names = ["model.safetensors"]
    if len(parts) > 1:
        names = [f"model-{number + 1:05}-of-{len(parts):05}.safetensors" for number in range(len(parts))]
        weight_map = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
        total = sum(size for part in parts for size in part.values())
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
    for number, name in enumerate(names):
        (folder / f"part-{number}").rename(folder / name)
    return dtype


def write_words(folder: Path, words: ModelTokenizer, context: int) -> None:
    """The tokenizer's files: those it came from if it came from a Hugging Face folder, else made from what is known of it."""
    source, file = Path(words.where), folder / "tokenizer_config.json"
    if (source / "tokenizer.json").is_file() or (source / "tokenizer.model").is_file():
        for each in (each for pattern in TOKENIZER_FILES for each in source.glob(pattern)):
            shutil.copyfile(each, folder / each.name)
        if file.is_file():  # without it transformers takes the class of Llama's own tokenizer
            write_json(file, for_both_versions(optional(file)))
        if (source / "tokenizer.json").is_file() and has_state(source / "tokenizer.json"):
            words.tokenizer.save(str(folder / "tokenizer.json"))
        return
    tokenizer = copy_tokenizer(words.tokenizer)
    if words.add_bos and words.bos is not None:
        bos = words.tokenizer.id_to_token(words.bos)
        tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, words.bos)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = words.special | {
        "tokenizer_class": FAST,
        "add_bos_token": words.add_bos,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    if words.chat_template is not None:
        settings["chat_template"] = words.chat_template
        (folder / "chat_template.jinja").write_text(words.chat_template, encoding="utf-8")
    write_json(file, for_both_versions(settings))
    write_json(folder / "generation_config.json", {"bos_token_id": words.bos, "eos_token_id": list(words.eos) or None})


def for_both_versions(settings: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer_config.json that transformers 4 and 5 read alike.

    Version 4 makes ``token_type_ids``, which a Llama's `generate` refuses, unless told what the model takes; it knows neither version 5's
    name of the class nor its list of further special tokens.
    """
    settings = settings | {"model_input_names": ["input_ids", "attention_mask"]}
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = FAST
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    return settings


def write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
