"""A program's states: updated in their own memory where nobody can tell, and never where somebody could."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types
from hypothesis import given, settings
from hypothesis import strategies as st
from mlprograms import save

from mobile_export.errors import InputError
from mobile_export.verify.mlprogram.in_place import plan_states
from mobile_export.verify.mlprogram.interpreter import Interpreter
from mobile_export.verify.mlprogram.program import Function, Input, Operation, Program
from mobile_export.verify.mlprogram.values import Constant, TensorType

ROWS, COLUMNS = 4, 2
WHOLE, PART = TensorType("float16", (ROWS, COLUMNS)), TensorType("float16", (2, COLUMNS))


# --- from a saved package -------------------------------------------------------------------------------------------


def row_update(x: Any, row: Any, at: Any) -> Any:
    """x with its row `at` replaced."""
    begin = mb.concat(values=[at, np.array([0], np.int32)], axis=0)
    end = mb.concat(values=[mb.add(x=at, y=np.int32(1)), np.array([COLUMNS], np.int32)], axis=0)
    return mb.slice_update(x=x, update=row, begin=begin, end=end)


def cache(row: Any, at: Any, keys: Any) -> Any:
    updated = mb.coreml_update_state(state=keys, value=row_update(mb.read_state(input=keys), row, at))
    return mb.reduce_sum(x=updated, axes=[0], keep_dims=True, name="total")


def old_contents(row: Any, at: Any, keys: Any) -> Any:
    before = mb.read_state(input=keys)
    mb.coreml_update_state(state=keys, value=row_update(before, row, at))
    return mb.reduce_sum(x=before, axes=[0], keep_dims=True, name="total")


def not_written(row: Any, at: Any, keys: Any) -> Any:
    return mb.reduce_sum(x=row_update(mb.read_state(input=keys), row, at), axes=[0], keep_dims=True, name="total")


SPECS = (
    mb.TensorSpec((1, COLUMNS), types.fp16),
    mb.TensorSpec((1,), types.int32),
    mb.StateTensorSpec((ROWS, COLUMNS), types.fp16),
)
# What each gives for rows [1, 2] at 0 and [10, 20] at 2, one call each, and what the state is afterwards.
FILLED = [[1, 2], [0, 0], [10, 20], [0, 0]]
GRAPHS: dict[str, tuple[Callable[..., Any], list[list[float]], Any, int]] = {
    "cache": (cache, [[1, 2], [11, 22]], FILLED, 1),
    "old_contents": (old_contents, [[0, 0], [1, 2]], FILLED, 0),
    "not_written": (not_written, [[1, 2], [10, 20]], [[0, 0]] * 4, 0),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_state_lives_from_call_to_call(name: str, tmp_path: Path) -> None:
    build, totals, after, in_place = GRAPHS[name]
    program = Program.open(save(tmp_path / "states.mlpackage", build, *SPECS))
    main = program.function("main")
    assert dict(main.states) == {"keys": WHOLE}
    assert len(plan_states(main).in_place) == in_place
    interpreter = Interpreter(program)
    state = interpreter.new_state("main")
    memory = state["keys"].data_ptr()
    for row, at, total in zip([[1.0, 2.0], [10.0, 20.0]], [0, 2], totals, strict=True):
        got = interpreter.run("main", {"row": torch.tensor([row]), "at": torch.tensor([at])}, state)
        assert got["total"].tolist() == [total]
    assert state["keys"].tolist() == after
    assert (state["keys"].data_ptr() == memory) == (name != "old_contents")
    assert interpreter.new_state("main")["keys"].tolist() == [[0, 0]] * 4


def test_an_output_is_no_window_into_the_state(tmp_path: Path) -> None:
    def read(row: Any, keys: Any) -> Any:
        return mb.coreml_update_state(state=keys, value=mb.add(x=mb.read_state(input=keys), y=row, name="sum"), name="now")

    program = Program.open(save(tmp_path / "states.mlpackage", read, SPECS[0], SPECS[2]))
    interpreter = Interpreter(program)
    state = interpreter.new_state("main")
    (first,) = interpreter.run("main", {"row": torch.ones(1, COLUMNS)}, state).values()
    interpreter.run("main", {"row": torch.ones(1, COLUMNS)}, state)
    assert first.tolist() == [[1, 1]] * 4
    assert state["keys"].tolist() == [[2, 2]] * 4


def test_float16_rounds_what_is_computed_and_keeps_what_is_moved(tmp_path: Path) -> None:
    program = Program.open(save(tmp_path / "states.mlpackage", cache, *SPECS))
    row, at = torch.tensor([[2049.0, 60000.0]]), torch.tensor([0])
    rounded = Interpreter(program, "float16")
    state = rounded.new_state("main")
    assert rounded.run("main", {"row": row, "at": at}, state)["total"].tolist() == [[2048, 60000]]
    assert state["keys"][0].tolist() == [2048, 60000]  # what is given is rounded, too
    assert rounded.run("main", {"row": row, "at": at + 1}, state)["total"].tolist() == [[4096, float("inf")]]
    exact = Interpreter(program)
    state = exact.new_state("main")
    exact.run("main", {"row": row, "at": at}, state)
    assert exact.run("main", {"row": row, "at": at + 1}, state)["total"].tolist() == [[4098, 120000]]


def test_a_missing_or_wrong_state_is_refused(tmp_path: Path) -> None:
    program = Program.open(save(tmp_path / "states.mlpackage", cache, *SPECS))
    feeds = {"row": torch.ones(1, COLUMNS), "at": torch.tensor([0])}
    with pytest.raises(InputError, match=r"states.mlpackage: main: needs the state keys; make one with new_state$"):
        Interpreter(program).run("main", feeds)
    with pytest.raises(InputError, match=r"main: the state keys is float32\[4, 3\], not float16\[4, 2\]"):
        Interpreter(program).run("main", feeds, {"keys": torch.zeros(4, 3)})


# --- any graph, against a machine that copies everything --------------------------------------------------------------


def corner(at: int) -> dict[str, Any]:
    """Two rows; two such slices may overlap."""
    return {"begin": constant(at, 0), "end": constant(at + 2, COLUMNS)}


def constant(*values: int) -> tuple[Constant]:
    return (Constant(TensorType("int32", (len(values),)), torch.tensor(values, dtype=torch.int32)),)


class Graph:
    """A function in the making."""

    def __init__(self) -> None:
        self.states = {"keys": WHOLE, "values": WHOLE}
        self.shapes = {"x": WHOLE, "part": PART}
        self.operations: list[Operation] = []

    def of(self, shape: TensorType) -> list[str]:
        return [name for name, type_ in self.shapes.items() if type_ == shape]

    def add(self, kind: str, shape: TensorType = WHOLE, **inputs: Any) -> str:
        """Append an operation; gives its value's name."""
        given_inputs = {name: value if isinstance(value, tuple) else (value,) for name, value in inputs.items()}
        if kind == "write_state":
            self.operations.append(Operation(kind, inputs["input"], given_inputs, ()))
            return ""
        name = f"v{len(self.operations)}"
        self.operations.append(Operation(kind, name, given_inputs, ((name, shape),)))
        self.shapes[name] = shape
        return name

    def function(self, *outputs: str) -> Function:
        inputs = tuple(Input(name, self.shapes[name]) for name in ("x", "part"))
        types_ = self.shapes | self.states
        return Function("main", "CoreML8", inputs, self.states, tuple(self.operations), {o: types_[o] for o in outputs}, types_)


@st.composite
def functions(draw: st.DrawFn) -> Function:
    """Some ten operations on two states, in any order that is legal; often what a cache does, and something in between."""
    graph = Graph()

    def any_of(shape: TensorType) -> str:
        return draw(st.sampled_from(graph.of(shape)))

    def somewhere() -> dict[str, Any]:
        return corner(draw(st.integers(0, ROWS - 2)))

    def something() -> None:
        kind = draw(st.sampled_from(["read_state", "write_state", "slice_update", "slice_by_index", "identity", "add"]))
        state = draw(st.sampled_from(list(graph.states)))
        if kind == "read_state":
            graph.add(kind, input=state)
        elif kind == "write_state":
            graph.add(kind, input=state, data=any_of(WHOLE))
        elif kind == "slice_update":
            graph.add(kind, x=any_of(WHOLE), update=any_of(PART), **somewhere())
        elif kind == "slice_by_index":
            graph.add(kind, PART, x=any_of(WHOLE), **somewhere())
        elif kind == "identity":
            graph.add(kind, x=any_of(WHOLE))
        else:
            graph.add(kind, x=any_of(WHOLE), y=any_of(WHOLE))

    for _ in range(draw(st.integers(1, 4))):
        state = draw(st.sampled_from(list(graph.states)))
        value = graph.add("read_state", input=state)
        for _ in range(draw(st.integers(1, 2))):
            if draw(st.booleans()):
                something()
            value = graph.add("slice_update", x=value, update=any_of(PART), **somewhere())
        if draw(st.booleans()):
            something()
        graph.add("write_state", input=state, data=value)
    outputs = draw(st.lists(st.sampled_from(list(graph.shapes)), min_size=1, max_size=4, unique=True))
    return graph.function(*outputs)


def copying(function: Function, feeds: dict[str, np.ndarray], state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a function gives if every operation copies all it touches."""
    values = dict(feeds)
    for operation in function.operations:
        taken = {name: given[0] for name, given in operation.inputs.items()}
        at = taken["begin"].immediate[0] if "begin" in taken else 0
        if operation.type == "read_state":
            values[operation.name] = state[taken["input"]].copy()
        elif operation.type == "write_state":
            state[operation.name] = values[taken["data"]].copy()
        elif operation.type == "slice_update":
            changed = values[taken["x"]].copy()
            changed[at : at + 2] = values[taken["update"]]
            values[operation.name] = changed
        elif operation.type == "slice_by_index":
            values[operation.name] = values[taken["x"]][at : at + 2].copy()
        elif operation.type == "identity":
            values[operation.name] = values[taken["x"]].copy()
        else:
            values[operation.name] = values[taken["x"]] + values[taken["y"]]
    return {name: values[name] for name in function.outputs}


def numbers(values: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: value.tolist() for name, value in values.items()}


def check(function: Function) -> None:
    """Three calls, whose outputs and states must be those of the copying machine."""
    program = Program("p", 9, {"main": function}, "main", {}, {})
    interpreter = Interpreter(program)
    state, expected_state = interpreter.new_state("main"), {name: np.zeros((ROWS, COLUMNS)) for name in function.states}
    given_back = []
    for call in range(3):
        x, part = np.arange(8.0).reshape(ROWS, COLUMNS) + 100 * call, np.array([[1, 2], [3, 4]]) + 0.5 + call
        feeds = {"x": torch.from_numpy(x.copy()), "part": torch.from_numpy(part.copy())}
        got = interpreter.run("main", feeds, state)
        given_back.append((got, numbers(copying(function, {"x": x, "part": part}, expected_state))))
        assert numbers(state) == numbers(expected_state)
        assert np.array_equal(feeds["x"], x)  # what the caller gave is the caller's
    assert [numbers(got) for got, _ in given_back] == [expected for _, expected in given_back]  # and so is what he got


IN_PLACE: list[int] = []


@settings(max_examples=400)
@given(functions())
def check_any(function: Function) -> None:
    IN_PLACE.append(len(plan_states(function).in_place))
    check(function)


def test_nothing_can_be_seen_of_updates_in_place() -> None:
    IN_PLACE.clear()
    check_any()
    assert sum(count > 0 for count in IN_PLACE) > len(IN_PLACE) // 4  # else nothing is done in place, and nothing compared


def cached(graph: Graph, *between: Callable[[str], Any], write: bool = True) -> str:
    """A read, an update, what happens between it and the write, and the write; gives the updated value."""
    read = graph.add("read_state", input="keys")
    update = graph.add("slice_update", x=read, update="part", **corner(1))
    for step in between:
        step(read)
    if write:
        graph.add("write_state", input="keys", data=update)
    return update


def two_updates(graph: Graph) -> str:
    first = graph.add("slice_update", x=graph.add("read_state", input="keys"), update="part", **corner(0))
    second = graph.add("slice_update", x=graph.add("identity", x=first), update="part", **corner(2))
    graph.add("write_state", input="keys", data=second)
    return second


def update_by_itself(graph: Graph) -> str:
    read = graph.add("read_state", input="keys")
    moved = graph.add("slice_by_index", PART, x=read, **corner(0))
    return _written(graph, graph.add("slice_update", x=read, update=moved, **corner(1)))


def slice_of_the_old(graph: Graph) -> str:
    read = graph.add("read_state", input="keys")
    old = graph.add("slice_by_index", PART, x=graph.add("identity", x=read), **corner(1))
    _written(graph, graph.add("slice_update", x=read, update="part", **corner(1)))
    return old


def another_state(graph: Graph) -> str:
    updated = graph.add("slice_update", x=graph.add("read_state", input="keys"), update="part", **corner(1))
    graph.add("write_state", input="values", data=updated)
    return updated


def written_over(graph: Graph) -> str:
    read = graph.add("read_state", input="keys")
    graph.add("write_state", input="keys", data="x")
    return _written(graph, graph.add("slice_update", x=read, update="part", **corner(1)))


def _written(graph: Graph, value: str) -> str:
    graph.add("write_state", input="keys", data=value)
    return value


# name -> (graph, giving its output; how many updates may be done in place)
RULES: dict[str, tuple[Callable[[Graph], str], int]] = {
    "a cache": (cached, 1),
    "two caches in a row": (lambda graph: (cached(graph), cached(graph))[1], 2),
    "two updates, one write": (two_updates, 2),
    "another sum between": (lambda graph: cached(graph, lambda _: graph.add("add", x="x", y="x")), 1),
    "the old contents between": (lambda graph: cached(graph, lambda read: graph.add("add", x="x", y=read)), 0),
    "read again before it is written": (
        lambda graph: (cached(graph, lambda _: graph.add("read_state", input="keys")), "v2")[1],
        0,
    ),
    "another written": (lambda graph: (cached(graph, write=False), graph.add("write_state", input="keys", data="x"))[0], 1),
    "never written": (lambda graph: cached(graph, write=False), 0),
    "written to another state": (another_state, 0),
    "written over before": (written_over, 0),
    "updated by a part of itself": (update_by_itself, 0),
    "a slice of the old contents": (slice_of_the_old, 0),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_of_the_proof(name: str) -> None:
    build, in_place = RULES[name]
    graph = Graph()
    function = graph.function(build(graph))
    assert len(plan_states(function).in_place) == in_place
    check(function)
