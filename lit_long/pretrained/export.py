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
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from lit_long.config import LayersConfig, ModelConfig, UserError
from lit_long.files import replacing_folder
from lit_long.model.llama import Llama
from lit_long.positions import build
from lit_long.pretrained.families import write_family
from lit_long.pretrained.weights import SafetensorsWriter, fitting
from lit_long.tokenizers.huggingface import optional, tokenizer_files
from lit_long.tokenizers.tokenizer import ModelTokenizer, copy_tokenizer, has_state

PART_BYTES = 5 * 10**9
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FAST = "PreTrainedTokenizerFast"


def write_huggingface(
    out: Path,
    tensors: Iterable[tuple[str, Tensor]],
    model: ModelConfig,
    position: dict[str, Any],
    context: int,
    tokenizer: ModelTokenizer,
    card: str,
    dtype: str = "auto",
    beside: dict[str, str] | None = None,
    layers: LayersConfig | None = None,
) -> None:
    """Write the folder ``out``, which must not exist or be empty.

    Args:
        tensors: every parameter of the Llama of shape ``model``, in any order; converted to ``dtype`` (``auto``: kept as they are).
        position: scheme and settings that it is to be used with.
        context: tokens of context it is for.
        beside: further files, text by name.
        layers: windows, and positions of their own, of layers that differ; complete, as a resolved stage has them.

    Raises:
        UserError: transformers has no class that computes this, or cannot express ``position``; a tensor is missing or does not fit, or ``out`` is in use.
    """
    config = model_config(model, position, context, tokenizer, layers)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={out}: is there already and not empty; name another folder or remove it")
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype}: must be one of {', '.join(DTYPES)}")
    with replacing_folder(out) as folder:
        fill_folder(folder, tensors, model, config, tokenizer, context, {"README.md": card, **(beside or {})}, DTYPES[dtype])


def fill_folder(
    folder: Path,
    tensors: Iterable[tuple[str, Tensor]],
    model: ModelConfig,
    config: dict[str, Any],
    tokenizer: ModelTokenizer | None,
    context: int,
    beside: dict[str, str],
    dtype: torch.dtype | None = None,
    where: Callable[[str], Any] = lambda name: "the checkpoint",
) -> None:
    """Write weights, config.json, the tokenizer if there is one, and the files ``beside`` into ``folder``, one tensor in memory at a time."""
    kept = str(write_weights(folder, fitting(tensors, parameter_shapes(model), where), model, dtype)).removeprefix("torch.")
    write_json(folder / "config.json", config | {"torch_dtype": kept, "dtype": kept})
    if tokenizer is not None:
        write_tokenizer(folder, tokenizer, context)
    for file, text in beside.items():
        (folder / file).write_text(text, encoding="utf-8")


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


def model_config(
    model: ModelConfig,
    position: dict[str, Any],
    context: int,
    tokenizer: ModelTokenizer | None,
    layers: LayersConfig | None = None,
) -> dict[str, Any]:
    """config.json, but for its precision."""
    ends = list(tokenizer.eos) if tokenizer else []
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": model.d_ffn,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "head_dim": model.head_dim,
        "rms_norm_eps": model.norm_eps,
        "tie_word_embeddings": model.tie_embeddings,
        "pad_token_id": None,  # some classes have one of their own, beyond a small vocabulary
        "bos_token_id": tokenizer.bos if tokenizer else None,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
    } | write_family(model, position, context, layers)


def parameter_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a Llama."""
    with torch.device("meta"):
        llama = Llama(model, build({"scheme": "nope"}, model.head_dim))
    return {name: tuple(parameter.shape) for name, parameter in llama.named_parameters()}


def write_weights(
    folder: Path, tensors: Iterator[tuple[str, Tensor]], model: ModelConfig, dtype: torch.dtype | None = None
) -> torch.dtype:
    """Weights under Hugging Face's names, in parts, and their index when there are several. Holds one tensor in memory.

    Args:
        dtype: what they are converted to; None: kept as they are.

    Returns:
        The precision that holds all of them.
    """
    names = [name if name.startswith("lm_head") else f"model.{name}" for name in parameter_shapes(model)]
    parts: list[SafetensorsWriter] = []
    kept: torch.dtype | None = None
    for name, tensor in tensors:
        tensor = tensor.to(dtype or tensor.dtype)
        if not parts or not parts[-1].takes(tensor) or (parts[-1].end and parts[-1].end + tensor.nbytes > PART_BYTES):
            if parts:
                parts[-1].close()
            parts.append(SafetensorsWriter(folder / f"part-{len(parts)}", names))
        parts[-1].add(name if name.startswith("lm_head") else f"model.{name}", tensor)
        kept = torch.promote_types(kept or tensor.dtype, tensor.dtype)
        del tensor
    parts[-1].close()
    files = ["model.safetensors"]
    if len(parts) > 1:
        files = [f"model-{number + 1:05}-of-{len(parts):05}.safetensors" for number in range(len(parts))]
        weight_map = {tensor: file for file, part in zip(files, parts, strict=True) for tensor in part.entries}
        total = sum(part.end for part in parts)
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
    for number, file in enumerate(files):
        (folder / f"part-{number}").rename(folder / file)
    return kept


def write_tokenizer(folder: Path, tokenizer: ModelTokenizer, context: int) -> None:
    """The tokenizer's files: those it came from if it came from a Hugging Face folder, else made from what is known of it."""
    source, file = Path(tokenizer.where), folder / "tokenizer_config.json"
    if (source / "tokenizer.json").is_file() or (source / "tokenizer.model").is_file():
        for each in tokenizer_files(source):
            shutil.copyfile(each, folder / each.name)
        if file.is_file():  # without it transformers takes the class of Llama's own tokenizer
            write_json(file, for_both_versions(optional(file)))
        if (source / "tokenizer.json").is_file() and has_state(source / "tokenizer.json"):
            tokenizer.tokenizer.save(str(folder / "tokenizer.json"))
        return
    copied = copy_tokenizer(tokenizer.tokenizer)
    if tokenizer.add_bos and tokenizer.bos is not None:
        bos = tokenizer.tokenizer.id_to_token(tokenizer.bos)
        copied.post_processor = TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos)]
        )
    copied.save(str(folder / "tokenizer.json"))
    settings = tokenizer.special | {
        "tokenizer_class": FAST,
        "add_bos_token": tokenizer.add_bos,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.chat_template is not None:
        settings["chat_template"] = tokenizer.chat_template
        (folder / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")
    write_json(file, for_both_versions(settings))
    write_json(folder / "generation_config.json", {"bos_token_id": tokenizer.bos, "eos_token_id": list(tokenizer.eos) or None})


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
