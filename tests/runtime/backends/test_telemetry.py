"""Nothing here reports home: telemetry of ONNX Runtime and OpenVINO is off unless the user turns it on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_onnx import metadata, write

RUN = """
import os, sys, warnings
import numpy as np
warnings.simplefilter("ignore")
import runtime
opened = runtime.load(sys.argv[1], backend=sys.argv[2])
opened.logits(np.zeros([size or 1 for size in opened.input_shape], np.float32))
print(os.environ.get("ORT_DISABLE_TELEMETRY"))
"""


def run(home: Path, engine: str, **settings: str) -> tuple[str, list[str]]:
    """(ORT_DISABLE_TELEMETRY in the process, files it left in an empty home)."""
    home.mkdir()
    write(home.parent / "net.onnx", meta=metadata())
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"} | settings
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(home.parent / "net.onnx"), engine],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip(), sorted(str(each) for each in home.rglob("*") if each.is_file())


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_opening_and_running_a_file_leaves_nothing_in_the_home(engine, tmp_path):
    pytest.importorskip(engine)
    value, left = run(tmp_path / "home", engine)
    assert left == []
    assert value == ("1" if engine == "onnxruntime" else "None")


def test_the_user_may_turn_it_on(tmp_path):
    """The variable stays as the user set it; what the engine then writes, and when, is its own affair."""
    value, _ = run(tmp_path / "home", "onnxruntime", ORT_DISABLE_TELEMETRY="0")
    assert value == "0"


def test_consent_to_openvino_is_respected(tmp_path):
    """Its identifier is then in the home: the first test would find it."""
    pytest.importorskip("openvino_telemetry")
    code = (
        "import sys\n"
        "from openvino_telemetry.utils import opt_in_checker as found\n"
        "checker = found.OptInChecker()\n"
        "checker.create_or_check_consent_dir()\n"
        "checker.update_result(found.ConsentCheckResult.ACCEPTED)\n"
        "import openvino_telemetry.main as main\n"
        "main.Telemetry.send_event = lambda *_, **__: None\n"
        "from runtime.backends.telemetry import openvino\n"
        "print(openvino.tools.ovc.telemetry_utils.tm.__name__)\n"
    )
    environment = os.environ | {"HOME": str(tmp_path), "CI": ""}
    for said, expected in (
        (code, "openvino_telemetry"),
        (code.replace("ACCEPTED", "DECLINED"), "openvino.tools.ovc.telemetry_stub"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", said], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.split()[-1] == expected


def test_the_engines_are_imported_in_one_place():
    root = Path(__file__).parents[3]
    importing = [
        str(path.relative_to(root))
        for folder in ("runtime", "export", "bench", "distill")
        for path in (root / folder).rglob("*.py")
        if any(
            line.strip().startswith(
                ("import onnxruntime", "from onnxruntime", "import openvino", "from openvino ")
            )
            for line in path.read_text(encoding="utf-8").splitlines()
        )
    ]
    assert importing == []  # telemetry.py imports them by name
