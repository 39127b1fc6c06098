"""Lower one piece to one XNNPACK delegate, once per shape, and instantiate it for every block of that shape.

A delegate's payload names its constants by SHA-256 of their bytes and holds none of them. So the payload of another
block of the same shape is the same bytes with other names, and lowering it would only compute the same thing again
(a test compares the two). The template is lowered with random weights, so that no two of its constants are equal and
every name in it belongs to exactly one of them.

Constants of elementwise operators (a norm's weight) stay outside of a delegate, as the stock partitioner leaves them, and
are arguments of its calls: XNNPACK reads them where they lie, and with its weight cache on frees what lies in a delegate
once it is packed.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from executorch.exir._serialize._named_data_store import NamedDataStore
from executorch.exir.backend.compile_spec_schema import CompileSpec
from executorch.exir.lowered_backend_module import LoweredBackendModule
from torch import nn
from torch.export import Dim, ExportedProgram, export

from mobile_export.emit.executorch.pieces import Constant, Weight, constants_of, random_weight, torchao_weight
from mobile_export.quantize.clip_search import QuantizedWeight
from mobile_export.quantize.recipe import Precision

ALIGNMENT = 16  # of a named constant, as XNNPACK's serializer asks
Shape = tuple[int, ...]
EDGE = EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True)


@dataclass(frozen=True)
class Order:
    """A delegate takes and gives in an order of its own.

    inputs: for each argument of the delegate, which argument of the piece it is, or the name of the piece's constant it is.
    outputs: for each result of the piece, which result of the delegate it is.
    """

    inputs: tuple[int | str, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """One payload a template's delegate looks up by name. data: None where it was random and every instance has its own."""

    key: str
    alignment: int
    data: bytes | None


@dataclass(frozen=True)
class Template:
    """A piece lowered with random weights, and these forgotten again.

    backend_id, payload, compile_specs: the delegate's; the payload names the random constants.
    stored: what the payload looks up, in the order it was stored.
    constants: for each weight in the payload the names of its random constants, in the order `constants_of` gives them.
    outside: the constants that are arguments of its calls; those that are weights of the piece with random values.
    order: how the delegate's arguments and results stand to the piece's.
    program: a stand-in with the same signature. Tracing the outer graph evaluates a delegate's program each time, and
        evaluating the real one for every execution took 30 of 45 seconds.
    """

    backend_id: str
    payload: bytes
    compile_specs: list[CompileSpec]
    stored: tuple[Stored, ...]
    constants: Mapping[str, tuple[str, ...]]
    outside: Mapping[str, torch.Tensor]
    order: Order
    program: ExportedProgram


class ShapeOnly(nn.Module):
    """Takes a delegate's arguments, gives tensors of its results' shapes, computes nothing.

    tokens: which argument it takes the number of tokens from.
    """

    def __init__(self, shapes: Sequence[Shape], tokens: int) -> None:
        super().__init__()
        self.shapes, self.tokens = shapes, tokens

    def forward(self, *arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        taken = arguments[self.tokens]
        return tuple(taken.new_zeros(1, taken.shape[1], *shape) for shape in self.shapes)


class Delegated(nn.Module):
    """A lowered piece in the place of the module it was made from: its arguments and results in that module's order.

    outside: the constants it passes to its delegate, by name; kept as buffers.
    """

    def __init__(self, lowered: LoweredBackendModule, order: Order, outside: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.lowered, self.order = lowered, order
        for name, value in outside.items():
            self.register_buffer(_flat(name), value)

    def forward(self, *arguments: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        inputs = self.order.inputs
        results = self.lowered(*(self.get_buffer(_flat(i)) if isinstance(i, str) else arguments[i] for i in inputs))
        ordered = tuple(results[i] for i in self.order.outputs)
        return ordered if len(ordered) > 1 else ordered[0]


def lower_template(
    piece: nn.Module,
    precisions: Mapping[str, Precision],
    takes: Sequence[Shape],
    gives: Sequence[Shape],
    max_prompt: int,
) -> Template:
    """Lower a piece with random weights of the given precisions.

    Args:
        piece: on the meta device or not; its weights are replaced. Norms already in product form.
        precisions: weight name within the piece -> precision, for its matrices.
        takes, gives: for each input and output its shape after [1, T], all float32.
        max_prompt: largest T.
    Raises:
        AssertionError: the piece did not become exactly one delegate. Ours to mend, never the user's.
    """
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, Weight] = {}
    for name, parameter in list(piece.named_parameters()):
        if name in precisions and precisions[name].bits < 32:
            weights[name] = random_weight(parameter.shape, precisions[name], generator)
        else:
            weights[name] = torch.rand(parameter.shape, generator=generator) + 0.5
        put_weight(piece, name, weights[name])
    lowered, order = lower(piece, takes, max_prompt)
    held = dict(piece.named_parameters()) | dict(piece.named_buffers())
    outside = {name: held[name].detach() for name in order.inputs if isinstance(name, str)}
    inside = {name: weight for name, weight in weights.items() if name not in outside}
    constants = {name: tuple(constant.key for constant in constants_of(weight)) for name, weight in inside.items()}
    _check_all_named(lowered, constants)
    named, random = lowered.named_data_store_output, {key for keys in constants.values() for key in keys}
    stored = tuple(
        Stored(key, entry.alignment, None if key in random else named.buffers[entry.buffer_index])
        for key, entry in named.pte_data.items()
    )
    stand_in = _stand_in(order, takes, gives, outside, max_prompt)
    return Template(
        lowered.backend_id, lowered.processed_bytes, lowered.compile_specs, stored, constants, outside, order, stand_in
    )


def lower(piece: nn.Module, takes: Sequence[Shape], max_prompt: int) -> tuple[LoweredBackendModule, Order]:
    """The stock lowering of one piece: the delegate, and the order in which it takes the piece's arguments and constants."""
    inputs, shapes = _example(takes, max_prompt)
    program = export(piece, inputs, dynamic_shapes=_as_taken(piece, shapes), strict=False)
    signature = program.graph_signature
    source: dict[str, int | str] = {name: i for i, name in enumerate(signature.user_inputs)}
    source.update(signature.inputs_to_parameters | signature.inputs_to_buffers)
    edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()], compile_config=EDGE)
    graph = edge.exported_program().graph_module
    lowered = [getattr(graph, name) for name, _ in graph.named_children() if name.startswith("lowered_module")]
    calls = [node for node in graph.graph.nodes if node.op == "call_function" and node.target is not operator.getitem]
    outside = [str(node.target) for node in calls if "executorch_call_delegate" not in str(node.target)]
    assert len(lowered) == 1, f"{type(piece).__name__}: {len(lowered)} delegates"
    assert not outside, f"{type(piece).__name__}: left outside its delegate: {outside}"
    taken = lowered[0].original_module.graph_signature.user_inputs
    given = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    return lowered[0], Order(tuple(source[name] for name in taken), tuple(node.args[1] for node in given))


def instantiate(template: Template, constants: Mapping[str, tuple[Constant, ...]]) -> Delegated:
    """The template's delegate for another block: the same payload, with this block's constants under their own names.

    Args:
        constants: for each weight of the piece what `constants_of` gives.
    """
    payload, store = template.payload, NamedDataStore()
    own: dict[str, Constant] = {}
    for name, old in template.constants.items():
        for key, constant in zip(old, constants[name], strict=True):
            payload = payload.replace(key.encode(), constant.key.encode())
            own[key] = constant
    for stored in template.stored:
        constant = own[stored.key] if stored.data is None else Constant(stored.key, stored.data)
        store.add_named_data(constant.key, constant.data, alignment=stored.alignment)
    lowered = LoweredBackendModule(
        edge_program=template.program,
        backend_id=template.backend_id,
        processed_bytes=payload,
        compile_specs=template.compile_specs,
        named_data_store_output=store.get_named_data_store_output(),
    )
    outside = dict(template.outside)
    for name in outside.keys() & constants.keys():
        (constant,) = constants[name]
        outside[name] = torch.frombuffer(bytearray(constant.data), dtype=torch.float32).view(outside[name].shape)
    return Delegated(lowered, template.order, outside)


def put_weight(piece: nn.Module, name: str, weight: Weight) -> None:
    """Give a piece's parameter a value, quantized or not."""
    owner, _, attribute = name.rpartition(".")
    value = torchao_weight(weight) if isinstance(weight, QuantizedWeight) else weight
    setattr(piece.get_submodule(owner), attribute, nn.Parameter(value, requires_grad=False))


def _check_all_named(lowered: LoweredBackendModule, constants: Mapping[str, tuple[str, ...]]) -> None:
    """Each of the template's constants is stored under our name for it, and named once in the payload."""
    stored = lowered.named_data_store_output.pte_data
    for name, keys in constants.items():
        for key in keys:
            assert key in stored, f"{name}: XNNPACK stored it in another form than ours"
            assert lowered.processed_bytes.count(key.encode()) == 1, f"{name}: named more than once"


def _flat(name: str) -> str:
    """A constant's name as a module takes it for a buffer's."""
    return name.replace(".", "_")


def _stand_in(
    order: Order, takes: Sequence[Shape], gives: Sequence[Shape], outside: Mapping[str, torch.Tensor], max_prompt: int
) -> ExportedProgram:
    """A program of a delegate's signature."""
    examples, shapes = _example(takes, max_prompt)
    inputs = tuple(outside[i] if isinstance(i, str) else examples[i] for i in order.inputs)
    dynamic = tuple({} if isinstance(i, str) else shapes[i] for i in order.inputs)
    tokens = next(at for at, i in enumerate(order.inputs) if not isinstance(i, str))
    given = [gives[order.outputs.index(i)] for i in range(len(gives))]
    return export(ShapeOnly(given, tokens), inputs, dynamic_shapes=(dynamic,), strict=False)


def _as_taken(piece: nn.Module, shapes: tuple[dict[int, Dim], ...]) -> tuple[object, ...]:
    """Dynamic shapes as export wants them for a piece's signature: those of a variadic argument in a tuple of their own."""
    kinds = [parameter.kind for parameter in inspect.signature(piece.forward).parameters.values()]
    named = len(kinds) - 1
    return (*shapes[:named], shapes[named:]) if inspect.Parameter.VAR_POSITIONAL in kinds else shapes


def _example(takes: Sequence[Shape], max_prompt: int) -> tuple[tuple[torch.Tensor, ...], tuple[dict[int, Dim], ...]]:
    """Example inputs, different tensors (export folds one tensor passed twice into one input), and their dynamic shapes."""
    length = min(3, max_prompt)
    inputs = tuple(torch.full((1, length, *shape), float(i)) for i, shape in enumerate(takes))
    dynamic: dict[int, Dim] = {1: Dim("tokens", min=1, max=max_prompt)} if max_prompt > 1 else {}
    return inputs, tuple(dict(dynamic) for _ in takes)
