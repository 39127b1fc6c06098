"""A .pte for ExecuTorch's Core ML backend: its one delegate holds our package in the form that backend unpacks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from executorch.backends.apple.coreml import executorchcoreml
from executorch.exir._serialize._program import deserialize_pte_binary
from exported import CONTEXT, PROMPT, artifact, checkpoint, coreml_file, manifest, weights_of, with_recipe
from tiny_families import written

from mobile_export.audit import audit_artifact
from mobile_export.cli import run
from mobile_export.emit.coreml import delegate as emitter
from mobile_export.errors import InputError
from mobile_export.manifest import read_manifest
from mobile_export.verify.coreml_delegate import delegated_package
from mobile_export.verify.coreml_runtime import CoreMlRuntime, read_program
from mobile_export.verify.float16_numbers import float16_decoder
from mobile_export.verify.parity import error
from mobile_export.verify.reference import reference_logits

CORE_ML = ("--backend", "coreml")
TOKENS = torch.randint(3, 96, (3 * PROMPT + 2,), generator=torch.Generator().manual_seed(2)).tolist()


def delegated(**options: object) -> Path:
    return artifact(checkpoint(**options), *CORE_ML)


def payload_files(payload: bytes, room: Path) -> dict[str, bytes]:
    """What the backend would unpack: relative path -> content."""
    room.mkdir()
    assert executorchcoreml.unflatten_directory_contents(payload, str(room))
    return {str(path.relative_to(room)): path.read_bytes() for path in room.rglob("*") if path.is_file()}


def payload_of(pte: bytes) -> bytes:
    program = deserialize_pte_binary(pte).program
    (delegate,) = program.execution_plan[0].delegates
    assert delegate.id == "CoreMLBackend"
    return bytes(program.backend_delegate_data[delegate.processed.index].data)


@pytest.fixture(scope="session")
def stock_pte() -> bytes:
    """A small stateful program through the stock partitioner, its length from 1 to 8."""
    from mobile_export.emit.coreml.toolchain import coremltools

    ct = coremltools()
    from executorch.backends.apple.coreml.compiler import CoreMLBackend
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from torch.export import Dim, export

    class Stateful(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(96, 16)
            self.register_buffer("kept", torch.zeros(1, 8, 16))

        def forward(self, tokens: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
            x = self.table(tokens)
            self.kept[:, :1] = x[:, :1] + start.float()
            return (x + self.kept[:, :1])[:, -1:]

    example = (torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    program = export(Stateful().eval(), example, dynamic_shapes=({1: Dim("tokens", min=1, max=8)}, {}), strict=False)
    specs = CoreMLBackend.generate_compile_specs(minimum_deployment_target=ct.target.iOS18)
    edge = to_edge_transform_and_lower(program, partitioner=[CoreMLPartitioner(compile_specs=specs, lower_full_graph=True)])
    return edge.to_executorch().buffer


# --- the form ----------------------------------------------------------------------------------------------------------


def test_the_payload_has_the_form_of_the_stock_partitioners(stock_pte, tmp_path):
    ours = (delegated() / "model.pte").read_bytes()
    found, stock = payload_files(payload_of(ours), tmp_path / "a"), payload_files(payload_of(stock_pte), tmp_path / "b")
    needed = {path for path in stock if "debug" not in path}  # those are for profilers
    assert found.keys() == needed
    (metadata,) = (path for path in needed if path.endswith("metadata.json"))
    assert json.loads(found[metadata]).keys() == json.loads(stock[metadata]).keys()
    plans = [deserialize_pte_binary(pte).program.execution_plan[0] for pte in (ours, stock_pte)]
    specs = [{spec.key: bytes(spec.value) for spec in plan.delegates[0].compile_specs} for plan in plans]
    assert specs[0] == specs[1]
    kinds = [[type(step.instr_args).__name__ for step in plan.chains[0].instructions] for plan in plans]
    assert kinds[0] == kinds[1] == ["DelegateCall"]


def test_why_it_is_not_the_stock_partitioner_that_lowers(stock_pte, tmp_path):
    """It takes calls of one token out of the range, and decode is such a call. Fails when it no longer does."""
    stock = payload_files(payload_of(stock_pte), tmp_path / "stock")
    assert smallest_length(stock) == 2
    assert smallest_length(payload_files(payload_of((delegated() / "model.pte").read_bytes()), tmp_path / "ours")) == 1


def smallest_length(files: dict[str, bytes]) -> int:
    from coremltools.proto import Model_pb2

    model = Model_pb2.Model()
    model.ParseFromString(next(content for path, content in files.items() if path.endswith("model.mlmodel")))
    return model.description.input[0].type.multiArrayType.shapeRange.sizeRanges[1].lowerBound


def test_stock_runners_find_their_methods():
    values = manifest(delegated())
    methods = values["pte"]["metadata"]
    assert (methods["get_max_seq_len"], methods["get_max_context_len"], methods["get_eos_ids"]) == (PROMPT, CONTEXT, [2])
    assert methods["use_sdpa_with_kv_cache"] is False
    names = [check["name"] for check in values["verification"]["checks"]]
    assert "metadata methods that differ" in names
    assert values["pte"]["core_ml"]["layout"] == "delegate"
    assert sum(part["bytes"] for part in values["parts"]) == values["files"][0]["bytes"]


def test_the_same_weights_as_the_package_byte_for_byte(tmp_path):
    package = coreml_file(weights_of(checkpoint()), layout="delegate")
    inside = payload_files(payload_of((delegated() / "model.pte").read_bytes()), tmp_path / "inside")
    (weights,) = (content for path, content in inside.items() if path.endswith("weight.bin"))
    assert weights == (package / "Data/com.apple.CoreML/weights/weight.bin").read_bytes()


# --- the numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lfm2", "gpt2-lamini", "gemma3"])
def test_other_families_begin_anew_at_position_0(name):
    """One loaded program, text after text: what the last one left in the states is not seen."""
    folder = artifact(written(name), *CORE_ML, "--recipe", "w8-fast", "--max-context", "48")
    found = read_manifest(folder)
    weights = weights_of(written(name), "w8-fast")
    runtime = CoreMlRuntime(folder / "model.pte", found.package)
    decoder = float16_decoder(weights, 48)
    state = runtime.interpreter.new_state("main")
    for text in (TOKENS, TOKENS[::-1][:11]):
        want = reference_logits(decoder, text)
        for at in range(0, len(text), PROMPT):
            runtime._state = state  # as on a device, where it is made once
            chunk = text[at : at + PROMPT]
            feeds = {"inputIds": torch.tensor([chunk]).int(), "position": torch.tensor([at]).int()}
            got = runtime.interpreter.run("main", feeds, state)["logits"][0, -1]
            assert error(got, want[at + len(chunk) - 1]) <= 1e-4


def test_it_speaks_and_is_audited(capsys):
    capsys.readouterr()
    assert run(["generate", str(delegated()), "the quick", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out.startswith("the quick")
    audit = audit_artifact(delegated() / "model.pte")
    assert audit.clean
    assert len(audit.payloads) > 10
    assert audit.unread == ()


# --- what is wrong with it ---------------------------------------------------------------------------------------------


def test_a_name_the_package_does_not_have_is_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(emitter, "POSITION", "start")
    out = tmp_path / "out"
    sizes = ("--max-context", "32", "--max-prompt", "8")
    assert run(["pte", str(checkpoint()), *CORE_ML, *with_recipe(sizes), "--out", str(out)]) == 3
    assert "the backend is told of" in capsys.readouterr().err
    assert not out.exists()


def test_a_pte_for_another_backend_is_told(tmp_path):
    other = artifact(checkpoint()) / "model.pte"
    with pytest.raises(InputError, match="XnnpackBackend"):
        read_program(other)


@pytest.mark.parametrize("kept", [0, 100, 20_000])
def test_a_truncated_one_is_refused(tmp_path, kept):
    path = tmp_path / "model.pte"
    path.write_bytes((delegated() / "model.pte").read_bytes()[:kept])
    with pytest.raises(InputError) as raised:
        read_program(path)
    assert "\n" not in str(raised.value)


def test_the_unpacked_package_is_gone_afterwards():
    with delegated_package(delegated() / "model.pte") as package:
        assert package.is_dir()
        room = package.parent.parent
    assert not room.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--backend", "qnn"), "--backend qnn: no such backend; write xnnpack or coreml"),
        (("--backend", "coreml", "--attention", "core"), "--attention: the Core ML backend has its own; leave it out"),
        (("--backend", "coreml", "--kv", "int8"), "asks for an int8 cache, and Core ML's states are float16"),
    ],
)
def test_what_does_not_go_together(fails, tmp_path, arguments, said):
    code, line = fails("pte", checkpoint(), "--out", tmp_path / "out", *arguments)
    assert code == 2
    assert said in line
