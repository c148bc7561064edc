"""What a TensorRT version's Python bindings have, as facts, and classes that have exactly that.

In:  tensorrt_surface.json: names, signatures and enum values of the classes used here, of seven TensorRT
     versions and of TensorRT for RTX 1.7, read from NVIDIA's published bindings (nothing of their code or
     documentation).
Out: `Surface`; `restrict`, which makes a Python class refuse what the version's class does not have or take.

`python tensorrt_surface.py FOLDER` writes the JSON from the full listing.
"""

import functools
import json
import re
import sys
from pathlib import Path

FILE = Path(__file__).with_suffix(".json")

CLASSES = (
    "Builder",
    "INetworkDefinition",
    "ITensor",
    "IBuilderConfig",
    "IOptimizationProfile",
    "IProgressMonitor",
    "IHostMemory",
    "ITimingCache",
    "OnnxParser",
    "ParserError",
    "Runtime",
    "ICudaEngine",
    "IExecutionContext",
    "EngineInspector",
    "Refitter",
    "OnnxParserRefitter",
    "ILogger",
    "Dims",
)
ENUMS = (
    "BuilderFlag",
    "DataType",
    "ErrorCode",
    "ExecutionContextAllocationStrategy",
    "HardwareCompatibilityLevel",
    "LayerInformationFormat",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "ProfilingVerbosity",
    "TensorFormat",
    "TensorIOMode",
    "TensorLocation",
)
ALIASES = ("bool", "float16", "float32", "int32", "int64", "int8")
VERSIONS = ("10.3", "10.7", "10.9", "10.13", "10.16", "11.0", "11.4")
"""Of `tensorrt`; the listing also has rtx-1.7."""


def condense(folder: Path) -> dict:
    """{"versions": {version: full version}, "entries": [[dotted name, [versions], fact]]} of CLASSES, ENUMS
    and ALIASES.
    """
    listings = {
        version: json.loads((folder / f"tensorrt-{version}.json").read_text()) for version in VERSIONS
    }
    listings["rtx-1.7"] = json.loads((folder / "tensorrt_rtx-1.7.json").read_text())
    entries: dict[tuple[str, str], list[str]] = {}
    for version, listing in listings.items():
        for name in (*CLASSES, *ENUMS, *ALIASES):
            for dotted, fact in _facts(name, listing.get(name)):
                entries.setdefault((dotted, json.dumps(fact)), []).append(version)
    return {
        "versions": {version: listing["_meta"]["version"] for version, listing in listings.items()},
        "entries": [
            [name, "all" if len(where) == len(listings) else where, json.loads(fact)]
            for (name, fact), where in sorted(entries.items())
        ],
    }


def _facts(name: str, found: dict | None):
    if found is None:
        return
    if found["kind"] == "alias":
        yield name, {"of": found["of"]}
        return
    yield name, {"kind": found["kind"]}
    for member, fact in found["members"].items():
        if found["kind"] == "enum":
            yield f"{name}.{member}", {"value": fact}
        elif name == "INetworkDefinition" and member.startswith("add_"):
            continue  # networks come from the parser
        elif fact["kind"] in ("method", "staticmethod"):
            yield f"{name}.{member}", {"signatures": fact.get("overloads") or [fact["signature"]]}
        elif fact["kind"] == "property":
            yield f"{name}.{member}", {"readonly": fact["readonly"], "type": fact.get("type")}
        elif fact["kind"] in ("enum", "constant"):
            yield f"{name}.{member}", {"kind": fact["kind"], "members": fact.get("members")}


class Surface:
    """The names of one version."""

    def __init__(self, version: str) -> None:
        content = json.loads(FILE.read_text())
        if version not in content["versions"]:
            raise ValueError(f"version {version!r}: the listing has {', '.join(content['versions'])}")
        self.version, self.full_version = version, content["versions"][version]
        self.facts = {
            name: fact for name, where, fact in content["entries"] if where == "all" or version in where
        }

    def members(self, name: str) -> dict[str, dict]:
        """Member -> fact of a class or enum."""
        return {
            dotted[len(name) + 1 :]: fact
            for dotted, fact in self.facts.items()
            if dotted.startswith(f"{name}.")
        }


def restrict(base: type, name: str, surface: Surface, types: dict[str, type]) -> type:
    """A subclass of `base` with only the members of TensorRT's class `name`, whose methods take only what
    TensorRT's take.

    types: classes and enums by TensorRT's names, filled while they are made, for checking arguments.
    """
    members = surface.members(name)
    body: dict = {}
    for member in [each for each in dir(base) if not each.startswith("_")]:
        if member not in members:
            body[member] = _absent(name, member, surface)
    for member, fact in members.items():
        own = getattr(base, member, None)
        is_private = member.startswith("__") and (
            member != "__init__" or "*args" in fact.get("signatures", [""])[0]
        )
        if "signatures" in fact and callable(own) and not is_private:  # made by TensorRT only: *args
            body[member] = _checked(own, member, fact["signatures"], types)

    def __setattr__(self, attribute, value):
        if not attribute.startswith("_") and type(self) is made:  # a Python subclass may hold what it likes
            fact = members.get(attribute)
            if fact is None or "readonly" not in fact:
                raise AttributeError(f"'tensorrt.{name}' object has no attribute '{attribute}'")
            if fact["readonly"]:
                raise AttributeError(f"can't set attribute '{attribute}' of 'tensorrt.{name}'")
            if not _fits(value, fact["type"] or "object", types):
                raise TypeError(
                    f"(): incompatible function arguments: {name}.{attribute} is a {fact['type']}, not"
                    f" {value!r}"
                )
        object.__setattr__(self, attribute, value)

    def __getattr__(self, attribute):
        if attribute in members:
            raise NotImplementedError(f"{name}.{attribute} is in TensorRT, but not in this test double")
        raise AttributeError(f"'tensorrt.{name}' object has no attribute '{attribute}'")

    made = type(
        name,
        (base,),
        {**body, "__setattr__": __setattr__, "__getattr__": __getattr__, "__module__": "tensorrt"},
    )
    types[name] = made
    return made


def _absent(name: str, member: str, surface: Surface) -> property:
    def refuse(self):
        raise AttributeError(
            f"'tensorrt.{name}' object has no attribute '{member}' (TensorRT {surface.version})"
        )

    return property(refuse)


def _checked(function, member: str, signatures: list[str], types: dict[str, type]):
    overloads = [parameters(signature) for signature in signatures]

    @functools.wraps(function)
    def call(self, *given, **named):
        if not any(_accepts(overload, given, named, types) for overload in overloads):
            raise TypeError(
                f"{member}(): incompatible function arguments. The following argument types are supported: "
                f"{'; '.join(signatures)}. Invoked with: {given} {named}"
            )
        return function(self, *given, **named)

    return call


def parameters(signature: str) -> list[tuple[str, str, bool]]:
    """(name, type, has a default) of each parameter but self."""
    inner = signature[
        signature.index("(") + 1 : signature.rindex(") ->") if ") ->" in signature else signature.rindex(")")
    ]
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(inner):
        depth += (letter in "[(<") - (letter in "])>")
        if letter == "," and not depth:
            parts.append(inner[start:place])
            start = place + 1
    parts.append(inner[start:])
    found = [
        re.match(r"\s*(\w+)\s*(?::\s*([^=]+?))?\s*(=.*)?$", part, re.DOTALL) for part in parts if part.strip()
    ]
    return [
        (match[1], match[2] or "object", match[3] is not None)
        for match in found
        if match and match[1] not in ("self", "this")
    ]


def _accepts(
    overload: list[tuple[str, str, bool]], given: tuple, named: dict, types: dict[str, type]
) -> bool:
    names = [name for name, _, _ in overload]
    if len(given) > len(names) or set(named) - set(names[len(given) :]):
        return False
    values = dict(zip(names, given, strict=False)) | named
    return all(name in values or optional for name, _, optional in overload) and all(
        _fits(values[name], kind, types) for name, kind, _ in overload if name in values
    )


def _fits(value: object, kind: str, types: dict[str, type]) -> bool:
    """Whether pybind11 would convert the value; kinds that are not known here are taken."""
    kind = kind.strip().split("::")[-1]
    if kind in types:
        known = types[kind]
        shape_like = (
            kind == "Dims" and isinstance(value, (tuple, list)) and all(type(each) is int for each in value)
        )
        return isinstance(value, known) or shape_like
    plain = {
        "int": (int,),
        "bool": (bool,),
        "str": (str,),
        "float": (float, int),
        "tuple": (tuple,),
        "list": (list,),
        "buffer": (bytes, bytearray, memoryview),
    }
    if kind == "int":
        return hasattr(value, "__index__") and not isinstance(value, str)
    if kind == "str" and value is None:  # `path: str = None`
        return True
    if kind == "buffer":
        return isinstance(value, plain["buffer"]) or type(value).__name__ in (
            "mmap",
            "IHostMemory",
            "ndarray",
        )
    return not kind.isidentifier() or kind not in plain or isinstance(value, plain[kind])


if __name__ == "__main__":
    lines = json.dumps(condense(Path(sys.argv[1])), indent=None, separators=(",", ":")).replace(
        '],["', '],\n["'
    )
    FILE.write_text(lines + "\n")
