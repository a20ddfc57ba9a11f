"""Reading Meta's original files: params.json, and consolidated.00.pth … with one model-parallel part of the model each.

Each part holds some rows of q, k, v, gate, up and head, some columns of o and down, and all of the norms. The embedding is cut by
columns in Llama 2 and by rows since Llama 3. Queries and keys are interleaved, as Meta turns neighbouring components of a head.

params.json leaves things unsaid that are fixed in Meta's code or cards, and these are filled in here: the base of Llama 2 (10,000), the
context of each generation, and the constants of Llama 3.1's scaling. Its factor is 8, but 32 for Llama 3.2's 1B and 3B
(llama-models#166 and #241: Meta's reference code has 8 for them too, by mistake).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_long.config import ModelConfig, UserError
from lit_long.pretrained.base import ForeignWeights, content_digest, deinterleave
from lit_long.pretrained.huggingface import read_json
from lit_long.pretrained.pickles import Pickles
from lit_long.pretrained.rope_config import need, whole

if TYPE_CHECKING:
    from lit_long.tokenizers.tokenizer import ModelTokenizer

NAMES = {"tok_embeddings": "embed_tokens", "norm": "norm", "output": "lm_head"}
LAYER_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
}
BY_COLUMNS = ("self_attn.o_proj", "mlp.down_proj")
FORGOTTEN = "rope.freqs"  # a buffer that Llama 2's files hold; it follows from the settings
KNOWN = {"dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier", "norm_eps", "rope_theta"}
KNOWN |= {"use_scaled_rope", "rope_scaling_factor", "max_batch_size", "max_seq_len"}  # the last two size Meta's cache
LLAMA3_VOCABULARY = 128_000  # at least; Llama 2 and Code Llama have about 32,000
LLAMA32_SHAPES = {(2048, 16), (3072, 28)}  # (dim, n_layers) of the 1B and the 3B


class Meta(ForeignWeights):
    """A folder with a params.json."""

    @cached_property
    def params(self) -> dict[str, Any]:
        where = self.path / "params.json"
        params = {key: value for key, value in read_json(where).items() if value is not None}
        if unknown := sorted(params.keys() - KNOWN):
            raise UserError(
                f"{where}: {unknown[0]}={params[unknown[0]]!r} is not known here and may change what the model computes"
            )
        return params

    @cached_property
    def files(self) -> list[Path]:
        """The parts in order."""
        files = sorted(self.path.glob("consolidated.*.pth"))
        for number in range(max(len(files), 1)):
            if number == len(files) or files[number].name != f"consolidated.{number:02d}.pth":
                raise UserError(f"{self.path / f'consolidated.{number:02d}.pth'}: is missing; copy or download it again")
        return files

    @cached_property
    def shape(self) -> ModelConfig:
        where = str(self.path / "params.json")
        dim, heads = whole(self.params, "dim", where), whole(self.params, "n_heads", where)
        kv_heads, count = whole(self.params, "n_kv_heads", where, heads), len(self.files)
        opened = Pickles(self.files)
        rows = {name: opened.parts(f"{name}.weight")[0].shape for name in ("layers.0.attention.wq", "layers.0.feed_forward.w1")}
        if rows["layers.0.attention.wq"][0] * count != dim:
            raise UserError(
                f"{self.files[-1]}: tensor layers.0.attention.wq.weight has {rows['layers.0.attention.wq'][0]} of the model's {dim} rows, "
                f"and there are {count} consolidated.*.pth: some are missing, or do not belong to {where}"
            )
        part = opened.parts("tok_embeddings.weight")[0].shape
        vocab_size = part[0] * (count if part[1] == dim else 1)  # cut by rows, else by columns
        shape = ModelConfig(
            vocab_size=vocab_size,
            d_model=dim,
            n_layers=whole(self.params, "n_layers", where),
            n_heads=heads,
            n_kv_heads=kv_heads,
            head_dim=dim // heads,
            d_ffn=rows["layers.0.feed_forward.w1"][0] * count,
            norm_eps=need(self.params, "norm_eps", where),
            tie_embeddings=self.is_tied(opened),
            rope_base=self.base(vocab_size),
        )
        shape.context = self.context(shape)
        return shape

    def is_tied(self, opened: Pickles) -> bool:
        """Whether the head is the embedding: absent, or saved a second time (Llama 3.2's 1B and 3B)."""
        if "output.weight" not in opened.names():
            return True
        pairs = zip(opened.parts("tok_embeddings.weight"), opened.parts("output.weight"), strict=True)
        return all(one.shape == other.shape and one[:1].equal(other[:1]) and one.equal(other) for one, other in pairs)

    def base(self, vocab_size: int) -> float:
        if "rope_theta" in self.params:
            return float(self.params["rope_theta"])
        if vocab_size >= LLAMA3_VOCABULARY or self.params.get("use_scaled_rope"):
            raise UserError(f"{self.path / 'params.json'}: rope_theta is missing, and a RoPE base cannot be guessed")
        return 10_000.0

    def context(self, shape: ModelConfig) -> int:
        """Tokens that this generation was trained with."""
        if self.params.get("use_scaled_rope"):
            return 131_072  # Llama 3.1 and 3.2
        if shape.vocab_size >= LLAMA3_VOCABULARY:
            return 8192
        return 4096 if shape.rope_base == 10_000.0 else 16_384  # Llama 2, Code Llama

    @property
    def note(self) -> str:
        if self.shape.context != 4096 or "n_kv_heads" in self.params:  # Llama 1 has none
            return ""
        return f"{self.path / 'params.json'}: may be of Llama 1 or 2; the second's context of 4,096 tokens is taken (model.context=2048 is the first's)"

    @cached_property
    def position(self) -> dict[str, Any]:
        base = self.shape.rope_base
        if not self.params.get("use_scaled_rope"):
            return {"scheme": "rope", "base": base}
        small = (self.shape.d_model, self.shape.n_layers) in LLAMA32_SHAPES
        factor = float(self.params.get("rope_scaling_factor") or (32 if small else 8))
        own = {"factor": factor, "original": 8192, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        return {"scheme": "llama3", "base": base} | own

    @cached_property
    def digest(self) -> str:
        return content_digest(self, self.files)

    @property
    def size(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        shape, opened = self.shape, Pickles(self.files)
        heads = {"self_attn.q_proj": shape.n_heads, "self_attn.k_proj": shape.n_kv_heads, "self_attn.v_proj": shape.n_kv_heads}
        for name in opened.names():
            if name == FORGOTTEN or (name == "output.weight" and shape.tie_embeddings):
                continue
            own, kind = self.own_name(name)
            width = shape.d_ffn if kind == "mlp.down_proj" else shape.d_model
            rows = heads[kind] * shape.head_dim if kind in heads else None
            tensor = merge(kind, opened.parts(name), width, rows)
            if kind in ("self_attn.q_proj", "self_attn.k_proj"):
                tensor = deinterleave(tensor, heads[kind], f"{self.files[0]}: tensor {name}")
            yield own, tensor
            del tensor

    def own_name(self, name: str) -> tuple[str, str]:
        """A tensor's name here, and its kind: the name without layer and ".weight"."""
        parts = name.removesuffix(".weight").split(".")
        if parts[0] == "layers" and ".".join(parts[2:]) in LAYER_NAMES:
            kind = LAYER_NAMES[".".join(parts[2:])]
            return f"layers.{parts[1]}.{kind}.weight", kind
        if len(parts) == 1 and parts[0] in NAMES:
            return f"{NAMES[parts[0]]}.weight", NAMES[parts[0]]
        raise UserError(f"{self.files[0]}: tensor {name} has no place in a Llama (biases, experts and LoRA are not supported)")

    def file_of(self, name: str) -> Path:
        return self.files[0]

    def tokenizer(self) -> ModelTokenizer:
        from lit_long.tokenizers.huggingface import read_tokenizer

        return read_tokenizer(self.path, self.shape.vocab_size)


def merge(kind: str, parts: list[Tensor], width: int, rows: int | None = None) -> Tensor:
    """One tensor from its parts.

    Args:
        width: columns of the whole; tells an embedding that was cut by columns from one cut by rows.
        rows: of the whole, for keys and values, which are repeated when there are more parts than heads.
    """
    if len(parts) == 1 or parts[0].ndim == 1:
        return parts[0]
    if kind in BY_COLUMNS or (kind == "embed_tokens" and parts[0].shape[1] != width):
        return torch.cat(parts, dim=1)
    repeated = sum(part.shape[0] for part in parts) // rows if rows else 1
    return torch.cat(parts[:: max(repeated, 1)])
