"""manifest.json: what is written reads back, and what cannot be read says so in one line."""

import dataclasses
import json

import onnx
import pytest

from mobile_export.cli import run
from mobile_export.errors import InputError
from mobile_export.manifest import (
    NAME,
    SCHEMA_VERSION,
    CalibrationFacts,
    Chat,
    FileDigest,
    KvCacheSize,
    Manifest,
    OnnxGraph,
    Part,
    PteGraph,
    Verified,
    VerifiedCheck,
    read_manifest,
    to_json,
)

AGAIN = "export the artifact again"
MANIFEST = Manifest(
    schema_version=SCHEMA_VERSION,
    tool="mobile-export 0.1.0",
    format="pte",
    files=[FileDigest("model.pte", 1_000_000, "ab" * 32)],
    source="modèle",
    source_files=[FileDigest("model.safetensors", 3_000_000, "cd" * 32)],
    licence=None,
    spec={"family": "llama", "rope": {"inverse_frequencies": [1.0, 0.1]}},
    sharing={
        "blocks": [0, 1],
        "schedule": [0, 0, 1, 1],
        "order": "immediate",
        "schedule_evidence": "layer_sharing: true",
        "tied": True,
        "tied_evidence": "no head tensor in the file",
    },
    recipe={"name": "w4"},
    requested_schedule=None,
    max_context=256,
    stored_parameters=80_192,
    executed_parameters=160_320,
    bits_per_weight=4.5,
    parts=[Part("blocks", 900_000, 899_000), Part("graph", 100_000, None)],
    kv_cache=KvCacheSize("float32", 4, [256] * 4, 1024, 262_144, 0),
    matrices={"embedding.weight": "8-bit, per channel", "blocks.0.ffn.o.weight": "4-bit, group 32"},
    pte=PteGraph(128, "custom", {"aten.embedding.default": 1}, 3, 9, {"get_max_context_len": 256, "get_eos_ids": [2]}),
    onnx=None,
    coreml=None,
    tokenizer_files=["tokenizer.json"],
    bos_id=1,
    adds_bos=True,
    eos_ids=[2],
    chat=Chat("<s>", ("<s>[", "]"), (">", "\n"), ">"),
    versions={"torch": "2.13.0"},
    warnings=["one"],
    verification=Verified(
        oracle="transformers in float32",
        passed=True,
        checks=[VerifiedCheck("prefill", 1e-7, 1e-4, "float32 sums in another order", True)],
    ),
    calibration=CalibrationFacts("notes.txt", 512, "ef" * 32, ["embedding.weight"]),
)

ONNX = dataclasses.replace(
    MANIFEST,
    format="onnx",
    files=[FileDigest("model.onnx", 1_000, "ab" * 32), FileDigest("model.onnx.data", 999_000, "cd" * 32)],
    pte=None,
    onnx=OnnxGraph("float32", False, False, {"MatMulNBits": 11}, "1.24", "1.28", True),
)


@pytest.fixture
def artifact(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "model.pte").write_bytes(b"pte")
    (folder / NAME).write_text(to_json(MANIFEST), encoding="utf-8")
    return folder


def refusal(path):
    with pytest.raises(InputError) as error:
        read_manifest(path)
    assert error.value.exit_code == 3
    line = str(error.value)
    assert "\n" not in line
    return line


def change(artifact, **changes):
    values = json.loads((artifact / NAME).read_text()) | changes
    (artifact / NAME).write_text(json.dumps(values))
    return artifact


@pytest.mark.parametrize(
    "manifest",
    [
        MANIFEST,
        ONNX,
        dataclasses.replace(
            MANIFEST, chat=None, verification=None, calibration=None, bos_id=None, licence="MIT", requested_schedule="0,1,1"
        ),
    ],
)
@pytest.mark.parametrize("named", ["out", "out/model.pte"])
def test_what_is_written_reads_back_from_the_folder_and_from_the_file(artifact, tmp_path, manifest, named):
    (artifact / NAME).write_text(to_json(manifest), encoding="utf-8")
    assert read_manifest(tmp_path / named) == manifest


def test_it_is_indented_json_with_the_fields_of_the_dataclass():
    text = to_json(MANIFEST)
    assert list(json.loads(text)) == [field.name for field in dataclasses.fields(MANIFEST)]
    assert text.startswith('{\n  "schema_version": 5,\n')
    assert text.endswith("}\n")


@pytest.mark.parametrize("version", [0, 4, 6, "5", None, 5.5])
def test_an_unknown_schema_version(artifact, version):
    assert refusal(change(artifact, schema_version=version)) == (
        f"{artifact / NAME}: schema_version {version!r}, this version reads 5; "
        "export the artifact again with this version of mobile-export"
    )


@pytest.mark.parametrize("content", ["[1]", '"manifest"', "{}", "null"])
def test_json_that_is_no_manifest_has_no_schema_version(artifact, content):
    (artifact / NAME).write_text(content)
    assert refusal(artifact).startswith(f"{artifact / NAME}: schema_version None, this version reads 5; ")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b"{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b"\xff", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
    ],
)
def test_what_is_not_json(artifact, content, reason):
    (artifact / NAME).write_bytes(content)
    assert refusal(artifact) == f"{artifact / NAME}: not JSON: {reason}; {AGAIN}"


def test_json_nested_too_deeply(artifact):
    (artifact / NAME).write_bytes(b"[" * 100_000)
    assert refusal(artifact).startswith(f"{artifact / NAME}: not JSON: ")


@pytest.mark.parametrize("key", [f.name for f in dataclasses.fields(Manifest) if f.name != "schema_version"])
def test_a_missing_key_is_named(artifact, key):
    values = json.loads((artifact / NAME).read_text())
    del values[key]
    (artifact / NAME).write_text(json.dumps(values))
    assert refusal(artifact) == f"{artifact / NAME}: {key}: Field required; {AGAIN}"


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"zzz": 1}, "zzz"),
        ({"max_context": "many"}, "max_context"),
        ({"parts": [{"name": "blocks", "bytes": 1, "predicted_bytes": None, "zzz": 1}]}, "parts.0.zzz"),
        ({"parts": {"blocks": 1}}, "parts"),
        ({"kv_cache": {"dtype": "float32"}}, "kv_cache.slots"),
        ({"eos_ids": [2, None]}, "eos_ids.1"),
        ({"files": []}, ""),
        ({"format": "onnx"}, ""),
        ({"pte": None}, ""),
        ({"onnx": dataclasses.asdict(ONNX)["onnx"]}, ""),
        ({"verification": {"oracle": "x", "passed": True, "checks": [{}]}}, "verification.checks.0.name"),
    ],
)
def test_a_value_that_does_not_belong_is_named_by_its_place(artifact, changes, place):
    line = refusal(change(artifact, **changes))
    assert line.startswith(f"{artifact / NAME}: {place}: " if place else f"{artifact / NAME}: Value error, ")
    assert line.endswith(f"; {AGAIN}")


@pytest.mark.parametrize("name", ["nowhere", "nowhere/model.pte", "out/other.pte"])
def test_an_artifact_there_is_not(artifact, tmp_path, name):
    assert artifact.is_dir()
    assert refusal(tmp_path / name) == (
        f"{tmp_path / name}: no such artifact; make one: mobile-export pte (or onnx, coreml) CHECKPOINT --out FOLDER"
    )


@pytest.mark.parametrize("named", ["", "model.pte"])
def test_a_folder_without_a_manifest(artifact, named):
    (artifact / NAME).unlink()
    assert refusal(artifact / named) == (
        f"{artifact / named}: no manifest.json beside it; name a folder that mobile-export wrote"
    )


# --- as the verbs say it -----------------------------------------------------------------------------------------------


def fails(capsys, *arguments):
    code = run(list(arguments))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return code, err.removesuffix("\n")


@pytest.mark.parametrize("verb", [("verify", "--against", "smollm2-135m"), ("generate", "once upon a time"), ("inspect",)])
def test_every_verb_that_reads_an_artifact_says_the_same(capsys, tmp_path, verb):
    missing = str(tmp_path / "missing.pte")
    then = "no such artifact; make one: mobile-export pte (or onnx, coreml) CHECKPOINT --out FOLDER"
    assert fails(capsys, verb[0], missing, *verb[1:]) == (3, f"error: {missing}: {then}")


@pytest.mark.parametrize("verb", [("verify", "--against", "smollm2-135m"), ("generate", "x"), ("inspect",)])
def test_a_damaged_manifest_as_every_verb_says_it(capsys, artifact, verb):
    change(artifact, schema_version=7)
    code, line = fails(capsys, verb[0], str(artifact), *verb[1:])
    assert code == 3
    assert line.startswith(f"error: {artifact / NAME}: schema_version 7, this version reads 5; ")


def test_an_artifact_whose_file_is_gone(capsys, artifact):
    (artifact / "model.pte").unlink()
    assert fails(capsys, "verify", str(artifact), "--against", "smollm2-135m") == (
        3,
        f"error: {artifact / 'model.pte'}: the manifest names it and it is not there; {AGAIN}",
    )


def test_an_artifact_whose_file_was_changed(capsys, artifact):
    code, line = fails(capsys, "verify", str(artifact), "--against", "smollm2-135m")
    assert code == 3
    assert line.startswith(f"error: {artifact / 'model.pte'}: SHA-256 ")
    assert line.endswith(
        "..., the manifest says abababababab...; export the artifact again, or restore the file it was written with"
    )


@pytest.fixture
def onnx_artifact(tmp_path):
    """A folder whose files are real: `inspect` reads them, too."""
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    folder = tmp_path / "out-onnx"
    folder.mkdir()
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "tiny", [x], [y])), folder / "model.onnx")
    (folder / NAME).write_text(to_json(ONNX), encoding="utf-8")
    return folder


@pytest.mark.parametrize("named", ["", "model.onnx"])
def test_inspect_prints_the_manifest_and_the_audit(capsys, onnx_artifact, named):
    assert run(["inspect", str(onnx_artifact / named), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.pop("audit")["payloads"] == []
    assert printed == json.loads(to_json(ONNX))


def test_inspect_prints_a_page_of_it(capsys, onnx_artifact):
    assert run(["inspect", str(onnx_artifact)]) == 0
    page = capsys.readouterr().out
    assert page.startswith(f"{onnx_artifact / 'model.onnx'}: 1.00 MB, recipe w4, 4.50 bits a weight\n")
    assert "2 blocks stored, 4 executions (immediate: layer_sharing: true)" in page
    assert "needs    onnxruntime 1.24 or newer; 1.28 or newer to pack a shared block once" in page
    assert "verified passed, by onnxruntime against transformers in float32" in page
    assert page.endswith("\naudit    0 payloads, 0.0 kB, each stored once; no matrix in float\n")


def test_an_artifact_that_cannot_be_read_is_refused(capsys, artifact):
    code, line = fails(capsys, "inspect", str(artifact))
    assert (code, line.startswith(f"error: {artifact / 'model.pte'}: ")) == (3, True)
