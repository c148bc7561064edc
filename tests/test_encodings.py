"""Every command that prints ends well whatever the encoding of its output, and its tables stay straight.

In:  the commands, in this process with a stdout of each encoding, and one of them in a process of its own
with the locale of a bare machine.
"""

import io
import os
import subprocess
import sys

import pytest
import tiny_onnx
from finished_run import write_photos, write_run

from runtime.cli import front_door

ENCODINGS = ("ascii", "cp1252", "cp437", "utf-8")
COMMANDS = {
    "bench accuracy": "bench accuracy a.onnx photos --reference b.onnx",
    "bench table": "bench table a.onnx --data photos --teacher b.onnx --iterations 2 --warmup 1 -o table",
    "bench latency": "bench latency a.onnx --iterations 2 --warmup 1",
    "eval": "eval run --data pictures --device cpu",
    "predict": "predict a.onnx photos/val",
    "predict --csv": "predict a.onnx photos/val --csv",
    "check": "check pictures/val --val-split 0.4",
    "report": "report run --device cpu",
    "models": "models resnet1*",
    "recipes": "recipes",
    "recipes NAME": "recipes demo",
    "env": "env",
    "inspect": "inspect a.onnx --all",
    "inspect RUN": "inspect run",
    "help": "--help",
    "help of a command": "train --help-all",
    "an error": "predict a.onnx Größe-Δ.png",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two artifacts, photographs and a run; one class has a name beyond ASCII."""
    folder = tmp_path_factory.mktemp("place")
    tiny_onnx.write(folder / "a.onnx", meta=tiny_onnx.metadata())
    tiny_onnx.write(folder / "b.onnx", meta=tiny_onnx.metadata(role="teacher"))
    tiny_onnx.write_images(folder / "photos", split="val")
    pictures = write_photos(folder / "pictures", names=("blue", "Größe", "red"))
    write_run(folder / "run", pictures)
    return folder


def printed(words: list[str], encoding: str, monkeypatch) -> tuple[int, str, str]:
    """(exit code, stdout, stderr), both written strictly in this encoding."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        code = front_door.main(words)
    for stream in streams:
        stream.flush()
    return code, *(stream.buffer.getvalue().decode(encoding) for stream in streams)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("command", COMMANDS)
def test_any_encoding_will_do(command, encoding, place, monkeypatch):
    monkeypatch.chdir(place)
    if command == "bench table":
        for made in place.glob("table.*"):
            made.unlink()
    code, out, err = printed(COMMANDS[command].split(), encoding, monkeypatch)
    assert code == (2 if command == "an error" else 0), err
    codes = [word for word in (out + err).replace("\\", " \\").split() if word.startswith(("\\u", "\\x"))]
    assert all(word.startswith(("\\xf6", "\\xdf", "\\u0394")) for word in codes), (
        codes
    )  # the names' own letters
    if command.startswith("bench"):
        assert out.strip() and not codes
        lines = [line for line in out.splitlines() if line.startswith("|")]
        assert len({len(line) for line in lines}) <= 1  # straight columns


@pytest.mark.parametrize(
    "more",
    [{"PYTHONIOENCODING": "cp1252"}, {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}],
    ids=["cp1252", "a bare machine"],
)
def test_a_process_with_that_encoding_ends_well(more, place):
    words = [
        sys.executable,
        "-m",
        "distill",
        "bench",
        "accuracy",
        "a.onnx",
        "photos",
        "--reference",
        "b.onnx",
    ]
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG"))}
    done = subprocess.run(words, env=plain | more, cwd=place, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"D top-1" in done.stdout
