"""Rules of the house that no linter can say."""

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("swarm", "optim", "recovery", "transport")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
LINES_MAX = 350
WORLD = {
    "aiohttp",
    "asyncio",
    "concurrent",
    "datetime",
    "os",
    "pathlib",
    "secrets",
    "select",
    "selectors",
    "socket",
    "ssl",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "zmq",
}
"""What a machine has no business with: the network, the disk, other tasks, the clock, entropy."""


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_file_fits_in_one_reading(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= LINES_MAX, f"{name(path)} has {lines} lines: it holds two rooms, divide it"


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=name)
def test_nothing_is_left_for_later(path: Path) -> None:
    marks = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")))
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            assert not marks.search(token.string), f"{name(path)}:{token.start[0]}: {token.string[:80]}"


def is_machine(tree: ast.Module) -> bool:
    """Whether a class of the module has the three methods that make a machine."""
    owners = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return any(
        {"handle", "tick", "deadline"}
        <= {each.name for each in owner.body if isinstance(each, ast.FunctionDef)}
        for owner in owners
    )


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_machine_touches_nothing_of_the_world(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if is_machine(tree):
        assert not {module for module in imported(tree) if module.split(".")[0] in WORLD}
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef | ast.Await)]
        assert not {"wall_time", "EventFile"} & {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}


def test_there_are_machines_to_look_at() -> None:
    assert sum(is_machine(ast.parse(path.read_text(encoding="utf-8"))) for path in SOURCES) >= 5


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_no_function_is_a_stub(path: Path) -> None:
    """A body of only `...` belongs to a Protocol; anywhere else it is a promise not kept."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for owner in ast.walk(tree):
        if isinstance(owner, ast.ClassDef) and any("Protocol" in ast.unparse(base) for base in owner.bases):
            continue
        for function in getattr(owner, "body", ()) if isinstance(owner, ast.Module | ast.ClassDef) else ():
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                last, where = ast.unparse(function.body[-1]), f"{name(path)}: {function.name}"
                assert last not in ("...", "pass", "raise NotImplementedError"), where


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_no_error_is_swallowed_whole(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            pytest.fail(f"{name(path)}:{node.lineno}: bare except")


@pytest.mark.parametrize("path", TESTS, ids=name)
def test_no_test_sleeps_by_the_clock(path: Path) -> None:
    """Virtual time may be slept in; the real clock may not."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) != "time" + ".sleep", f"{name(path)}:{node.lineno}"


def test_no_two_test_files_have_one_name() -> None:
    """Python knows a test by its file's name: the second would not be collected, nor anything after it."""
    names = Counter(path.name for path in TESTS if path.name.startswith("test_"))
    assert [name for name, count in names.items() if count > 1] == []
