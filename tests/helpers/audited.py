"""Reads hostile files while an audit hook refuses processes, connections and paths outside of given folders.

In:  the working folder, which is empty.
Out: on stdout JSON: what was read and how that ended, what the hook refused while hostile files were read,
and what it refused afterwards of what it must refuse.
Elsewhere: what is expected of that (tests/test_audited.py).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import tiny_onnx
import torch
from onnx import TensorProto, helper
from PIL import Image

import runtime
from distill import checkpoint as checkpoints
from distill import models
from distill import recipe as recipes
from distill.checkpoint import Checkpoint
from export.graph.read import read_onnx
from runtime.artifact import KEY, read_sidecar
from runtime.cli.front_door import main
from runtime.errors import Large2SmallError
from runtime.images import open_images
from runtime.images.decode import open_rgb
from runtime.preprocess import Preprocess

STARTS = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.spawn")
CONNECTIONS = ("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto", "urllib.Request")
CODE = "touch PWNED"
OUTSIDE = ["/etc/passwd", "../../../../../../etc/passwd", "file:///etc/passwd", "/proc/self/mem", "/dev/zero"]
"""Places that no file may have opened."""
SPECS = [
    *("wds/x:pipe:touch PWNED;#", "WDS/x:pipe:touch PWNED", "wds/x:https://example.com/{0..1}.tar"),
    *("hfds/someone/dataset", "hfids/someone/dataset", "tfds/mnist", "torch/cifar10:set", "$(touch PWNED)"),
    *("https://example.com/photos.tar", "/proc", "/proc/self/fd", "npz:hostile/fifo", "/dev/zero"),
]
ARGUMENTS = {
    "checkpoint_path": "/etc/passwd",
    "cache_dir": "/etc",
    "pretrained": True,
    "model_cls": "os.system",
}


class Call:
    """An object whose pickle calls something."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.called = function, arguments

    def __reduce__(self) -> tuple:
        return self.called


CALLS = {
    "system": Call(os.system, CODE),
    "popen": Call(subprocess.Popen, CODE),
    "exec": Call(exec, f"import os; os.system({CODE!r})"),
    "eval": Call(eval, f"__import__('os').system({CODE!r})"),
    "open": Call(open, "/etc/passwd"),
    "torch": Call(torch.load, "/etc/passwd"),
}


def write_checkpoints(folder: Path) -> None:
    weights = models.build("resnet20", 4, {"width": 0.25}).state_dict()
    shape = Preprocess((3, 16, 16), "bilinear", 1.0)
    names = ["ant", "bee", "cat", "dog"]

    def save(name: str, spec: str = "digits", **changes: object) -> None:
        lineage = {"data": {"train_spec": spec, "val_spec": spec, "val_sha256": "0" * 64}, "recipe": {}}
        lineage |= {"checkpoint": {"file": spec, "sha256": "0" * 64}, "teacher": {"file": spec}}
        values = {"model": "resnet20", "model_args": {"width": 0.25}} | changes
        made = Checkpoint(values["model"], values["model_args"], weights, shape, names, lineage=lineage)
        checkpoints.save(made, folder / f"{name}.pth")

    for number, spec in enumerate([*SPECS, *OUTSIDE]):
        save(f"spec{number}", spec)
    for name, value in ARGUMENTS.items():
        save(f"argument_{name}", model_args={"width": 0.25, name: value})
    for number, name in enumerate(["hf-hub:someone/model", "local-dir:/etc", "../../etc/passwd"]):
        save(f"model{number}", model=name)
    for name, call in CALLS.items():
        torch.save({"state_dict": call}, folder / f"{name}.pth")
        (folder / f"{name}_old.pth").write_bytes(pickle.dumps({"state_dict": call}))


def write_onnx(folder: Path) -> None:
    for number, place in enumerate([*OUTSIDE, "*/_ORT_MEM_ADDR_/*", "pipe:touch PWNED", "fifo"]):
        tiny_onnx.write(folder / f"external{number}.onnx", meta=tiny_onnx.metadata())
        model = onnx.load(folder / f"external{number}.onnx")
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": place, "offset": "0", "length": "16"}.items():
            tensor.external_data.add(key=key, value=value)
        (folder / f"external{number}.onnx").write_bytes(model.SerializeToString())
    for number, domain in enumerate(["ai.onnx.contrib", "com.microsoft", "os"]):
        model = onnx.load(folder.parent / "good.onnx")
        node = helper.make_node("PyOp", [model.graph.input[0].name], ["more"], domain=domain, code=CODE)
        model.graph.node.append(node)
        model.opset_import.append(helper.make_opsetid(domain, 1))
        (folder / f"operator{number}.onnx").write_bytes(model.SerializeToString())


def write_sidecars(folder: Path) -> None:
    good = json.loads(tiny_onnx.metadata().to_map()[KEY])
    for number, place in enumerate([*OUTSIDE, "pipe:touch PWNED"]):
        (folder / f"p{number}.plan").write_bytes(b"plan")
        values = good | {"file": place, "onnx": {"file": place}, "engine": {"library": place}}
        (folder / f"p{number}.plan.json").write_text(json.dumps(values))


def write_arrays(folder: Path) -> None:
    images = np.zeros((4, 8, 8, 3), np.uint8)
    for name, call in CALLS.items():
        evil = np.array([call] * 4, object)
        np.savez(folder / f"names_{name}.npz", x=images, y=np.arange(4), class_names=evil)
        np.savez(folder / f"images_{name}.npz", x=evil, y=np.arange(4))
    with zipfile.ZipFile(folder / "climbs.npz", "w") as archive:
        archive.writestr("../../../climbed.npy", b"x")


def write_recipes(folder: Path) -> None:
    tags = ["apply:os.system ['touch PWNED']", "new:subprocess.Popen ['touch PWNED']"]
    for number, tag in enumerate(tags):
        (folder / f"tag{number}.yaml").write_text(f"data: !!python/object/{tag}\n")
    (folder / "name.yaml").write_text("data: !!python/name:os.system\n")
    for number, spec in enumerate(SPECS):
        (folder / f"spec{number}.yaml").write_text(json.dumps({"data": spec, "student": "resnet20"}))


def write_images(folder: Path) -> None:
    contents = {
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touch PWNED) (w) file\n%%EOF\n",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "mvg": b"push graphic-context\nimage over 0,0 0,0 'ephemeral:/etc/passwd'\npop graphic-context\n",
        "wmf": b"\xd7\xcd\xc6\x9a" + bytes(60),
        "pickle": pickle.dumps(CALLS["system"]),
    }
    for name, content in contents.items():
        (folder / f"{name}.png").write_bytes(content)


def read_command(*words: str) -> Callable[[str], str]:
    def read(path: str) -> str:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
            code = main([*words, path])
        return f"exit {code}: {said.getvalue()[-300:]}"

    return read


def classify(path: str) -> None:
    with runtime.load(path) as student:
        student.classify([np.zeros((8, 8, 3), np.uint8)])


READERS: dict[str, tuple[Callable, ...]] = {
    ".pth": (checkpoints.load_any, read_command("inspect"), read_command("eval", "--num-classes", "4")),
    ".onnx": (classify, lambda path: read_onnx(Path(path)), read_command("inspect")),
    ".plan": (read_sidecar, read_command("inspect")),
    ".npz": (lambda path: open_images(f"npz:{path}", "val"),),
    ".yaml": (recipes.load, read_command("train", "--recipe")),
    ".png": (open_rgb,),
}
"""What reads a file of each kind."""
refused: list[str] | None = None
"""What the hook refused, while it watches."""


def watch(event: str, arguments: tuple) -> None:
    if refused is None:
        return
    if event == "open":
        if isinstance(arguments[0], int) or any(map(_place(arguments[0]).startswith, ALLOWED)):
            return
    elif not event.startswith((*STARTS, *CONNECTIONS)):
        return
    refused.append(f"{event} {arguments!r}"[:300])
    raise PermissionError(f"refused by the test: {event}")


def _place(path: str | bytes) -> str:
    return os.path.abspath(os.fsdecode(path))


OURS = str(Path(runtime.__file__).parents[1])
ALLOWED = [os.path.abspath(each) + os.sep for each in [sys.prefix, sys.base_prefix, *sys.path, OURS, "."]]
"""Where Python's own modules and those of this project are, and the folder of the files."""
ALLOWED.append(os.devnull)


def read(path: Path) -> list[str]:
    """How each reader of this kind of file ended."""
    ends = []
    for reader in READERS[path.suffix]:
        try:
            answer = reader(str(path))
            ends.append(answer if isinstance(answer, str) else "read")
        except Large2SmallError as error:
            ends.append(f"{type(error).__name__}: {error}"[:300])
        except Exception as error:
            ends.append(f"CRASH {type(error).__name__}: {error}"[:300])
    return ends


def write_good() -> None:
    """A file of each kind that is as it should be: what reads it imports what it needs."""
    tiny_onnx.write("good.onnx", meta=tiny_onnx.metadata())
    np.savez("good.npz", x=np.zeros((4, 8, 8, 3), np.uint8), y=np.arange(4))
    Image.new("RGB", (8, 8)).save("good.png")
    Path("good.yaml").write_text("student: resnet20\n")


def run() -> dict[str, object]:
    global refused
    write_good()
    hostile = Path("hostile")
    hostile.mkdir()
    os.mkfifo(hostile / "fifo")
    for write in (write_checkpoints, write_onnx, write_sidecars, write_arrays, write_recipes, write_images):
        write(hostile)
    for good in sorted(Path(".").glob("good.*")):
        read(good)
    sys.addaudithook(watch)
    refused = []
    ends = {each.name: read(each) for each in sorted(hostile.iterdir()) if each.suffix in READERS}
    during, refused = refused, []
    for control in (
        lambda: Path("/etc/passwd").read_bytes(),
        lambda: os.system("true"),
        lambda: subprocess.run(["true"]),
    ):
        with contextlib.suppress(PermissionError):
            control()
    return {"ends": ends, "refused": during, "controls": len(refused), "left": os.listdir(".")}


if __name__ == "__main__":
    print(json.dumps(run()))
