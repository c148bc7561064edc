"""A new engine is one new file: found, chosen by file or flag, measured, refused what it does not read."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.backends import registry

ROOT = Path(__file__).parents[3]

TOY = '''
"""Toy: a file that says how many classes there are. Each class's score is a channel's mean."""

from pathlib import Path

import numpy as np

from runtime.artifact import Metadata
from runtime.backends import Engine, Settings
from runtime.preprocess import Preprocess


class ToyBackend:
    engine, version, provider = "toy", "0.5", "toy arithmetic"

    def __init__(self, path, threads):
        self.path, self.device, self.threads = path, "cpu", threads
        self.input_shape, self.batch_sizes = [None, 3, 8, 8], [(1, 4)]

    def run(self, batch, out=None):
        return batch.mean((2, 3))

    def close(self):
        pass


def open_file(path: Path, settings: Settings):
    names = path.read_text().split()
    spec = Preprocess((3, 8, 8), mean=(0, 0, 0), std=(1, 1, 1))
    return ToyBackend(path, settings.threads), Metadata(model="toy", preprocess=spec, class_names=names)


ENGINE = Engine("toy", "Toy", "a toy", (".toy",), ("threads",), open_file)
'''


@pytest.fixture
def checkout(tmp_path):
    """A copy of runtime and bench with one more file, and a file that its engine opens."""
    for name in ("runtime", "bench"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "runtime" / "backends" / "toy.py").write_text(TOY)
    (tmp_path / "net.toy").write_text("red green blue")
    return tmp_path


def typed(checkout, *words):
    """(exit code, stdout, stderr) of a command in the copy."""
    surroundings = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [sys.executable, *words], cwd=checkout, env=surroundings, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


def test_a_file_with_an_engine_is_all_that_load_needs(checkout):
    code = (
        "import numpy, runtime\n"
        "with runtime.load('net.toy', threads=3) as net:\n"
        "    green = numpy.full((8, 8, 3), (0, 255, 0), numpy.uint8)\n"
        "    print(net.engine, net.threads, net.largest_batch, net.classify(green)[0][0].label)"
    )
    assert typed(checkout, "-c", code) == (0, "toy 0.5 3 4 green\n", "")


@pytest.mark.parametrize("chosen", [[], ["--engine-backend", "toy"]])
def test_bench_latency_measures_it(checkout, chosen):
    words = ["--iterations", "3", "--warmup", "0", "--batch", "2", "--threads", "1", "--json"]
    code, out, err = typed(checkout, "-m", "bench", "latency", "--engine", "net.toy", *chosen, *words)
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert (result["backend"], result["provider"], result["threads"]) == ("toy", "toy arithmetic", 1)
    assert result["compute"]["n"] == result["end_to_end"]["n"] == 3
    assert result["hint"] is result["contexts"] is result["cuda_graph"] is None


def test_what_it_does_not_read_is_refused_by_name(checkout):
    code, _, err = typed(checkout, "-m", "bench", "latency", "--engine", "net.toy", "--contexts", "2")
    assert code == 2 and "--contexts is read by tensorrt only, and net.toy runs on toy" in err
    code, _, err = typed(checkout, "-c", "import runtime; runtime.load('net.toy', hint='throughput')")
    assert code == 1 and "hint='throughput' is read by openvino only, and net.toy runs on toy" in err


def test_it_is_a_choice_of_the_flag_and_refuses_other_files(checkout):
    code, out, _ = typed(checkout, "-m", "bench", "latency", "--help")
    assert code == 0 and "{onnxruntime,openvino,tensorrt,toy}" in out
    code, _, err = typed(
        checkout, "-m", "bench", "latency", "--engine", "net.onnx", "--engine-backend", "toy"
    )
    assert code == 2 and "--engine-backend toy: net.onnx is not a toy" in err


def test_each_engine_of_ours_says_what_it_opens_and_reads():
    found = {name: (engine.suffixes, engine.reads) for name, engine in registry.engines().items()}
    assert found == {
        "onnxruntime": ((".onnx",), ("threads", "provider")),
        "openvino": ((".onnx",), ("threads", "hint")),
        "tensorrt": ((".plan",), ("contexts", "cuda_graph")),
    }
    assert [engine.name for engine in registry.opening(Path("a.onnx"))] == ["onnxruntime", "openvino"]
    assert registry.opening(Path("a.txt")) == []
    assert all(set(engine.reads) <= set(registry.SETTINGS) for engine in registry.engines().values())


def test_looking_for_engines_imports_no_library():
    code = (
        "import sys; from runtime.backends import registry; print(*registry.names())\n"
        "print(*{'onnxruntime', 'openvino', 'tensorrt', 'pycuda', 'cuda', 'onnx', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "onnxruntime openvino tensorrt\n\n"
