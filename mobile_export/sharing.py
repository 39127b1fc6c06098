"""Step 3, share: spec + tensors -> SharingPlan: which blocks are stored, in which order they run, is the head tied.

Decided from the tensors first, from the config's flags next; `--schedule` overrides both. Every decision carries its
evidence, and a disagreement becomes a warning that names both sides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from mobile_export.checkpoint.contents import Checkpoint, StoredTensor
from mobile_export.errors import UsageError
from mobile_export.families.spec import Recognised, WeightSource
from mobile_export.units import counted

ORDERS = ("immediate", "repeat-all-over", "reverse")
SAMPLES = 256  # stored bytes hashed per tensor before a full comparison is worth its reads


@dataclass(frozen=True)
class SharingPlan:
    """What is stored once, and the order it runs in.

    blocks: for each stored block its number in the checkpoint, ascending.
    schedule: for each execution the index into `blocks`; one KV slot per execution.
    order: "none", "immediate", "repeat-all-over", "reverse" or "arbitrary".
    tied: the head multiplies with the embedding table.
    tied_evidence, schedule_evidence: why, in words.
    warnings: disagreements, one line each.
    """

    blocks: tuple[int, ...]
    schedule: tuple[int, ...]
    order: str
    tied: bool
    tied_evidence: str
    schedule_evidence: str
    warnings: tuple[str, ...]


def plan_sharing(checkpoint: Checkpoint, recognised: Recognised, schedule: str | None = None) -> SharingPlan:
    """Find what a checkpoint shares.

    Args:
        schedule: None to go by the evidence; "none", one of ORDERS (each stored block twice), or block numbers
            such as "0,0,1,1".
    Raises:
        InputError: block sharing in the file and a head that cannot be read.
        UsageError: a schedule that names no order, or a block the file does not have, or leaves one out.
    """
    warnings: list[str] = []
    tied, tied_evidence = _decide_tie(checkpoint.tensors, recognised, warnings)
    blocks, order_of_file, evidence = _find_equal_blocks(checkpoint.tensors, recognised, warnings)
    run = order_of_file
    flags = recognised.flags
    if flags.repeats > 1:
        if len(blocks) < len(order_of_file):
            warnings.append(
                f"{flags.repeats_flag}, and the file repeats blocks itself ({name_order(order_of_file)}): "
                "the file's order is used; obeying both would run each block four times"
            )
        else:
            run = tuple(i for i in range(len(blocks)) for _ in range(flags.repeats))
            evidence = flags.repeats_flag
    if schedule is not None:
        asked = parse_schedule(schedule, len(blocks))
        if len(run) > len(blocks) and asked != run:
            warnings.append(
                f"--schedule {schedule} overrides {name_order(run)}, which {evidence} says: "
                "the result computes something other than what was trained unless you know better"
            )
        run, evidence = asked, f"--schedule {schedule}"
    return SharingPlan(blocks, run, name_order(run), tied, tied_evidence, evidence, tuple(warnings))


def name_order(schedule: tuple[int, ...]) -> str:
    """The sharing order a schedule follows; with one stored block the three coincide, and it is "immediate".

    >>> [name_order(s) for s in ((0, 1), (0, 0, 1, 1), (0, 1, 0, 1), (0, 1, 1, 0), (0, 1, 1), (0, 0))]
    ['none', 'immediate', 'repeat-all-over', 'reverse', 'arbitrary', 'immediate']
    """
    stored = max(schedule) + 1
    if schedule == tuple(range(stored)):
        return "none"
    if len(schedule) % stored == 0:
        for order in ORDERS:
            if schedule == order_blocks(order, stored, len(schedule) // stored):
                return order
    return "arbitrary"


def order_blocks(order: str, stored: int, repeats: int = 2) -> tuple[int, ...]:
    """The schedule of `stored` blocks run `repeats` times each in one of ORDERS.

    Source: MobileLLM (arXiv:2402.14905), section 2.3, figure 6.

    >>> order_blocks("reverse", 3)
    (0, 1, 2, 2, 1, 0)
    """
    forth = tuple(range(stored))
    if order == "immediate":
        return tuple(i for i in forth for _ in range(repeats))
    if order == "repeat-all-over":
        return forth * repeats
    return tuple(i for lap in range(repeats) for i in (forth if lap % 2 == 0 else forth[::-1]))


def parse_schedule(text: str, stored: int) -> tuple[int, ...]:
    """Read --schedule for a checkpoint that stores `stored` blocks.

    Raises:
        UsageError: not an order, not block numbers, a number out of range, or a stored block that never runs.
    """
    where = f"--schedule {text}"
    if text == "none":
        return tuple(range(stored))
    if text in ORDERS:
        return order_blocks(text, stored)
    try:
        schedule = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            where, "neither an order nor block numbers", f"write one of none, {', '.join(ORDERS)}, or 0,0,1,1"
        ) from None
    beyond = [i for i in schedule if not 0 <= i < stored]
    if beyond:
        raise UsageError(where, f"block {beyond[0]} does not exist", f"the checkpoint stores blocks 0 to {stored - 1}")
    unused = sorted(set(range(stored)) - set(schedule))
    if unused:
        raise UsageError(where, f"block {unused[0]} never runs", "name every stored block at least once")
    return schedule


def _decide_tie(tensors: Mapping[str, StoredTensor], recognised: Recognised, warnings: list[str]) -> tuple[bool, str]:
    flag = recognised.flags.tied
    said = flag[0] if flag else ""
    if "head.linear.weight" not in recognised.weights:
        if flag and not flag[1]:
            mobilellm = " (so MobileLLM saves it; one trained with layer sharing needs --schedule immediate besides)"
            hint = mobilellm if recognised.spec.family in ("llama", "mobilellm") else ""
            warnings.append(f"{said}, but the file holds no head tensor: the embedding serves as the head{hint}")
        return True, "no head tensor in the file"
    embedding = tensors[recognised.weights["embedding.weight"].tensors[0]]
    head = tensors[recognised.weights["head.linear.weight"].tensors[0]]
    same = _same(head, embedding)
    if not recognised.flags.head_is_built:
        if not same:
            warnings.append(
                f"{said}, but {head.name} differs from the embedding: the released code builds no head, "
                "so the stored one is ignored"
            )
        return True, said
    if same:
        if flag and not flag[1]:
            warnings.append(f"{said}, but {head.name} equals the embedding: stored once")
        return True, f"{head.name} {same}"
    if flag and flag[1]:
        warnings.append(f"{said}, but {head.name} differs from the embedding: both are kept")
    return False, f"{head.name} differs from the embedding"


def _find_equal_blocks(
    tensors: Mapping[str, StoredTensor], recognised: Recognised, warnings: list[str]
) -> tuple[tuple[int, ...], tuple[int, ...], str]:
    """Stored blocks, the file's order over them, and the evidence."""
    kinds = recognised.kinds
    parts = [_block(tensors, recognised.weights, i) for i in range(len(kinds))]
    samples = {tensor.name: _sample(tensor) for block in parts for tensor in block.values()}
    stored: list[int] = []
    order: list[int] = []
    ways: set[str] = set()
    partly: dict[tuple[int, int], str] = {}
    for i, block in enumerate(parts):
        matrices = [name for name, tensor in block.items() if len(tensor.shape) > 1]
        for position, j in enumerate(stored):
            if kinds[i] != kinds[j] or block.keys() != parts[j].keys():
                continue  # equal numbers in another window or without a rotation are another block
            alike = [name for name in block if samples[block[name].name] == samples[parts[j][name].name]]
            matches = {name: way for name in alike if (way := _same(block[name], parts[j][name]))}
            if len(matches) == len(block):
                ways.update(matches.values())
                order.append(position)
                break
            if equal := sum(name in matches for name in matrices):
                partly[j, i] = f"{equal} of {len(matrices)}"
        else:
            order.append(len(stored))
            stored.append(i)
    if partly:
        (j, i), share = next(iter(partly.items()))
        more = f" (and {counted(len(partly) - 1, 'more pair')})" if len(partly) > 1 else ""
        warnings.append(f"blocks {j} and {i} share {share} matrices{more}: not one block, so each is stored whole")
    evidence = f"repeated blocks: {', '.join(sorted(ways))}" if ways else "all blocks differ"
    return tuple(stored), tuple(order), evidence


def _block(tensors: Mapping[str, StoredTensor], weights: Mapping[str, WeightSource], index: int) -> dict[str, StoredTensor]:
    """Every tensor of a block once, by the first place of the graph that takes anything of it."""
    prefix = f"blocks.{index}."
    places: dict[str, str] = {}
    for name, source in weights.items():
        if name.startswith(prefix):
            for part, tensor in enumerate(source.tensors):
                places.setdefault(tensor, f"{name.removeprefix(prefix)}/{part}")
    return {place: tensors[tensor] for tensor, place in places.items()}


def _same(a: StoredTensor, b: StoredTensor) -> str:
    """How two tensors are known to be equal, or "" if they are not; reads as little as it can."""
    if a.storage == b.storage:
        return "named in the safetensors metadata" if a.alias_of or b.alias_of else "same storage"
    if a.shape != b.shape or a.dtype != b.dtype or _sample(a) != _sample(b):
        return ""
    return "equal values" if bool((a.raw() == b.raw()).all()) else ""


def _sample(tensor: StoredTensor) -> bytes:
    """A hash of a few stored bytes: tensors that differ in it differ, and nothing else of them need be read."""
    raw = tensor.raw()
    picked = raw[:: max(1, raw.numel() // SAMPLES)][:SAMPLES]
    return hashlib.blake2b(picked.numpy().tobytes(), digest_size=16).digest()
