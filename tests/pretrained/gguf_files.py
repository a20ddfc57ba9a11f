"""GGUF files written by the library `gguf` from models of transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from tests.pretrained.test_meta import interleaved

PER_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
MORE = PER_LAYER | {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}  # and biases


def in_llama_cpp_layout(model) -> dict[str, torch.Tensor]:
    """Tensors of a transformers Llama, Qwen2 or Qwen3 under llama.cpp's names; a Llama's queries and keys interleaved."""
    config = model.config
    own = {name: parameter.detach() for name, parameter in model.named_parameters()}
    tensors = {"token_embd": own["model.embed_tokens.weight"], "output_norm": own["model.norm.weight"]}
    if not config.tie_word_embeddings:
        tensors["output"] = own["lm_head.weight"]
    for layer in range(config.num_hidden_layers):
        for theirs, name in PER_LAYER.items():
            weight = own[f"model.layers.{layer}.{name}.weight"]
            if theirs in ("attn_q", "attn_k") and config.model_type == "llama":
                heads = config.num_attention_heads if theirs == "attn_q" else config.num_key_value_heads
                weight = interleaved(weight, heads)
            tensors[f"blk.{layer}.{theirs}"] = weight
    found = {f"{name}.weight": weight for name, weight in tensors.items()}
    short = {
        f"model.layers.{layer}.{name}": f"blk.{layer}.{theirs}"
        for layer in range(config.num_hidden_layers)
        for theirs, name in MORE.items()
    }
    for name, parameter in own.items():
        stem, _, kind = name.rpartition(".")
        if stem in short and f"{short[stem]}.{kind}" not in found:
            found[f"{short[stem]}.{kind}"] = parameter
    return found


def write(model, file: Path, kind: str = "F32", tensors=None, raw=None, without=(), words=None, **more) -> Path:
    """A GGUF file of ``model``, matrices in type ``kind``.

    Args:
        tensors: other tensors, or more of them.
        raw: bytes [rows, bytes of a row] and type of matrices in the place of the model's, by name.
        without: settings that are left out.
        words: a function that adds a tokenizer to the writer.
        more: settings of the architecture, dots as double underscores.
    """
    config, writer = model.config, GGUFWriter(file, model.config.model_type)
    settings = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_parameters["rope_theta"],
    }
    if head_dim := getattr(config, "head_dim", None):
        settings |= {"rope.dimension_count": head_dim}
    if config.model_type == "qwen3":
        settings |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    for key, value in (settings | {key.replace("__", "."): value for key, value in more.items()}).items():
        kinds = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, bool: writer.add_bool}
        add = (kinds | {list: writer.add_array})[type(value)]
        if key not in without:
            add(f"{config.model_type}.{key}", value)
    if words:
        words(writer)
    for name, tensor in (in_llama_cpp_layout(model) | (tensors or {})).items():
        if raw and name in raw:
            writer.add_tensor(name, raw[name][0], raw_dtype=raw[name][1])
        elif tensor is not None:
            add_tensor(writer, name, tensor, kind if tensor.ndim > 1 else "F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def add_tensor(writer: GGUFWriter, name: str, tensor: torch.Tensor, kind: str) -> None:
    numbers, kind = np.ascontiguousarray(tensor.float().numpy()), GGMLQuantizationType[kind]
    if kind.name in ("F32", "F16"):
        writer.add_tensor(name, numbers.astype(np.float16 if kind.name == "F16" else np.float32))
    else:
        writer.add_tensor(name, quantize(numbers, kind), raw_dtype=kind)


def tokens_of(count):
    """Adds a tokenizer of ``count`` numbers, for `write`."""

    def add(writer):
        writer.add_tokenizer_model("llama")
        writer.add_token_list(["<unk>", "<s>", "</s>", *(f"▁{number}" for number in range(count - 3))])
        writer.add_token_scores([0.0] * count)
        writer.add_token_types([2, 3, 3] + [1] * (count - 3))
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)

    return add
