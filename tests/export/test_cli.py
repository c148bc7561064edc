"""`python -m export`: the front door with its first word typed already."""

import re
import subprocess
import sys
from pathlib import Path

from export import __main__ as cli


def test_unknown_command_names_the_nearest_and_exits_2(capsys):
    assert cli.main(["onxn", "best.pth"]) == 2
    assert "did you mean onnx?" in capsys.readouterr().err


def test_help_shows_no_command_that_a_shell_would_swallow(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "distill export onnx best.pth --int8" in text
    assert not re.search(r"(^|[`:])\s*export ", text, re.MULTILINE)


def test_no_program_has_the_name_of_a_builtin_of_posix_shells():
    """One that is installed under such a name cannot be called from them."""
    known = "alias bg cd command eval exec exit export fg jobs read set shift test times trap umask unset"
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    scripts = re.findall(r"^(\w+) = \"\w+\.__main__:main\"$", text, flags=re.MULTILINE)
    assert "distill" in scripts and not set(scripts) & set(known.split())


def test_no_command_prints_the_help_and_exits_2(capsys):
    assert cli.main([]) == 2
    assert "COMMAND" in capsys.readouterr().out


def test_unknown_flag_names_the_nearest_and_exits_2(capsys):
    assert cli.main(["onnx", "best.pth", "--calib-sise", "8"]) == 2
    assert "did you mean --calib-size?" in capsys.readouterr().err


def test_help_of_the_command_imports_neither_torch_nor_timm_nor_onnx():
    code = (
        "import sys\nfrom export.__main__ import main\nmain(['onnx', '--help'])\n"
        "print([m for m in ('torch', 'timm', 'onnx', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--calib-method" in done.stdout and "distill export onnx best.pth" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_python_dash_m_export_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "export", "onnx", "nowhere.pth"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.strip() == "error: nowhere.pth: no such checkpoint"
