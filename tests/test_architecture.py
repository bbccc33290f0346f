"""Conventions that execute: imports go down the house, rooms stay what they are, functions stay small."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("klaxon", "dashboard", "alerts", "diagnosis", "detectors", "collector")  # top to bottom
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
ids = [str(path.relative_to(ROOT)) for path in FILES]


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_imports_go_down_the_house_only(path):
    own = ROOMS.index(path.relative_to(ROOT).parts[0])
    above = {name for name in imported(path) if name.split(".")[0] in ROOMS[:own]}
    assert not above, f"{path.name} imports {above}, a room above its own"


def test_the_dashboard_imports_no_room_and_no_torch():
    for path in (ROOT / "dashboard").rglob("*.py"):
        tops = {name.split(".")[0] for name in imported(path)}
        assert not tops & {*ROOMS, "torch", "vllm", "duckdb"} - {"dashboard"}, path


def test_detectors_do_no_io_and_know_no_clock():
    for path in (ROOT / "detectors").rglob("*.py"):
        tops = {name.split(".")[0] for name in imported(path)}
        assert not tops & {"torch", "time", "datetime", "os", "pathlib", "sqlite3", "duckdb", "httpx"}, path


def test_the_tap_needs_the_standard_library_only():
    import sys

    allowed = {*sys.stdlib_module_names, "klaxon_tap", "vllm"}  # vllm: the host it is loaded into
    for path in (ROOT / "tap").rglob("*.py"):
        tops = {name.split(".")[0] for name in imported(path)}
        assert tops <= allowed, f"{path}: {tops - allowed}"


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_functions_and_files_stay_small(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno <= 60, node.name


def test_there_are_at_most_six_error_classes():
    from collector import errors

    classes = [name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(classes) <= 6
    for path in FILES:
        if path.name == "errors.py" or "dashboard" in path.parts:  # the page imports no room, errors included
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base) for base in node.bases}
                assert not bases & {"Exception", "KlaxonError", "RuntimeError", "ValueError"}, f"{path}: {node.name}"


def test_no_file_names_a_path_of_the_machine_it_was_written_on():
    for path in [*ROOT.glob("*.*"), *(p for room in (*ROOMS, "tap", "tests", "docs", "examples", "benchmarks")
                                      for p in (ROOT / room).rglob("*") if p.suffix in {".py", ".md", ".toml", ".txt"})]:
        if path.is_file() and path != Path(__file__):
            text = path.read_text(encoding="utf-8", errors="ignore")
            assert not any(f"/{folder}/" in text for folder in ("work", "farm")), path
