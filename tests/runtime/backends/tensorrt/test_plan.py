"""Whether a plan fits, decided from its head, its metadata and what the machine is; without TensorRT and
without a GPU.
"""

import sys
from types import SimpleNamespace

import doubles
import pytest

from runtime.artifact import Metadata, sidecar_bytes, sidecar_of
from runtime.backends.tensorrt import plan
from runtime.errors import ArtifactError, MissingError, UsageError


@pytest.fixture
def make(tmp_path):
    """A function that writes a plan of nothing but a head, with metadata beside it: make(wrote, magic,
    **metadata).
    """
    onnx = tmp_path / "student.onnx"
    onnx.write_bytes(b"onnx")

    def write(wrote=(10, 3, 0, 30), magic=b"ftrt", **engine):
        content = magic + bytes(20) + bytes(wrote) + b"body"
        path = tmp_path / "student.plan"
        path.write_bytes(content)
        sidecar_of(path).write_bytes(sidecar_bytes(Metadata(engine=doubles.about(content, onnx, **engine))))
        return path

    return write


@pytest.fixture
def installed(monkeypatch):
    """installed(flavor, version) makes a module of that version importable."""

    def put(flavor, version):
        name = plan.MODULES[flavor]
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__version__=version, __name__=name))

    return put


@pytest.mark.parametrize(
    ("head", "flavor", "version"),
    [
        (b"ftrt" + bytes(20) + bytes([10, 3, 0, 30]), "tensorrt", (10, 3, 0, 30)),
        (b"vtrt" + bytes(20) + bytes([1, 7, 1, 116]), "rtx", (1, 7, 1, 116)),
    ],
)
def test_head_says_flavor_and_version(tmp_path, head, flavor, version):
    (tmp_path / "x.plan").write_bytes(head + b"anything")
    assert plan.read_header(tmp_path / "x.plan") == (flavor, version)


@pytest.mark.parametrize(
    ("here", "fits"),
    [
        ("10.3.0.30", True),
        ("10.3.0", True),
        ("10.3.0.31", False),
        ("10.3.1", False),
        ("10.13.0.30", False),
        ("11.3.0.30", False),
    ],
)
def test_plan_runs_on_its_own_version_only(make, installed, here, fits):
    path = make()
    installed("tensorrt", here)
    if fits:
        assert plan.require_version(path, plan.preflight(path)).__version__ == here
        return
    with pytest.raises(ArtifactError, match=f"by TensorRT 10.3.0.30, here is {here}; .*--rebuild {path}"):
        plan.require_version(path, plan.preflight(path))


@pytest.mark.parametrize(
    ("here", "fits"),
    [("10.3.0.30", True), ("10.13.0", True), ("11.4.0.106", True), ("9.3.0.30", False), ("10.2.0.99", False)],
)
def test_version_compatible_plan_runs_on_later_versions(make, installed, here, fits):
    path = make(flags={"version_compat": True})
    installed("tensorrt", here)
    if fits:
        plan.require_version(path, plan.preflight(path))
    else:
        with pytest.raises(ArtifactError, match="on its own version or a later one"):
            plan.require_version(path, plan.preflight(path))


def test_version_compatible_plan_may_begin_with_something_else(make, installed):
    path = make(magic=b"\x7fELF", flags={"version_compat": True})
    installed("tensorrt", "11.4.0.106")
    meta = plan.preflight(path)
    assert plan.header(path) == ("tensorrt", None)
    plan.require_version(path, meta)
    with pytest.raises(ArtifactError, match="not a TensorRT plan"):
        plan.preflight(make(magic=b"\x7fELF"))


def test_plan_of_the_other_product_asks_for_that_one(make, installed, monkeypatch):
    path = make((1, 7, 1, 116), b"vtrt", flavor="rtx", version="1.7.1.116")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    installed("tensorrt", "10.3.0")
    with pytest.raises(
        MissingError, match=r'TensorRT for RTX, which is not here .*pip install "large2small\[rtx\]"'
    ):
        plan.require_version(path, plan.preflight(path))
    installed("rtx", "1.7.1.116")
    assert plan.require_version(path, plan.preflight(path)).__name__ == "tensorrt_rtx_bindings"


def test_library_that_does_not_load_is_missing_too(monkeypatch):
    def fail(name):
        raise OSError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(plan.importlib, "import_module", fail)
    with pytest.raises(MissingError, match=r"libnvinfer.so.10.*large2small\[tensorrt\]"):
        plan.tensorrt_module("tensorrt")


@pytest.mark.parametrize(
    ("level", "needs", "has", "fits"),
    [
        ("none", "8.6", (8, 6), True),
        ("none", "8.6", (8, 9), False),
        ("none", "8.6", (9, 0), False),
        ("same_cc", "8.6", (8, 6), True),
        ("same_cc", "8.6", (8, 7), False),
        ("ampere_plus", "8.6", (8, 0), True),
        ("ampere_plus", "8.6", (12, 0), True),
        ("ampere_plus", "8.6", (7, 5), False),
    ],
)
def test_gpu_a_plan_fits(make, level, needs, has, fits):
    path = make(compute_capability=needs, flags={"hardware_compat": level})
    device = SimpleNamespace(name="this GPU", compute_capability=has)
    if fits:
        plan.require_gpu(path, plan.preflight(path), device)
        return
    with pytest.raises(
        ArtifactError, match=rf"for compute capability {needs} .*this GPU has {has[0]}.{has[1]}"
    ):
        plan.require_gpu(path, plan.preflight(path), device)


@pytest.mark.parametrize("engine", [{"compute_capability": None}, {"flavor": "rtx"}])
def test_plan_not_bound_to_a_gpu(make, engine):
    path = make(**engine)
    plan.require_gpu(path, plan.preflight(path), SimpleNamespace(name="any", compute_capability=(8, 6)))
    plan.require_gpu(
        path, Metadata(precision="unknown"), SimpleNamespace(name="any", compute_capability=(8, 6))
    )


def test_gpu_that_tensorrt_for_rtx_does_not_name_is_said():
    hopper, ada = (SimpleNamespace(compute_capability=capability) for capability in ((9, 0), (8, 9)))
    assert "this one has 9.0" in plan.unsupported_gpu("rtx", hopper)
    assert plan.unsupported_gpu("rtx", ada) == plan.unsupported_gpu("tensorrt", hopper) == ""


@pytest.mark.parametrize("device", ["cpu", "cuda:", "cuda:x", "gpu", "", "cuda:-1"])
def test_device_that_is_not_a_gpu(device):
    if device == "cuda:":
        assert plan.gpu_index(device) == 0
        return
    with pytest.raises(UsageError, match="Give cuda or cuda:INDEX"):
        plan.gpu_index(device)
