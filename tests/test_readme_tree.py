"""The README's file tree is the disk's: one line a file, and every line says something."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("swarm", "optim", "recovery", "transport")
ENTRY = re.compile(r"(?P<indent> *)(?P<name>\S+?)(?P<slash>/?)(?: {2,}(?P<what>\S.*))?")


def told() -> dict[str, str]:
    """Path -> description of every file in the README's tree."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.partition("<!-- tree -->\n```text\n")[2].partition("```")[0]
    files, folders = dict[str, str](), list[str]()
    for line in block.splitlines():
        entry = ENTRY.fullmatch(line)
        assert entry, f"cannot read {line!r}"
        folders = folders[: len(entry["indent"]) // 4]
        if entry["slash"]:
            folders.append(entry["name"])
        else:
            files["/".join([*folders, entry["name"]])] = entry["what"] or ""
    return files


def on_disk() -> set[str]:
    files = {path for room in ROOMS for path in (ROOT / room).rglob("*") if path.is_file()}
    files |= {path for path in (ROOT / "scripts").iterdir() if path.is_file()}
    files |= set((ROOT / "docs").rglob("*.md"))
    names = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    return {name for name in names if not name.endswith("/__init__.py")}


def test_every_file_has_its_line() -> None:
    assert sorted(on_disk() - told().keys()) == []


def test_every_line_has_its_file() -> None:
    assert sorted(told().keys() - on_disk()) == []


def test_every_line_says_what_the_file_is() -> None:
    assert [name for name, what in told().items() if len(what) < 10] == []


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / name).read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []
    if name == "README.md":
        assert links
