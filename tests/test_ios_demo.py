"""ios_demo/: the core compiled and its tests run, the app held against the interfaces it calls, names and numbers against ours.

The core is Foundation alone and runs here as it would on a phone. The app needs Apple's frameworks: a type checker sees it
with stubs of what it calls (tests/swift_stubs, each with its source), and nothing of it runs.
"""

from __future__ import annotations

import dataclasses
import functools
import plistlib
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tree_sitter_swift
import yaml
from coremltools.models.utils import load_spec
from exported import CONTEXT, PROMPT, checkpoint, coreml_artifact
from golden import GOLDEN, STATISTICS
from swift_tools import BUILT, CORE, DEMO, ROOT, STUBS, needs_swift, swift
from tree_sitter import Language, Node, Parser

from mobile_export.budget import facts, pte_memory
from mobile_export.budget.profiled import read_rates
from mobile_export.families.spec import BlockSpec, DecoderSpec, RwkvSpec
from mobile_export.manifest import SCHEMA_VERSION, Chat, CoreMlGraph, FileDigest, KvCacheSize, Manifest, Part, PteGraph
from mobile_export.measure import profile
from mobile_export.measure.measurement import Logits, Measurement, Resident
from mobile_export.measure.profile import AtThreads, Memory, Profile, Spread, read_profile
from mobile_export.measure.series import summary
from mobile_export.quantize.recipe import Recipe
from mobile_export.sharing import SharingPlan

SOURCES = sorted((DEMO / "MobileExportCore").rglob("*.swift")) + sorted((DEMO / "App").rglob("*.swift"))
APP = DEMO / "App"
PARSER = Parser(Language(tree_sitter_swift.language()))
# What the app imports, in an order in which each finds those it imports itself.
MODULES = (
    *("UniformTypeIdentifiers", "AppleFoundation", "os", "Darwin", "CryptoKit", "UIKit"),
    *("CoreML", "ExecuTorch", "Tokenizers", "SwiftUI"),
)


def nodes(node: Node, kind: str) -> Iterator[Node]:
    """Every node of a kind below one, in the file's order."""
    for child in node.children:
        if child.type == kind:
            yield child
        yield from nodes(child, kind)


def text(node: Node | None) -> str:
    assert node is not None
    assert node.text is not None
    return node.text.decode()


def parsed(path: Path) -> Node:
    return PARSER.parse(path.read_bytes()).root_node


def is_static(declaration: Node) -> bool:
    return "static " in text(declaration).partition("=")[0]


def snake(name: str) -> str:
    return re.sub(r"(?=[A-Z])", "_", name).lower()


@functools.cache
def structs() -> dict[str, list[str]]:
    """Type of the core -> the names of what it stores, as JSON has them."""
    found = {}
    for path in sorted((CORE / "Sources").rglob("*.swift")):
        for kind in nodes(parsed(path), "class_declaration"):
            body = kind.child_by_field_name("body")
            assert body is not None
            members = [p for p in body.children if p.type == "property_declaration"]
            stored = [p for p in members if not p.child_by_field_name("computed_value") and not is_static(p)]
            found[text(kind.child_by_field_name("name"))] = [snake(text(p.child_by_field_name("name"))) for p in stored]
    return found


def constants(path: Path, enum: str) -> dict[str, str]:
    """The static constants of a type in a file: name -> what it is set to."""
    (kind,) = [kind for kind in nodes(parsed(path), "class_declaration") if text(kind.child_by_field_name("name")) == enum]
    held = [p for p in nodes(kind, "property_declaration") if is_static(p)]
    return {text(p.child_by_field_name("name")): text(p.child_by_field_name("value")) for p in held}


# --- syntax --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_file_parses(path):
    assert not parsed(path).has_error


def test_an_error_is_seen():
    whole = (APP / "LoadedModel.swift").read_bytes()
    broken = whole.replace(b"actor LoadedModel {", b"actor LoadedModel {{", 1)
    assert PARSER.parse(broken).root_node.has_error
    assert len(SOURCES) > 25


# --- what the compiler says ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def core_tests(tmp_path_factory):
    """What `swift test` said of the core, and the profile its test wrote."""
    written = tmp_path_factory.mktemp("profile") / "profile.json"
    places = ("--package-path", CORE, "--scratch-path", BUILT / "core")
    for _ in range(3):
        # Under proot, compilers that make the same folders at once end now and then without a word of what is wrong: so one
        # job at a time, and again where none was said.
        done = swift("swift", "build", "--build-tests", "--jobs", "1", *places)
        if done.returncode == 0 or "error: " in done.stdout:
            break
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    done = swift("swift", "test", "--skip-build", *places, environment={"MOBILE_EXPORT_PROFILE": str(written)})
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout + done.stderr, written


@needs_swift
def test_every_test_of_the_core_passes(core_tests):
    tests = sum(len(re.findall(r"func test\w+\(\)", path.read_text())) for path in (CORE / "Tests").rglob("*.swift"))
    assert f"Executed {tests} tests, with 0 failures (0 unexpected)" in core_tests[0]
    assert tests > 20


@needs_swift
def test_a_profile_of_the_app_is_one_of_ours(core_tests):
    found = read_profile(core_tests[1])
    assert found.by_threads == [summary(STATISTICS["three runs of two sequences"])]
    assert found.files
    assert read_rates(core_tests[1]).best.decode_tokens_per_s.median == found.best.decode_tokens_per_s.median


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """The folder of compiled stubs, and of the core's interface."""
    folder = tmp_path_factory.mktemp("modules")
    sources = {name: [STUBS / f"{name}.swift"] for name in MODULES}
    sources["MobileExportCore"] = sorted((CORE / "Sources").rglob("*.swift"))
    assert {path.stem for path in STUBS.glob("*.swift")} == set(MODULES)
    for name, files in sources.items():
        out = ("-emit-module", "-o", folder / f"{name}.swiftmodule", "-module-name", name)
        done = swift("swiftc", "-swift-version", "5", "-parse-as-library", "-I", folder, *out, *files)
        assert done.returncode == 0, done.stderr
    return folder


def type_checked(folder: Path, modules: Path) -> str:
    """What the type checker says of an app's sources; nothing, if they are right."""
    implied = ("-Xfrontend", "-import-module", "-Xfrontend", "AppleFoundation")
    name = ("-module-name", "MobileExportDemo", "-parse-as-library", "-swift-version", "5")
    done = swift("swiftc", "-typecheck", "-I", modules, *implied, *name, *sorted(folder.rglob("*.swift")))
    assert (done.returncode != 0) == ("error:" in done.stderr), done.stderr
    return done.stderr


@needs_swift
def test_the_app_calls_what_is_there(modules):
    assert type_checked(APP, modules) == ""


@needs_swift
@pytest.mark.parametrize(
    ("file", "call", "misuse"),
    [
        ("Engines/ExecuTorchEngine.swift", "try module.load()", "module.load()"),
        ("Engines/ExecuTorchEngine.swift", "shape: [1])", "shape: 1)"),
        ("Engines/CoreMLStock.swift", "using: state)", "state: state)"),
        ("LoadedModel.swift", "addSpecialTokens: false", "specialTokens: false"),
        ("Screens/ChatView.swift", "text: $typed", "text: typed"),
    ],
)
def test_a_misused_call_is_seen(file, call, misuse, modules, tmp_path):
    copy = Path(shutil.copytree(APP, tmp_path / "App"))
    whole = (copy / file).read_text()
    assert call in whole
    (copy / file).write_text(whole.replace(call, misuse, 1))
    assert f"{Path(file).name}:" in type_checked(copy, modules)


@needs_swift
def test_every_file_is_laid_out_as_swift_format_does(tmp_path):
    settings = ("--strict", "--configuration", DEMO / ".swift-format")
    assert swift("swift-format", "lint", *settings, "--recursive", DEMO).stderr == ""
    (tmp_path / "Loose.swift").write_text("func a()  { }\n")
    assert "Loose.swift:1" in swift("swift-format", "lint", *settings, tmp_path / "Loose.swift").stderr


# --- names and numbers ---------------------------------------------------------------------------------------------------


def fields(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


WHOLE = {
    "Resident": Resident,
    "Logits": Logits,
    "MeasuredRun": Measurement,
    "Spread": Spread,
    "Memory": Memory,
    "AtThreads": AtThreads,
    "Chat": Chat,
    "FileDigest": FileDigest,
}
IN_PART = {
    "Manifest": [Manifest],
    "Part": [Part],
    "KvCacheSize": [KvCacheSize],
    "PteGraph": [PteGraph],
    "CoreMlGraph": [CoreMlGraph],
    "BlockSpec": [BlockSpec],
    "Spec": [DecoderSpec, RwkvSpec],
    "Sharing": [SharingPlan],
    "Recipe": [Recipe],
}


@pytest.mark.parametrize("name", WHOLE)
def test_fields_are_pythons_in_pythons_order(name):
    assert structs()[name] == fields(WHOLE[name])


@pytest.mark.parametrize("name", IN_PART)
def test_fields_that_are_read_are_in_the_manifest(name):
    read = set(structs()[name])
    assert read
    assert read - {field for kind in IN_PART[name] for field in fields(kind)} == set()


def test_profiles_fields_are_pythons_in_pythons_order():
    source = (CORE / "Sources/MobileExportCore/Profile.swift").read_text()
    written = re.findall(r'\("(\w+)", ', source.partition("return JSONText.object")[2])
    assert written == fields(Profile)
    (machine,) = re.findall(r"let machine = .*?\]\)", source, re.DOTALL)
    assert re.findall(r'\("(\w+)", ', machine) == fields(profile.Machine)


def test_versions_of_the_files():
    sources = CORE / "Sources/MobileExportCore"
    assert int(constants(sources / "Manifest.swift", "Manifest")["schemaVersion"]) == SCHEMA_VERSION
    assert int(constants(sources / "Profile.swift", "Profile")["schemaVersion"]) == profile.SCHEMA_VERSION


def test_constants_of_the_memory_formula():
    sources = CORE / "Sources/MobileExportCore"
    found = constants(sources / "PteMemory.swift", "PteConstants")
    assert len(found) == 7
    for name, value in found.items():
        computed = eval(value, {"MemoryEstimate": type("MemoryEstimate", (), {"mib": pte_memory.MIB})})
        assert computed == getattr(pte_memory, snake(name).upper()), name
    found = constants(sources / "ModelFacts.swift", "ModelFacts")
    assert int(found["usualPrompt"]) == facts.USUAL_PROMPT
    assert int(found["int8RowExtra"]) == facts.INT8_ROW_EXTRA
    assert dict(re.findall(r'"(\w+)": (\d)', found["valueBytes"])) == {k: str(v) for k, v in facts.VALUE_BYTES.items()}


# --- Core ML -------------------------------------------------------------------------------------------------------------


def features(node: Node) -> set[str]:
    """The names a call's dictionary has, as the package has them."""
    names = constants(APP / "Engines/CoreMLPackage.swift", "PackageName")
    return {names[name].strip('"') for name in re.findall(r"PackageName\.(\w+): ", text(node))}


def fed(file: str) -> dict[str, set[str]]:
    """Function of an engine -> the inputs it gives the package."""
    found = {}
    for function in nodes(parsed(APP / "Engines" / file), "function_declaration"):
        if "MLDictionaryFeatureProvider" in text(function):
            found[text(function.child_by_field_name("name"))] = features(function)
    return found


def described(package: Path) -> dict[str, tuple[set[str], set[str], set[str]]]:
    """Function of a package -> its inputs, outputs and states."""
    description = load_spec(str(package)).description
    named = description.functions or [description]
    parts = ("input", "output", "state")
    return {getattr(f, "name", ""): tuple({x.name for x in getattr(f, part)} for part in parts) for f in named}


def test_the_stock_engine_feeds_what_a_package_takes():
    package = coreml_artifact(checkpoint(), "--no-verify") / "model.mlpackage"
    ((inputs, outputs, states),) = described(package).values()
    assert fed("CoreMLStock.swift") == {"logits": inputs}
    names = constants(APP / "Engines/CoreMLPackage.swift", "PackageName")
    assert outputs == {names["logits"].strip('"')}
    assert states  # the host makes them without naming them
    logits = load_spec(str(package)).description.output[0].type.multiArrayType
    assert logits.ArrayDataType.Name(logits.dataType) == "FLOAT16"


def test_the_functions_engine_feeds_what_a_package_takes():
    arguments = ("--layout", "functions", "--max-prompt", str(PROMPT), "--no-verify")
    package = coreml_artifact(checkpoint(), *arguments) / "model.mlpackage"
    found = described(package)
    names = {name: value.strip('"') for name, value in constants(APP / "Engines/CoreMLPackage.swift", "PackageName").items()}
    assert found.keys() == {names["prefill"], names["decode"]}
    calls = fed("CoreMLFunctions.swift")
    assert calls == {"prompt": found[names["prefill"]][0], "token": found[names["decode"]][0]}
    assert all(outputs == {names["logits"]} for _, outputs, _ in found.values())
    assert CONTEXT > PROMPT


# --- the project ---------------------------------------------------------------------------------------------------------


def pinned(package: str) -> str:
    (version,) = re.findall(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return version


def test_the_project_names_what_is_there():
    project = yaml.safe_load((DEMO / "project.yml").read_text())
    target = project["targets"]["MobileExportDemo"]
    base = target["settings"]["base"]
    named = [project["packages"]["MobileExportCore"]["path"], base["INFOPLIST_FILE"], base["CODE_SIGN_ENTITLEMENTS"]]
    for source in target["sources"]:
        named += [source["path"], *(f"{source['path']}/{left_out}" for left_out in source["excludes"])]
    assert [path for path in named if not (DEMO / path).exists()] == []
    assert base["PRODUCT_BUNDLE_IDENTIFIER"] == "org.mobileexport.demo"
    assert {dependency["package"] for dependency in target["dependencies"]} == set(project["packages"])
    assert not list(DEMO.rglob("*.pbxproj"))


def test_one_version_of_executorch_everywhere():
    project = yaml.safe_load((DEMO / "project.yml").read_text())
    version = pinned("executorch")
    assert project["packages"]["executorch"]["branch"] == f"swiftpm-{version}"
    engine = constants(APP / "Engines/ExecuTorchEngine.swift", "ExecuTorchEngine")
    assert engine["version"].strip('"') == version
    tokenizers = project["packages"]["swift-transformers"]["exactVersion"]
    readme = (DEMO / "README.md").read_text()
    assert f"ExecuTorch {version}" in readme
    assert f"swift-transformers {tokenizers}" in readme


def test_property_lists():
    info = plistlib.loads((APP / "Info.plist").read_bytes())
    assert info["UIFileSharingEnabled"], "or Finder cannot copy an artifact in"
    assert info["LSSupportsOpeningDocumentsInPlace"], "or the Files app does not show the folder"
    assert info["CFBundleIdentifier"] == "$(PRODUCT_BUNDLE_IDENTIFIER)"
    rights = plistlib.loads((APP / "MobileExportDemo.entitlements").read_bytes())
    assert rights == {"com.apple.developer.kernel.increased-memory-limit": True}


def test_the_fixtures_are_the_repositorys():
    helper = (CORE / "Tests/MobileExportCoreTests/Golden.swift").read_text()
    assert f'"/{GOLDEN.relative_to(ROOT).as_posix()}/"' in helper
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["test"]
