"""Which updates of a state may be done in its own memory: those whose old contents nobody looks at afterwards.

A cache is read, updated and written back: read_state -> slice_update -> write_state. Done to the letter this copies the
whole cache three times for every layer. An update is safe in place if the graph shows that
1. it updates a state's memory: what read_state gave, or what such an update made of it,
2. no other value that may lie in that memory (a slice of the cache, say) is used after it or is the update itself,
3. before anything reads the state again, or the function ends, the state is written: with the updated memory, or anew.
"""

from __future__ import annotations

from dataclasses import dataclass

from mobile_export.verify.mlprogram.operators import OPERATORS
from mobile_export.verify.mlprogram.program import Function, Operation

READ, WRITE, UPDATE = "read_state", "write_state", "slice_update"
Memory = tuple[str, int]  # a state, and how often it was given other memory before


@dataclass(frozen=True)
class StatePlan:
    """How a function's states are handled."""

    in_place: frozenset[str]  # the values (of slice_update) made in their state's memory
    settled: frozenset[int]  # indices of the operations (write_state) whose value lies in its state's memory already


def plan_states(function: Function) -> StatePlan:
    """Begin with every update and drop those that break a rule until none does: what is left is safe together."""
    chosen = frozenset(operation.name for operation in function.operations if operation.type == UPDATE)
    while True:
        unsafe, settled = _walk(function, chosen)
        if not unsafe:
            return StatePlan(chosen, settled)
        chosen -= unsafe


def _walk(function: Function, chosen: frozenset[str]) -> tuple[frozenset[str], frozenset[int]]:
    """The updates of `chosen` that break a rule if all of them are done in place, and the writes that are settled then."""
    last_use = _last_uses(function)
    current = dict.fromkeys(function.states, 0)
    whole: dict[str, Memory] = {}  # values that are all of a state's memory
    within: dict[str, set[Memory]] = {}  # values that may lie in a state's memory
    pending: dict[Memory, set[str]] = {}  # updates not yet written to their state
    unsafe: set[str] = set()
    settled = set()
    for index, operation in enumerate(function.operations):
        source = _first(operation)
        if operation.type == READ:
            memory = (source, current[source])
            unsafe |= pending.pop(memory, set())
            whole[operation.name], within[operation.name] = memory, {memory}
        elif operation.type == WRITE:
            memory, data = (source, current[source]), operation.inputs["data"][0]
            pending.pop(memory, None)
            if whole.get(str(data)) == memory:
                settled.add(index)
            else:
                current[source] += 1
        elif operation.name in chosen:
            found = whole.get(source)
            if found is None:
                unsafe.add(operation.name)
                continue
            update = str(operation.inputs["update"][0])
            later = any(found in memories and last_use.get(value, -1) > index for value, memories in within.items())
            if later or found in within.get(update, ()):
                unsafe.add(operation.name)
            pending.setdefault(found, set()).add(operation.name)
            whole[operation.name], within[operation.name] = found, {found}
        elif operation.type in OPERATORS and OPERATORS[operation.type].view:
            taken = [str(value) for given in operation.inputs.values() for value in given]
            memories = {memory for value in taken for memory in within.get(value, ())}
            within |= {name: memories for name, _ in operation.outputs if memories}
            if operation.type == "identity" and source in whole:
                whole[operation.name] = whole[source]
    return frozenset(unsafe.union(*pending.values())), frozenset(settled)


def _last_uses(function: Function) -> dict[str, int]:
    """Value -> index of the last operation that takes it; beyond all of them if the function gives it."""
    uses = {value: index for index, op in enumerate(function.operations) for given in op.inputs.values() for value in given}
    return {value: index for value, index in uses.items() if isinstance(value, str)} | dict.fromkeys(
        function.outputs, len(function.operations)
    )


def _first(operation: Operation) -> str:
    """What an operation reads, writes or updates."""
    given = operation.inputs.get("input") or operation.inputs.get("x") or ("",)
    return str(given[0])
