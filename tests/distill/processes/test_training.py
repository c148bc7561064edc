"""Several processes train as one: with the same images in a step the weights are those of a single process.

All processes are forked from one that has imported torch already, and go through all trainings one after the
other, so that the imports are paid for once.
"""

import json
import os
import socket
import subprocess
import sys

import pytest
from tiny_training import write_noise

from distill import checkpoint as checkpoints

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

FORKER = """
import json, os, sys
import distill.run.job, distill.run.labeling
from distill.__main__ import main
for line in sys.stdin:
    request = json.loads(line)
    children = []
    for rank in range(request["size"]):
        child = os.fork()
        if not child:
            for number, name in ((1, "out"), (2, "err")):
                with open(f"{request['log']}.{rank}.{name}", "ab") as log:
                    os.dup2(log.fileno(), number)
            codes = []
            for port, argv in zip(request["ports"], request["argvs"]):
                if request["size"] > 1:
                    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(request["size"]),
                                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
                codes.append(main(argv))
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(max(codes))
        children.append(child)
    print(json.dumps(children), flush=True)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
"""
"""Reads {size, argvs, ports, log} as JSON lines; answers each with the processes' ids and, when all have
ended, their exit codes."""

PLAIN = [
    *("--student", "vit_tiny_patch16_224", "--student-args", "patch_size=8", "embed_dim=24", "depth=1"),
    *("num_heads=3", "--img-size", "16", "--lr", "0.01", "--opt", "sgd", "--eval-batch", "8", "--no-report"),
    *("--device", "cpu", "--grad-accum", "2", "--mixup", "0.4", "--cutmix", "1", "--seed", "3"),
    *("--epochs", "2"),
]
"""12 steps of 16 images of a network without batch norm."""
NORMS = ["--student", "test_resnet", "--student-args", "act_layer=silu"]
"""A network with batch norm instead. Smooth, because a ReLU turns rounding that puts an input on the other
side of zero into a step of its gradient."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Group:
    """Processes that were forked together."""

    def __init__(self, forker, log, size, argvs):
        request = {
            "size": size,
            "argvs": [[str(word) for word in argv] for argv in argvs],
            "ports": [free_port() for _ in argvs],
            "log": str(log),
        }
        self.forker, self.log, self.size = forker, log, size
        print(json.dumps(request), file=forker.stdin, flush=True)
        self.ids = json.loads(forker.stdout.readline())

    def wait(self) -> list[int]:
        return json.loads(self.forker.stdout.readline())

    def said(self, name="err") -> str:
        """What all of them printed."""
        files = [self.log.with_name(f"{self.log.name}.{rank}.{name}") for rank in range(self.size)]
        return "".join(file.read_text() for file in files)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """start(size, *argvs) -> a `Group` whose processes run these commands one after the other."""
    folder = tmp_path_factory.mktemp("logs")
    count = iter(range(1000))
    environment = {key: value for key, value in os.environ.items() if key != "WORLD_SIZE"}
    forker = subprocess.Popen(
        [sys.executable, "-c", FORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    yield lambda size, *argvs: Group(forker, folder / f"group{next(count)}", size, argvs)
    forker.kill()
    forker.communicate()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with a small data set, a teacher, and its answers."""
    root = tmp_path_factory.mktemp("processes")
    write_noise(root / "set", train=100, val=21)
    return root


def trainings(root, size, batch):
    """The words of each training, for so many processes with `batch` images in all of them."""
    data = ["--data", f"npz:{root / 'set'}", *PLAIN, "--batch", str(batch // size)]
    teacher = ["--teacher-ckpt", root / "plain1" / "best.pth"]
    of = {
        "plain": [*data, "--teacher", "none"],
        "kl": [*data, *teacher, "--model-ema"],
        "feature": [*data, *teacher, "--kd-loss", "none", "--feature-loss", "fitnets", "--sync-bn"],
        "stored": [*data, "--teacher-labels", root / "labels"],
        "norms": [*data, "--teacher", "none", *NORMS, "--sync-bn"],
    }
    return {name: ["train", *words, "--output", root / f"{name}{size}"] for name, words in of.items()}


@pytest.fixture(scope="module")
def trained(workspace, start):
    """{size: what these processes printed}, after all trainings; every one ended well."""
    known = [word for word in PLAIN if word != "--no-report"]
    labels = ["label", "--data", f"npz:{workspace / 'set'}", *known, "--batch", "8"]
    labels += ["--teacher-ckpt", workspace / "plain1" / "best.pth", "--output", workspace / "labels"]
    first, *others = trainings(workspace, 1, 8).values()
    groups = {1: start(1, first, labels, *others)}
    assert groups[1].wait() == [0], groups[1].said()
    groups[2] = start(2, *trainings(workspace, 2, 8).values())
    assert groups[2].wait() == [0, 0], groups[2].said()
    return groups


def records(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def distance(one, other) -> float:
    """The largest relative distance of two runs' weights, by tensor."""
    a, b = (checkpoints.load(place / "last.pth").state_dict for place in (one, other))
    found = [
        ((a[name].double() - b[name].double()).norm() / a[name].double().norm().clamp_min(1e-6)).item()
        for name in a
        if a[name].is_floating_point()
    ]
    return max(found)


@pytest.mark.parametrize("name", ["plain", "kl", "feature", "stored", "norms"])
def test_twelve_steps_are_those_of_one_process(workspace, trained, name):
    last = checkpoints.load(workspace / f"{name}2" / "last.pth")
    assert last.state["updates"] == 12
    assert distance(workspace / f"{name}1", workspace / f"{name}2") < 1e-5


def test_only_one_process_speaks_and_counts_all_images(workspace, trained):
    said, alone = trained[2].said(), trained[1].said()
    assert said.count("plain: epoch 2/2") == alone.count("plain: epoch 2/2") == 2
    assert "6 steps of 16 images (4 at once in each of 2 processes), 4 images left over" in said
    assert trained[2].said("out").count("plain2/best.pth: top-1") == 1
    for name in ("plain", "kl"):
        one, two = (records(workspace / f"{name}{size}") for size in (1, 2))
        for ours, theirs in zip(one, two, strict=True):
            assert theirs["val_images"] == 21  # 3 batches for 2 processes
            assert theirs["train_loss"] == pytest.approx(ours["train_loss"], rel=1e-5)
            assert theirs["val_loss_nats"] == pytest.approx(ours["val_loss_nats"], rel=1e-5)
            assert theirs["val_top1_percent"] == ours["val_top1_percent"]
