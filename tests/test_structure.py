"""Rules of the tree as a whole: who may import whom, what the package ships, what no file may say."""

import ast
import importlib
import json
import re
import subprocess
import sys
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path

import pytest

from runtime.cli import front_door

ROOT = Path(__file__).parents[1]
ARROWS = {
    "runtime": set(),
    "distill": {"runtime"},
    "export": {"distill", "runtime"},
    "bench": {"runtime"},
    "large2small": {"runtime", "distill", "export", "bench"},
}
HEAVY = {"torch", "timm", "torchvision", "onnx", "onnxscript", "onnxslim", "sklearn"}
MOST_SIBLINGS = 14
"""Files and folders that one folder may hold; `py.typed`, which says nothing to a reader, is not counted."""


def modules() -> dict[str, Path]:
    """Dotted name -> file, of the packages; a folder's __init__.py has the folder's name."""
    found = {}
    for folder in ARROWS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(file: Path) -> list[str]:
    """First parts of every absolute import in the file, at any depth."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [name.name.split(".")[0] for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append(node.module.split(".")[0])
    return found


def imported(name: str, file: Path, known: dict[str, Path]) -> set[str]:
    """The modules of `known` that this module imports, at any depth of the file, also for types alone."""
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for each in node.names:
                found.add(f"{base}.{each.name}" if f"{base}.{each.name}" in known else base)
    return (found & set(known)) - {name}


@cache
def arrows() -> dict[str, set[str]]:
    """Module -> the modules it imports."""
    known = modules()
    return {name: imported(name, file, known) for name, file in known.items()}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Nodes of one circle, in order, or an empty list."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for target in sorted(graph.get(node, ())):
            if found := walk(target, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := walk(node, []))), [])


def rooms(package: str) -> dict[str, set[str]]:
    """Room -> the rooms it imports: the folders of a package, and the files beside them."""
    found: dict[str, set[str]] = {}
    for name, targets in arrows().items():
        parts = name.split(".")
        if parts[0] == package and len(parts) > 1:
            inside = {target.split(".")[1] for target in targets if target.startswith(f"{package}.")}
            found.setdefault(parts[1], set()).update(inside - {parts[1]})
    return found


@pytest.mark.parametrize("folder", ARROWS)
def test_imports_only_point_downwards(folder):
    wrong = [
        (str(file.relative_to(ROOT)), name)
        for file in sorted((ROOT / folder).rglob("*.py"))
        for name in imports(file)
        if name in ARROWS and name != folder and name not in ARROWS[folder]
    ]
    assert wrong == []


def test_a_circle_is_found_and_a_diamond_is_not_one():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}}) == []


def test_no_modules_import_each_other():
    assert sum(map(len, arrows().values())) > 300  # the walk sees them
    assert circle(arrows()) == []


@pytest.mark.parametrize("package", ARROWS)
def test_no_rooms_of_a_package_import_each_other(package):
    """With no circle the rooms have floors, and every arrow points to a lower one."""
    assert circle(rooms(package)) == []


@pytest.mark.parametrize("package", ARROWS)
def test_commands_are_the_top_floor(package):
    """Nobody below large2small imports a command, but a command that is another one with more flags."""
    allowed = {("export.commands.train_qat", "distill.commands.train")}
    wrong = {
        (name, target)
        for name, targets in arrows().items()
        for target in targets
        if target.startswith(f"{package}.commands.") and not name.startswith("large2small.")
    }
    assert wrong <= allowed


def test_nobody_imports_the_front_door_but_who_types_commands():
    doors = {f"{package}.__main__" for package in ("distill", "export", "bench")}
    doors |= {"distill.commands.demo", "large2small.calls", "large2small.searching.worker"}
    assert {name for name, targets in arrows().items() if "runtime.cli.front_door" in targets} == doors


@pytest.mark.parametrize("folder", ARROWS)
def test_no_folder_has_more_siblings_than_a_reader_can_take_in(folder):
    folders = [ROOT / folder, *(path for path in (ROOT / folder).rglob("*") if path.is_dir())]
    crowded = {
        str(path.relative_to(ROOT)): len(inside)
        for path in folders
        if path.name != "__pycache__"
        and len(inside := [each for each in path.iterdir() if each.name not in ("__pycache__", "py.typed")])
        > MOST_SIBLINGS
    }
    assert crowded == {}


@pytest.mark.parametrize("folder", ["runtime", "bench", "large2small"])
def test_what_runs_on_the_edge_names_no_training_package(folder):
    allowed = {("runtime/images/digits.py", "sklearn")}  # the demo's digits, imported when asked for
    wrong = {
        (str(file.relative_to(ROOT)), name)
        for file in (ROOT / folder).rglob("*.py")
        for name in imports(file)
        if name in HEAVY
    }
    assert wrong <= allowed


@pytest.mark.parametrize("name", front_door.COMMANDS)
def test_every_command_has_the_protocol(name):
    command = importlib.import_module(front_door.COMMANDS[name])
    module, typed = front_door.COMMANDS[name], name.split()[-1].lstrip("-")
    assert module.split(".")[1] == "commands" and module.rpartition(".")[2] in (typed, f"train_{typed}")
    assert front_door.summary(module) == command.SUMMARY
    assert re.fullmatch(r"[a-z][^\n]{10,84}[^.\n]", command.SUMMARY)
    assert "{prog} " in command.DESCRIPTION or f"distill {name}" in command.DESCRIPTION
    assert isinstance(command.Options, type) and is_dataclass(command.Options)
    assert command.Options.__dataclass_params__.frozen
    assert callable(command.run)


def test_every_file_in_a_commands_folder_is_in_the_table():
    files = {name for name in modules() if re.fullmatch(r"\w+\.commands\.\w+", name)}
    assert files == set(front_door.COMMANDS.values())


def test_every_module_says_what_goes_in_and_what_comes_out():
    silent = []
    for folder in ARROWS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            if not text or (file.name not in ("__init__.py", "__main__.py") and "In:" not in text):
                silent.append(str(file.relative_to(ROOT)))
    assert silent == []


def json_writers(file: Path) -> list[ast.AST]:
    """Every call or import of json.dump and json.dumps."""
    found: list[ast.AST] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "json":
            found += [node for name in node.names if name.name.startswith(("dump", "JSONEncoder"))]
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "json":
            found += [node] if node.attr in ("dump", "dumps", "JSONEncoder") else []
    return found


def test_json_is_written_in_one_place_which_knows_no_nan():
    """What Python's own writer makes of NaN is not JSON."""
    folders = [*ARROWS, "measurements"]
    writers = {
        str(file.relative_to(ROOT)): len(json_writers(file))
        for folder in folders
        for file in sorted((ROOT / folder).rglob("*.py"))
        if json_writers(file)
    }
    assert writers == {"runtime/files.py": 1}
    example = ROOT / "examples" / "python" / "edge_app.py"  # one file that people copy
    calls = [node for node in ast.walk(ast.parse(example.read_text())) if isinstance(node, ast.Call)]
    dumps = [call for call in calls if getattr(call.func, "attr", "") == "dumps"]
    assert len(dumps) == len(json_writers(example)) > 0
    assert all([each.arg for each in call.keywords] == ["allow_nan"] for call in dumps)


@cache
def defined(file: Path) -> dict[str, ast.AST]:
    """Names that a module defines or imports at its top level -> their nodes."""
    found = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {
                each.id: node
                for target in node.targets
                for each in ast.walk(target)
                if isinstance(each, ast.Name)
            }
        elif isinstance(node, ast.AnnAssign):
            found[node.target.id] = node
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {(each.asname or each.name).split(".")[0]: node for each in node.names}
    return found


def exists(dotted: str) -> bool:
    """Whether this is a module, a folder of modules, or something that a module holds, methods included."""
    known = modules()
    if dotted in known:
        return True
    parts = dotted.split(".")
    for count in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:count])
        if name in known:
            inside = defined(known[name])
            if parts[count] not in inside:
                return False
            node = inside[parts[count]]
            behind = parts[count + 1 :]
            members = {getattr(each, "name", None) for each in getattr(node, "body", ())}
            return not behind or (len(behind) == 1 and behind[0] in members)
    return False


def test_every_name_that_a_docstring_points_to_exists():
    pointed = re.compile(rf"(?<![\w./-])(?:{'|'.join(ARROWS)})(?:\.[A-Za-z_]\w*)+(?![\w/])")
    files = re.compile(r"\.(onnx|plan|pth|json|md|py|yaml|png|npz|int8|fp16|svg)\b")
    lost, seen = set(), 0
    for name, file in modules().items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                continue
            for dotted in pointed.findall(ast.get_docstring(node) or ""):
                seen += 1
                if not files.search(dotted) and not exists(dotted):
                    lost.add((name, dotted))
    assert seen > 200
    assert sorted(lost) == []


def test_every_folder_with_code_is_a_package_that_is_shipped():
    code = "import json, sys; from setuptools import find_packages; "
    code += "print(json.dumps(find_packages(sys.argv[1], include=sys.argv[2:])))"
    words = [sys.executable, "-c", code, str(ROOT), *(f"{folder}*" for folder in ARROWS)]
    # a process of its own: setuptools refuses one in which another package has imported distutils
    shipped = set(json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout))
    present = {
        str(file.parent.relative_to(ROOT)).replace("/", ".")
        for folder in ARROWS
        for file in (ROOT / folder).rglob("*.py")
    }
    assert shipped == present
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(f'"{folder}*"' in text for folder in ARROWS)


def test_every_dependency_says_why_it_is_there():
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    needed = [
        line for line in lines if re.match(r'\s+"[a-z]', line) and (">=" in line or "large2small[" in line)
    ]
    unexplained = [line for line in needed if "#" not in line and "large2small[" not in line]
    assert needed and unexplained == []
