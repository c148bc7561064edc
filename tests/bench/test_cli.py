"""The `bench` command: help, subcommands, exit codes."""

import json
import subprocess
import sys

import pytest

from bench import __main__ as cli

BLOCKED = """
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "timm", "onnx", "distill", "export"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
runpy.run_module("bench", run_name="__main__")
"""
"""`python -m bench`, as if torch, timm, onnx and the other folders were not installed."""


def test_help_lists_every_subcommand_with_examples(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "distill bench latency --engine student.onnx" in out
    for name in ("latency", "accuracy", "table", "compare", "gate", "report"):
        assert f"\n  {name} " in out


@pytest.mark.parametrize("name", ["latency", "accuracy", "table", "compare", "gate"])
def test_help_of_a_subcommand_has_examples_and_flags(name, capsys):
    assert cli.main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"distill bench {name} --" in out
    assert "--batch" in out
    assert "{prog}" not in out


def test_an_unknown_subcommand_suggests_the_nearest(capsys):
    assert cli.main(["latncy"]) == 2
    assert (
        capsys.readouterr().err == "error: no command 'latncy'; did you mean latency? "
        "Commands: latency, accuracy, table, compare, gate, report, card, robustness."
        " See distill bench --help\n"
    )


def test_no_subcommand_is_a_usage_error(capsys):
    assert cli.main([]) == 2
    said = capsys.readouterr()
    assert "latency" in said.out and "no command given" in said.err


def test_an_unknown_flag_suggests_the_nearest(capsys):
    assert cli.main(["latency", "--engin", "x.onnx"]) == 2
    assert "did you mean --engine?" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["-b", "--batch", "--batch-size"])
def test_the_batch_has_its_usual_names(flag, student, capsys):
    assert (
        cli.main(
            ["latency", "--engine", str(student), flag, "3", "--iterations", "1", "--threads", "1", "--json"]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["batch"] == 3


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["latency"], 2, "--engine"),
        (["latency", "--engine", "missing.onnx"], 2, "missing.onnx: no such file"),
        (
            ["latency", "--engine", "missing.onnx", "--batch", "two"],
            2,
            "--batch two: expected a whole number",
        ),
        (["latency", "--engine", "missing.onnx", "--batch", "0"], 2, "--batch 0: expected 1 or more"),
        (["accuracy", "--engine", "missing.onnx", "--data", "missing"], 2, "missing: no such folder"),
    ],
)
def test_a_failure_is_one_line_and_its_exit_code(argv, code, words, capsys):
    assert cli.main(argv) == code
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert words in err


def test_with_json_a_failure_is_an_object_too(capsys):
    assert cli.main(["latency", "--engine", "missing.onnx", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["exit_code"] == 2


def test_a_device_that_is_not_here_exits_3(student, capsys):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("CUDA is here")
    assert cli.main(["latency", "--engine", str(student), "--device", "cuda"]) == 3
    assert "CUDAExecutionProvider" in capsys.readouterr().err


def test_a_damaged_file_exits_4(tmp_path, capsys):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    assert cli.main(["latency", "--engine", str(path)]) == 4
    err = capsys.readouterr().err
    assert "broken.onnx: not an ONNX file, or cut short" in err and "distill export onnx CKPT" in err


def test_python_m_bench_works_without_torch_timm_and_onnx(student):
    argv = ["latency", "--engine", str(student), "--iterations", "2", "--warmup", "0", "--json"]
    done = subprocess.run([sys.executable, "-c", BLOCKED, *argv], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["compute"]["n"] == 2


def test_help_imports_no_engine_and_no_other_subcommand():
    code = (
        "import sys, bench.__main__; bench.__main__.main(['--help'])\n"
        "unwanted = {'onnxruntime', 'rich', 'tyro', 'PIL', 'bench.clock.latency', 'bench.commands.latency'}\n"
        "sys.exit(', '.join(unwanted & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
