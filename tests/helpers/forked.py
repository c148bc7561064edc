"""Several processes that go through the same commands, forked from one that has imported torch already, so
that the imports are paid for once.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys

FORKER = """
import json, os, signal, sys, time
import distill.evaluate, distill.run.job, distill.run.labeling
from distill.__main__ import main
from torch.distributed import TCPStore
stores = {}
for line in sys.stdin:
    request = json.loads(line)
    children = []
    if request["has_agent"]:  # as torchrun keeps it, so that it outlives the processes, over its restarts
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        for port in request["ports"]:
            if port not in stores:
                stores[port] = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    for rank in range(request["size"]):
        child = os.fork()
        if not child:
            for number, name in ((1, "out"), (2, "err")):
                with open(f"{request['log']}.{rank}.{name}", "ab") as log:
                    os.dup2(log.fileno(), number)
            sys.path[:0] = request["paths"][rank]
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
    ended = {}
    while len(ended) < len(children):
        child, status = os.wait()
        if status and not any(ended.values()):
            time.sleep(0.1)
            [os.kill(other, signal.SIGTERM) for other in children if other not in {*ended, child}]
        ended[child] = os.waitstatus_to_exitcode(status)
    print(json.dumps([ended[child] for child in children]), flush=True)
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
"""
"""Reads {size, argvs, ports, log, paths, has_agent} as JSON lines; answers each with the processes'
ids and, when all have ended, their exit codes. As torchrun it ends those that are left once one fails."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Group:
    """Processes that were forked together."""

    def __init__(self, forker, log, size, argvs, paths, port, agent):
        request = {
            "size": size,
            "argvs": [[str(word) for word in argv] for argv in argvs],
            "ports": [port or agent or free_port() for _ in argvs],
            "log": str(log),
            "has_agent": size > 1 and not port,
            "paths": [(paths or {}).get(rank, []) for rank in range(size)],
        }
        self.forker, self.log, self.size = forker, log, size
        print(json.dumps(request), file=forker.stdin, flush=True)
        self.ids = json.loads(forker.stdout.readline())

    def send(self, rank, number=signal.SIGKILL):
        """A signal to one of them."""
        with contextlib.suppress(ProcessLookupError):  # ended in the meantime
            os.kill(self.ids[rank], number)

    def wait(self) -> list[int]:
        """Exit codes, by rank."""
        return json.loads(self.forker.stdout.readline())

    def said(self, name="err") -> str:
        """What all of them printed."""
        files = [self.log.with_name(f"{self.log.name}.{rank}.{name}") for rank in range(self.size)]
        return "".join(file.read_text() for file in files if file.exists())


@contextlib.contextmanager
def forking(folder):
    """start(size, *argvs) -> a `Group` whose processes run these commands one after the other. paths: {rank:
    folders in front of the others that it imports from}; port: where they meet by
    themselves, by default at a store as torchrun's; agent: the port of that one.
    """
    count = iter(range(10_000))
    clean = {key: value for key, value in os.environ.items() if key != "WORLD_SIZE"}
    forker = subprocess.Popen(
        [sys.executable, "-c", FORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=clean | {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", "CUDA_VISIBLE_DEVICES": ""},
    )

    def start(size, *argvs, paths=None, port=0, agent=0):
        return Group(forker, folder / f"group{next(count)}", size, argvs, paths, port, agent)

    yield start
    forker.kill()
    forker.communicate()
