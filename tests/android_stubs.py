"""Sources with the signatures of android_stubs.txt and nothing in them: the app is compiled against them, never run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

STUBS = Path(__file__).with_name("android_stubs.txt")
ANNOTATIONS = {"@Nullable": "@org.jetbrains.annotations.Nullable", "@NonNull": "@org.jetbrains.annotations.NotNull"}
DEFAULTS = {"int": "0", "long": "0", "String": '""'}


@dataclass
class Stub:
    """A class: "java" or "kotlin", "class" or "interface", its full name, what follows the name, and its members."""

    language: str
    kind: str
    name: str
    bases: str
    members: list[str] = field(default_factory=list)

    @property
    def package(self) -> str:
        return ".".join(part for part in self.name.split(".") if part[0].islower() or part == self.name[0])

    @property
    def classes(self) -> list[str]:
        """Outer class first."""
        return self.name.removeprefix(self.package + ".").split(".")


def write_stubs(folder: Path, listed: str | None = None) -> list[Path]:
    """A source file for each top-level class.

    listed: instead of the text of android_stubs.txt.
    """
    stubs = list(_read(STUBS.read_text() if listed is None else listed))
    nested = {stub.name: [inner for inner in stubs if inner.name.rpartition(".")[0] == stub.name] for stub in stubs}
    written = []
    for stub in stubs:
        if len(stub.classes) > 1:
            continue
        text = _java(stub, nested[stub.name]) if stub.language == "java" else _kotlin(stub)
        path = folder / stub.package.replace(".", "/") / f"{stub.classes[0]}.{'java' if stub.language == 'java' else 'kt'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"package {stub.package}{';' if stub.language == 'java' else ''}\n\n{text}\n")
        written.append(path)
    return written


def _read(listed: str) -> Iterator[Stub]:
    current: Stub | None = None
    source = ""
    for line in listed.splitlines():
        if line.startswith("source: "):
            source = line
        elif line.startswith("  "):
            assert current is not None, line
            current.members.append(line.strip())
        elif line and not line.startswith("#"):
            if current is not None:
                yield current
            assert source, f"{line}: nobody says where it was read"
            language, kind, name, *bases = line.split(" ", 3)
            current = Stub(language, kind, name, " ".join(bases))
    if current is not None:
        yield current


def _java(stub: Stub, nested: list[Stub]) -> str:
    inner = "\n".join(_java(each, []) for each in nested)
    members = "\n".join(_java_member(stub, member) for member in stub.members)
    static = "static " if len(stub.classes) > 1 else ""
    return f"public {static}{stub.kind} {stub.classes[-1]} {stub.bases} {{\n{members}\n{inner}\n}}"


def _java_member(stub: Stub, member: str) -> str:
    kind, _, text = member.partition(" ")
    for short, full in ANNOTATIONS.items():
        text = text.replace(short, full)
    if kind == "field":
        type_ = text.split()[-2]
        return f"  {text} = {DEFAULTS[type_]};" if " final " in text else f"  {text};"
    before, _, rest = text.partition("(") if "(@" not in text.split(" ")[0] else text.rpartition("(")
    parameters, _, after = rest.rpartition(")")
    numbered = re.sub(r",(?![^<]*>)", "\0", parameters).split("\0") if parameters else []
    named = ", ".join(f"{each.strip()} p{i}" for i, each in enumerate(numbered))
    body = ";" if stub.kind == "interface" else " { throw new RuntimeException(); }"
    return f"  {before}({named}){after}{body}"


def _kotlin(stub: Stub) -> str:
    def body(member: str) -> str:
        if member.startswith("constructor") or " const " in f" {member}" or "= Unit" in member or stub.kind == "interface":
            return member
        return f"{member} = TODO()" if "fun " in member else f"{member} get() = TODO()"

    own = [body(member) for member in stub.members if not member.startswith("companion ")]
    shared = [body(member.removeprefix("companion ")) for member in stub.members if member.startswith("companion ")]
    companion = "companion object {\n" + "\n".join(shared) + "\n}" if shared else ""
    closed = "" if stub.kind == "interface" or any(each.startswith("constructor") for each in own) else "private constructor()"
    return f"{stub.kind} {stub.classes[0]} {closed} {stub.bases} {{\n" + "\n".join([*own, companion]) + "\n}"
