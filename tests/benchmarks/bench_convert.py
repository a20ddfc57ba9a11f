"""Converting foreign weights: peak memory beside the largest tensor, and beside transformers' own reading of the same file.

Files of random numbers are made tensor by tensor, in TinyLlama's widths with enough layers for GIGABYTES in fp16: GGUF (F16, and Q4_0, which becomes
fp32), pytorch_model.bin, Meta's in two parts. Each is converted in a process of its own. What a 7B file takes follows from its largest
tensor, as the peak does not grow with the number of layers.

python -m tests.benchmarks.bench_convert [GIGABYTES] [theirs]      needs about 4 × GIGABYTES of disk; theirs: what transformers reads, too
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from lit_long.config import ModelConfig
from lit_long.pretrained.export import model_config, parameter_shapes
from lit_long.pretrained.gguf import BLOCK_NAMES, NAMES
from lit_long.pretrained.meta import LAYER_NAMES
from lit_long.pretrained.meta import NAMES as META_NAMES
from tests.integration.mini import REPOSITORY
from tests.pretrained.gguf_files import tokens_of

MEASURE = """
import json, resource, sys, time
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
import torch
from lit_long.pretrained import export, gguf, meta, open_pretrained, pickles
weights = open_pretrained(sys.argv[1])
if sys.argv[2] == "theirs":
    from pathlib import Path
    from transformers import LlamaForCausalLM
    before, started = peak(), time.perf_counter()
    path = Path(sys.argv[1])
    place, file = (path, None) if path.is_dir() else (path.parent, path.name)
    LlamaForCausalLM.from_pretrained(place, gguf_file=file)
else:
    weights.digest
    before, started = peak(), time.perf_counter()
    weights.convert()
print(json.dumps([before, peak(), time.perf_counter() - started]))
"""


def shape_of(gigabytes: float) -> ModelConfig:
    shape = ModelConfig(vocab_size=32_000, d_model=2048, n_heads=32, n_kv_heads=4, head_dim=64, d_ffn=5632, n_layers=1)
    layer = 2 * sum(int(np.prod(size)) for name, size in parameter_shapes(shape).items() if name.startswith("layers."))
    shape.n_layers = max(1, round(gigabytes * 1e9 / layer))
    return shape


def tensor(size: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(size, dtype=torch.float32).mul_(0.02).half()


def write_gguf(file: Path, shape: ModelConfig, kind: GGMLQuantizationType) -> None:
    writer = GGUFWriter(file, "llama", use_temp_file=True)
    settings = {"block_count": shape.n_layers, "context_length": 2048, "embedding_length": shape.d_model}
    settings |= {
        "feed_forward_length": shape.d_ffn,
        "attention.head_count": shape.n_heads,
        "attention.head_count_kv": shape.n_kv_heads,
    }
    for key, value in settings.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32("llama.rope.freq_base", 10_000.0)
    tokens_of(shape.vocab_size)(writer)
    theirs = {own: name for name, own in (BLOCK_NAMES | NAMES).items()}
    for name, size in parameter_shapes(shape).items():
        stem, number = name.removesuffix(".weight"), ""
        if stem.startswith("layers."):
            _, number, stem = stem.split(".", 2)
        label = f"blk.{number}.{theirs[stem]}.weight" if number else f"{theirs[stem]}.weight"
        numbers = tensor(size).numpy()
        if kind.name == "F16" or len(size) == 1:
            writer.add_tensor(label, numbers if len(size) > 1 else numbers.astype(np.float32))
        else:
            writer.add_tensor(label, quantize(numbers.astype(np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_bin(folder: Path, shape: ModelConfig) -> None:
    folder.mkdir()
    config = model_config(shape, {"scheme": "rope", "base": 10_000.0}, 2048, None)
    (folder / "config.json").write_text(json.dumps(config))
    names = {name: name if name.startswith("lm_head") else f"model.{name}" for name in parameter_shapes(shape)}
    torch.save({names[name]: tensor(size) for name, size in parameter_shapes(shape).items()}, folder / "pytorch_model.bin")


def write_meta(folder: Path, shape: ModelConfig) -> None:
    """Two parts, each with half of the rows, or columns, of every matrix."""
    folder.mkdir()
    theirs = {own: name for name, own in (LAYER_NAMES | META_NAMES).items()}
    for part in range(2):
        content = {}
        for name, size in parameter_shapes(shape).items():
            stem, number = name.removesuffix(".weight"), ""
            if stem.startswith("layers."):
                _, number, stem = stem.split(".", 2)
            by_columns = stem in ("self_attn.o_proj", "mlp.down_proj", "embed_tokens")
            if len(size) > 1:
                size = (size[0], size[1] // 2) if by_columns else (size[0] // 2, size[1])
            content[f"layers.{number}.{theirs[stem]}.weight" if number else f"{theirs[stem]}.weight"] = tensor(size)
        torch.save(content, folder / f"consolidated.{part:02d}.pth")
    params = {"dim": shape.d_model, "n_layers": shape.n_layers, "n_heads": shape.n_heads, "n_kv_heads": shape.n_kv_heads}
    (folder / "params.json").write_text(json.dumps(params | {"norm_eps": 1e-5, "vocab_size": -1}))


def main(words: list[str]) -> None:
    gigabytes = float(next((word for word in words if word != "theirs"), 2.5))
    shape = shape_of(gigabytes)
    makers = {
        "F16.gguf": lambda path: write_gguf(path, shape, GGMLQuantizationType.F16),
        "Q4_0.gguf": lambda path: write_gguf(path, shape, GGMLQuantizationType.Q4_0),
        "bin": lambda path: write_bin(path, shape),
        "meta": lambda path: write_meta(path, shape),
    }
    for name, make in makers.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            pid = os.fork()  # what makes it may take as much memory as it likes
            if not pid:
                make(path)
                os._exit(0)
            os.waitpid(pid, 0)
            size = sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))
            largest = shape.vocab_size * shape.d_model * (4 if name.startswith("Q4") else 2)
            for who in ("ours", "theirs") if "theirs" in words and name != "meta" else ("ours",):
                environment = os.environ | {"LIT_LONG_CACHE": f"{folder}/cache"}
                done = subprocess.run(
                    [sys.executable, "-c", MEASURE, path, who], capture_output=True, text=True, env=environment, cwd=REPOSITORY
                )
                if done.returncode:
                    print(f"{name} {who}: {done.returncode} {done.stderr[-300:]}", flush=True)
                    continue
                before, peak, seconds = json.loads(done.stdout)
                print(
                    f"{name} {who}: {size / 1e6:,.0f} MB on disk, largest tensor {largest / 1e6:,.0f} MB, peak {peak / 1e6:,.0f} MB, of these "
                    f"{(peak - before) / 1e6:,.0f} MB above what imports take ({(peak - before) / largest:.1f} × the largest tensor), {seconds:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main(sys.argv[1:])
