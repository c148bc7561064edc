"""The process that builds a plan, without an engine."""

import pytest

from export.trt import process

pytest.importorskip("onnx")


def test_files_of_the_current_folder_with_names_of_modules_are_not_run(tmp_path, monkeypatch):
    for name in ("export", "json", "onnx", "runtime"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the file of a user was run')")
    monkeypatch.chdir(tmp_path)
    with open(tmp_path / "noise", "w+b") as noise, process._child(noise) as child:
        child.communicate("{}\n", timeout=60)  # a task without anything in it, which the worker gets to
        noise.seek(0)
        assert b"KeyError: 'settings'" in noise.read()
