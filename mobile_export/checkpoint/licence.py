"""The licence a folder states: an artifact is a copy of the weights and has to carry it."""

from __future__ import annotations

import re
from pathlib import Path

from mobile_export.checkpoint.strict_json import read_file

LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")


def find_licence(folder: Path) -> str | None:
    """The identifier in README.md's front matter, else the first line of the licence file, else None."""
    if (folder / "README.md").is_file():
        card = read_file(folder / "README.md").decode("utf-8", errors="replace")
        if identifier := _stated(card):
            return identifier
    for name in LICENCE_FILES:
        if (folder / name).is_file():
            lines = read_file(folder / name).decode("utf-8", errors="replace").splitlines()
            return next((line.strip(" #") for line in lines if line.strip(" #")), name)
    return None


def _stated(card: str) -> str | None:
    """The licence between the card's two `---` lines; a card that says "other" names it in `license_name`."""
    front_matter = re.match(r"---\s*\n(.*?)\n---", card, re.DOTALL)
    if front_matter is None:
        return None
    stated = dict(re.findall(r"^(license|license_name):[ \t]*[\"']?([\w.+-]+)", front_matter[1], re.MULTILINE))
    licence: str | None = stated.get("license")
    return stated.get("license_name", licence) if licence == "other" else licence
