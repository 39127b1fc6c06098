"""A .pt or .pth file as a training script saves it: the model's state dict, alone or among other things.

Optimizer and scheduler states are left where they are: in the zip form their storages are mapped and never touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mobile_export.checkpoint.contents import StoredTensor
from mobile_export.checkpoint.torch_file import describe, load_dict
from mobile_export.errors import InputError

SUFFIXES = (".pt", ".pth")
# Under which key the model lies: nanoGPT and FSDP recipes, Lightning, PyTorch's tutorials, DeepSpeed.
WRAPPED = ("model", "state_dict", "model_state_dict", "module")
# What wrappers put before every name: DDP, torch.compile, Lightning Fabric, FSDP, and a Lightning module's `self.model`.
# Families read their names with or without a "model." of their own, so taking that one off as well loses nothing.
PREFIXES = ("module.", "_orig_mod.", "_forward_module.", "_fsdp_wrapped_module.", "model.")
ALONE = "save model.state_dict() alone"


def read_training_file(path: Path) -> tuple[list[StoredTensor], list[str]]:
    """Describe every tensor of the model; two names over one storage share their `storage`.

    Returns:
        The tensors in file order, without what wrappers put before their names, and warnings.
    Raises:
        InputError: as torch_file.load_dict; no state dict is found, or more than one.
    """
    contents, notes = load_dict(path)
    model, rest = _find_model(path, contents)
    prefix = common_prefix(model)
    tensors = [describe(path, name, value, name.removeprefix(prefix)) for name, value in model.items()]
    return tensors, notes + [
        f"{path.name}: {key} holds weights of the same names, which are not used: {ALONE} to export them"
        for key, other in rest.items()
        if isinstance(other, dict) and common_names(other) == common_names(model)
    ]


def _find_model(path: Path, contents: Mapping[Any, Any]) -> tuple[Mapping[str, Any], Mapping[Any, Any]]:
    """The state dict, and what lies beside it."""
    if contents and all(map(_is_tensor, contents.values())):
        return contents, {}
    found = [key for key in WRAPPED if _is_state_dict(contents.get(key))]
    if len(found) == 1:
        return contents[found[0]], {key: value for key, value in contents.items() if key != found[0]}
    if found:
        raise InputError(path.name, f"holds a state dict in {' and in '.join(found)}", ALONE)
    held = ", ".join(sorted(map(str, contents))[:6]) or "nothing"
    raise InputError(path.name, f"holds {held}, and no state dict in {', '.join(WRAPPED[:-1])} or {WRAPPED[-1]}", ALONE)


def common_prefix(names: Iterable[str]) -> str:
    """What wrappers put before every one of these names, longest first; "" where a single name lacks it.

    >>> common_prefix(["module._orig_mod.lm_head.weight", "module._orig_mod.model.norm.weight"])
    'module._orig_mod.'
    """
    left, prefix = list(names), ""
    while left and (found := next((p for p in PREFIXES if all(name.startswith(p) for name in left)), "")):
        prefix += found
        left = [name.removeprefix(found) for name in left]
    return prefix


def common_names(state: Mapping[Any, Any]) -> set[str] | None:
    """The names of a state dict without its wrappers'; None where it is none."""
    if not _is_state_dict(state):
        return None
    prefix = common_prefix(state)
    return {name.removeprefix(prefix) for name in state}


def _is_state_dict(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value) and any(map(_is_tensor, value.values()))


def _is_tensor(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor)
