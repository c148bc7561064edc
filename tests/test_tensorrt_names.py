"""Every TensorRT name and call in the code exists in all of TensorRT 10.3 to 11.4, or is asked for with
hasattr first.

The names are NVIDIA's, as facts: the full listing among the data outside the repository where that is, else
the copy in tests/doubles.
"""

import ast
import json
import re
from pathlib import Path

import outside
import pytest
import tensorrt_surface

ROOT = Path(__file__).parents[1]
DOUBLES = ROOT / "tests" / "doubles"
LISTING = outside.path("tensorrt_api")
VERSIONS = ("10.3", "10.7", "10.9", "10.13", "10.16", "11.0", "11.4")

MADE = {
    "create_network": "INetworkDefinition",
    "create_builder_config": "IBuilderConfig",
    "create_timing_cache": "ITimingCache",
    "create_optimization_profile": "IOptimizationProfile",
    "build_serialized_network": "IHostMemory",
    "get_error": "ParserError",
    "get_input": "ITensor",
    "get_output": "ITensor",
    "deserialize_cuda_engine": "ICudaEngine",
    "create_execution_context": "IExecutionContext",
    "create_engine_inspector": "EngineInspector",
    "get_timing_cache": "ITimingCache",
    "get_tensor_dtype": "DataType",
}
"""What a method gives; a variable that is assigned one is followed by its name through the module."""

CALLED = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "timing": "ITimingCache",
    "runtime": "Runtime",
    "refitter": "Refitter",
    "engine": "ICudaEngine",
    "_context": "IExecutionContext",
    "inspector": "EngineInspector",
}
"""What the code calls an object that comes as an argument or attribute -> its class."""

OURS = {
    "engine": {"engine", "device", "trt", "path", "input_name", "output_name", "image", "classes", "making"},
    "profile": {"min", "opt", "max"},
}
"""Attributes of our own objects of such a name (runtime.backends.tensorrt.slots.LoadedEngine,
export.trt.build.Profile)."""


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    """Dotted name -> the versions that have it."""
    if (LISTING / "availability.json").exists():
        found = json.loads((LISTING / "availability.json").read_text())
        return {name: set(VERSIONS) for name in found["in_all"]} | {
            name: set(has) for name, has in found["others"].items()
        }
    names: dict[str, set[str]] = {}
    for version in VERSIONS:
        for name in tensorrt_surface.Surface(version).facts:
            names.setdefault(name, set()).add(version)
    return names


def used(source: str) -> set[tuple[int, str]]:
    """(line, dotted name) of every TensorRT name in the source that is not asked for with hasattr."""
    tree = ast.parse(source)
    modules = {
        name.asname or name.name
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in node.names
    }
    kinds = {name: kind for name, kind in CALLED.items() if name not in modules}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and _kind(node.value, {}):
            target = node.targets[0]
            kinds[target.id if isinstance(target, ast.Name) else getattr(target, "attr", "")] = _kind(
                node.value, {}
            )
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            dotted = _dotted(node, kinds)
            if dotted:
                found.add((node.lineno, dotted))
    return {(line, name) for line, name in found if name not in _guarded(tree)}


def _kind(value: ast.AST, kinds: dict[str, str]) -> str | None:
    """The TensorRT class of an expression, where that is known."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
        if (
            isinstance(value.func.value, ast.Name)
            and value.func.value.id == "trt"
            and value.func.attr[0].isupper()
        ):
            return value.func.attr
        return MADE.get(value.func.attr)
    if isinstance(value, ast.Name):
        return kinds.get(value.id)
    return kinds.get(value.attr) if isinstance(value, ast.Attribute) else None


def _dotted(node: ast.Attribute, kinds: dict[str, str]) -> str | None:
    """trt.X.Y -> X.Y; engine.serialize -> ICudaEngine.serialize; anything else None."""
    parts, base = [node.attr], node.value
    while isinstance(base, ast.Attribute) and _kind(base, kinds) is None:
        parts.insert(0, base.attr)
        base = base.value
    if isinstance(base, ast.Name) and base.id == "trt":
        return None if parts[0].startswith("__") else ".".join(parts)
    kind = _kind(base, kinds)
    if isinstance(base, ast.Attribute) and isinstance(base.value, ast.Name) and base.value.id == "meta":
        return None  # meta.engine is a runtime.records.EngineRecord
    name = base.id if isinstance(base, ast.Name) else getattr(base, "attr", "")
    if kind is None or parts[0] in OURS.get(name, ()) or (kind == "DataType" and parts[0] == "name"):
        return None
    return f"{kind}.{parts[0]}"


def _guarded(tree: ast.AST) -> set[str]:
    """X.Y of every hasattr(trt.X, "Y")."""
    return {
        f"{_dotted(call.args[0], {})}.{call.args[1].value}"
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == "hasattr"
        and isinstance(call.args[0], ast.Attribute)
        and isinstance(call.args[1], ast.Constant)
    }


def missing(source: str, known: dict[str, set[str]]) -> list[str]:
    """What some version does not have, with the line and the versions that do."""
    return [
        f"line {line}: {name} is in {', '.join(sorted(known.get(name, ()))) or 'none'}"
        for line, name in sorted(used(source))
        if known.get(name, set()) != set(VERSIONS)
    ]


def modules_that_use_tensorrt() -> list[Path]:
    return [
        path
        for folder in ("export", "runtime", "bench")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if re.search(r"(?<!export\.)(?<!from \.\.)\btrt\.", path.read_text(encoding="utf-8"))
        and used(path.read_text(encoding="utf-8"))
    ]


def test_the_modules_that_call_tensorrt_are_looked_at():
    names = {str(path.relative_to(ROOT)) for path in modules_that_use_tensorrt()}
    assert names >= {
        "export/trt/build.py",
        "export/trt/worker.py",
        "runtime/backends/tensorrt/messages.py",
        "runtime/backends/tensorrt/backend.py",
        "runtime/backends/tensorrt/slots.py",
    }


@pytest.mark.parametrize("path", modules_that_use_tensorrt(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_name_is_in_every_version(path, known):
    assert missing(path.read_text(encoding="utf-8"), known) == []


@pytest.mark.parametrize(
    ("file", "at_least"),
    [
        ("export/trt/build.py", 30),
        ("runtime/backends/tensorrt/backend.py", 18),
        ("runtime/backends/tensorrt/slots.py", 5),
    ],
)
def test_names_are_really_found(file, at_least):
    assert len({name for _, name in used((ROOT / file).read_text(encoding="utf-8"))}) >= at_least


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("trt.BuilderFlag.FASTER", "BuilderFlag.FASTER"),
        ("trt.BuilderFlag.FP16", "BuilderFlag.FP16"),  # only in 10
        ("builder = trt.Builder(log)\nbuilder.build_cuda_engine(1)", "Builder.build_cuda_engine"),
        ("config.max_workspace_size = 1", "IBuilderConfig.max_workspace_size"),
        ("x = runtime.deserialize_cuda_engine(b)\nx.num_bindings", "ICudaEngine.num_bindings"),
        ("self._context.execute_async_v2([])", "IExecutionContext.execute_async_v2"),
        ("trt.OnnxParser(network, log).supports_model(b)", "OnnxParser.supports_model"),  # only in 10
        (
            "runtime.deserialize_cuda_engine(b).create_engine_inspector().information()",
            "EngineInspector.information",
        ),
    ],
)
def test_name_that_a_version_lacks_is_found(source, name, known):
    assert len(missing(source, known)) == 1 and name in missing(source, known)[0]


def test_the_metadatas_engine_is_not_tensorrts(known):
    assert missing("meta.engine.flags.version_compat", known) == []
    assert missing("self.engine.flags", known) != []


def test_name_asked_for_first_is_fine(known):
    source = 'if hasattr(trt.BuilderFlag, "FP16"):\n    config.set_flag(trt.BuilderFlag.FP16)'
    assert missing(source, known) == []
    assert missing(source.replace("hasattr", "print"), known) != []


def test_the_copy_in_the_tests_is_what_the_listing_says():
    listing = outside.needed("tensorrt_api")
    assert tensorrt_surface.condense(listing) == json.loads((DOUBLES / "tensorrt_surface.json").read_text())
