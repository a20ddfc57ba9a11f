"""LoRA through peft: a few trained matrices beside frozen ones (Hu et al. 2022), with LongLoRA's trained embeddings and norms if wanted.

peft is applied from outside to a Llama that has its weights, before anything is sharded. What a stage hands on is merged again, so that no
later stage, evaluation or export knows of adapters; the adapter alone lies beside it, in peft's own format.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lit_long.config import AdapterConfig, OptimConfig, StageConfig, UserError
from lit_long.pretrained import open_pretrained
from lit_long.pretrained.weights import WEIGHTS, whole_state, write_state
from lit_long.training.optimizers import has_one_moment
from lit_long.training.precision import parameter_dtype

ADAPTER, ADAPTER_FILE = "adapter", "adapter_model.safetensors"  # its folder in a training stage's folder, and the tensors in it
PEFT = "base_model.model.model."  # before the names of a Llama's parameters
_NAME = "default"  # peft's name of the only adapter


def add_adapter(model: nn.Module, config: AdapterConfig, seed: int) -> None:
    """Freeze the model, in place, but for an adapter that changes nothing yet. The same for a seed on any number of ranks.

    Raises:
        UserError: peft is not installed.
    """
    if not config.rank:
        return
    peft = import_peft()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(lora_config(config), model)
    if config.train_embeddings_and_norms:
        for name, parameter in model.named_parameters():
            if is_whole(module_of(name)):
                parameter.requires_grad_(True)


def module_of(name: str) -> str:
    """The last name of the module that has a parameter."""
    return name.split(".")[-2]


def is_whole(module: str) -> bool:
    """Whether LongLoRA trains a module as it is: embeddings and norms."""
    return module == "embed_tokens" or module.endswith("norm")


def lora_config(config: AdapterConfig, **more: Any) -> Any:
    """peft's own settings of the adapter."""
    return import_peft().LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=list(config.targets), bias="none", **more
    )


def merge_adapter(state: dict[str, Tensor], config: AdapterConfig) -> dict[str, Tensor]:
    """The plain Llama's weights from those of an adapted one: W + alpha / rank · B A."""
    found = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        if name.endswith(".base_layer.weight"):
            stem = name.removesuffix(".base_layer.weight")
            a, b = (state[f"{stem}.lora_{which}.{_NAME}.weight"] for which in "AB")
            name, tensor = f"{stem}.weight", adapted(tensor, a, b, config)
        name = name.replace(".base_layer.bias", ".bias")
        found[name] = tensor
    return found


def adapted(weight: Tensor, a: Tensor, b: Tensor, config: AdapterConfig) -> Tensor:
    """W + alpha / rank · B A, in fp32, rounded once to the precision of W."""
    return (weight.float() + config.alpha / config.rank * (b.float() @ a.float())).to(weight.dtype)


def save_adapted(model: nn.Module, config: AdapterConfig, folder: Path, base: str, is_writer: bool) -> None:
    """Write the merged weights, and the adapter for ``PeftModel.from_pretrained`` on the model it was trained on.

    Args:
        base: what that model is called, for adapter_config.json.
    """
    state = whole_state(model)
    if not is_writer:
        return
    (folder / ADAPTER).mkdir(exist_ok=True)
    describe_adapter(config, state, base).save_pretrained(folder / ADAPTER)
    save_file(rename_for_peft(state, config), folder / ADAPTER / ADAPTER_FILE)
    write_state(merge_adapter(state, config), folder / WEIGHTS)


def restore_adapted(config: StageConfig, adapter: Path, folder: Path, precision: str) -> None:
    """Write what `save_adapted` wrote of a stage into ``folder`` again, from the pretrained weights that it started from and the adapter.

    Args:
        adapter: the file of trained tensors, as peft names them.
        precision: Lightning's name of that in which the stage was trained; weights were merged in it.

    Raises:
        UserError: pretrained weights that cannot be had, or a tensor that belongs to none of theirs.
    """
    trained = {name.removeprefix(PEFT): tensor for name, tensor in load_file(adapter).items()}
    state = {}
    for name, tensor in open_pretrained(config.model.init).tensors():
        stem, tensor = name.removesuffix(".weight"), tensor.to(parameter_dtype(precision))
        if f"{stem}.lora_A.weight" in trained:
            a, b = (trained.pop(f"{stem}.lora_{which}.weight") for which in "AB")
            tensor = adapted(tensor, a, b, config.adapter)
        state[name] = trained.pop(name, tensor)
    if is_tied(state):
        trained.pop("base_model.model.lm_head.weight", None)  # the embedding, as peft calls it
    if trained:
        raise UserError(
            f"{adapter}: {next(iter(trained))} is of no weight of {config.model.init}; delete {adapter.parent}: then the stage runs"
        )
    (folder / ADAPTER).mkdir(exist_ok=True)
    describe_adapter(config.adapter, state, config.model.init).save_pretrained(folder / ADAPTER)
    shutil.copyfile(adapter, folder / ADAPTER / ADAPTER_FILE)
    write_state(state, folder / WEIGHTS)


def describe_adapter(config: AdapterConfig, names: Collection[str], base: str) -> Any:
    """adapter_config.json, as peft has it, of the adapter of a model with parameters of these names."""
    whole = sorted({module_of(name) for name in names if is_whole(module_of(name))})
    more = {"modules_to_save": whole, "ensure_weight_tying": is_tied(names)} if config.train_embeddings_and_norms else {}
    return lora_config(config, task_type="CAUSAL_LM", base_model_name_or_path=base, **more)


def rename_for_peft(state: dict[str, Tensor], config: AdapterConfig) -> dict[str, Tensor]:
    """The trained tensors, as peft calls them when it adapts transformers' LlamaForCausalLM."""
    trained = {name.replace(f".{_NAME}.weight", ".weight"): tensor for name, tensor in state.items() if ".lora_" in name}
    if config.train_embeddings_and_norms:
        trained |= {name: tensor for name, tensor in state.items() if is_whole(module_of(name))}
    found = {f"{PEFT}{name}": tensor.contiguous() for name, tensor in trained.items()}
    if config.train_embeddings_and_norms and is_tied(state):  # peft wants the head by its name, too
        found["base_model.model.lm_head.weight"] = state["embed_tokens.weight"].clone()
    return found


def is_tied(names: Collection[str]) -> bool:
    return "lm_head.weight" not in names


def count_trained(model: nn.Module, optim: OptimConfig) -> dict[str, int]:
    """For the stage's result: how many parameters were trained, and how many bytes the optimizer's moments took for them."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    moments = [(1 if has_one_moment(name, parameter.ndim, optim) else 2) * parameter.nbytes for name, parameter in trained]
    return {"trained_parameters": sum(parameter.numel() for _, parameter in trained), "optimizer_bytes": sum(moments)}


def import_peft() -> ModuleType:
    try:
        import peft
    except ImportError:
        raise UserError("adapter: needs peft, which is not installed: pip install 'lit-long[lora]'; or adapter=none") from None
    return peft
