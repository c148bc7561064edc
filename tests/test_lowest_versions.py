"""The lowest versions that pyproject.toml allows, read for `make test-oldest`."""

import ast
import re
import sys

import lowest_versions
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

TEXT = lowest_versions.PYPROJECT.read_text(encoding="utf-8")


def project(*dependencies, extra=()):
    first, second = ("".join(f'"{each}", ' for each in some) for some in (dependencies, extra))
    optional = f"[project.optional-dependencies]\nall = [{second}]"
    return f'[project]\nname = "toy"\ndependencies = [{first}]\n{optional}'


def test_every_bound_becomes_one_line():
    text = project(
        "one>=1.2", "two>=3; sys_platform == 'linux'", extra=("three>=0.1", "toy[all]", "one>=1.2")
    )
    assert lowest_versions.constraints(text) == [
        "one==1.2",
        "three==0.1",
        "two==3; sys_platform == 'linux'",
    ]


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("bare", "'bare': expected NAME>=VERSION"),
        ("one>=2", "two lower bounds, one==1 and one==2"),
        ("x<2", "x<2"),
    ],
)
def test_what_has_no_lowest_version_is_named(extra, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        lowest_versions.constraints(project("one>=1", extra=(extra,)))


def test_the_libraries_that_training_imports_are_declared():
    names = {line.split("==")[0] for line in lowest_versions.constraints(TEXT)}
    imported = set()
    for path in (lowest_versions.PYPROJECT.parent / "distill").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                imported.add(node.module.partition(".")[0])
    packages = {"PIL": "pillow", "yaml": "pyyaml", "mlflow": "mlflow-skinny", "sklearn": "scikit-learn"}
    own = {"distill", "export", "runtime", "bench", "large2small"}
    brought = {"triton", "markupsafe"}  # by torch, on Linux, and by jinja2, whose text it is
    outside = imported - set(sys.stdlib_module_names) - own - brought
    assert {"torch", "timm", "huggingface_hub"} <= outside
    assert {packages.get(name, name) for name in outside} <= names


def test_the_projects_own_bounds_are_met_by_what_is_installed():
    from importlib.metadata import PackageNotFoundError, version

    lines = lowest_versions.constraints(TEXT)
    assert len(lines) > 20
    met = 0
    for line in lines:
        wanted = Requirement(line)
        try:
            found = Version(version(wanted.name))
        except PackageNotFoundError:  # an extra that is not for tests
            continue
        (bound,) = wanted.specifier
        assert found >= Version(bound.version), line
        met += 1
    assert met > 12
