"""One training over the nodes of a multi-node AWS Batch job, without sshd between them.

    python -m segment.nodes [--per-node K] python -m segment.train ...

is what every node runs. MPICH's mpiexec, told that its launcher is "manual", prints the command
that is to run on each node; the main node hands it to the others, which call it. From then on
MPICH's own processes look after one another. SIGTERM on any node stops all ranks in good order.

No other machine may reach these ports: the nodes' security group has to let in its own members
only. Tried with nodes that are processes of one machine; never run on AWS.
"""

import argparse
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from segment.cli import TERMINATED, parser, run, whole
from segment.errors import InputError

HOST, PORT = "", 7717  # where the main node is called: on all its interfaces
PATIENCE = 600  # seconds in which the nodes of a job may start, one after the other
PREFIX = "AWS_BATCH_JOB_"
LAUNCH, END = "HYDRA_LAUNCH:", "HYDRA_LAUNCH_END"


def main(arguments: list[str]) -> None:
    options = _parser().parse_args(arguments)
    if _number("NODE_INDEX") == _number("MAIN_NODE_INDEX"):
        sys.exit(lead(options.command, _number("NUM_NODES"), options.per_node))
    sys.exit(follow(os.environ[f"{PREFIX}MAIN_NODE_PRIVATE_IPV4_ADDRESS"]))


def _parser() -> argparse.ArgumentParser:
    p = parser(
        "nodes", "Run a command on every node of a multi-node AWS Batch job, as one MPI job."
    )
    p.add_argument("--per-node", type=whole(1), default=1, metavar="K", help="ranks; default: 1")
    p.add_argument("command", nargs=argparse.REMAINDER, help="such as: python -m segment.train")
    return p


def _number(name: str) -> int:
    text = os.environ.get(PREFIX + name, "")
    if not text.isdecimal():
        raise InputError(f"{PREFIX}{name} is not set: this is no multi-node job of AWS Batch")
    return int(text)


def lead(command: list[str], nodes: int, per_node: int) -> int:
    """Start the ranks on this node and on those that call; returns mpiexec's exit code."""
    with socket.create_server((HOST, PORT)) as server:
        server.settimeout(PATIENCE)
        try:
            followers = [server.accept()[0] for _ in range(nodes - 1)]
        except TimeoutError:
            raise InputError(f"not all of {nodes} nodes called within {PATIENCE} s") from None
    address = followers[0].getsockname()[0] if followers else "127.0.0.1"  # as others know it
    where = ["-localhost", address, "-hosts", ",".join(f"node{i}" for i in range(nodes))]
    what = ["-ppn", str(per_node), "-n", str(nodes * per_node), *command]
    mpiexec = subprocess.Popen(
        [_program("mpiexec"), "-launcher", "manual", *where, *what],
        stdout=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGTERM, lambda *_: mpiexec.terminate())
    assert mpiexec.stdout is not None
    launches = []
    for line in mpiexec.stdout:
        if line.startswith(END):
            break
        launches.append(line.removeprefix(LAUNCH))
    for follower, line in zip(followers, launches[1:], strict=True):
        follower.sendall(line.encode())
        threading.Thread(target=_heed, args=(follower, mpiexec), daemon=True).start()
    proxy = subprocess.Popen(shlex.split(launches[0]))
    for line in mpiexec.stdout:
        print(line, end="", flush=True)
    proxy.wait()
    return mpiexec.wait()


def _heed(follower: socket.socket, mpiexec: subprocess.Popen[str]) -> None:
    """Stop the job when a node says that it is being stopped."""
    if follower.recv(1):
        mpiexec.terminate()


def follow(leader: str) -> int:
    """Run on this node what the main node says; returns 143 after a SIGTERM, else its exit code."""
    connection = _call(leader)
    line = connection.makefile().readline()
    if not line:
        raise InputError(f"the main node, {leader}, ended before the job began")
    proxy = subprocess.Popen([_program("hydra_pmi_proxy"), *shlex.split(line)[1:]])
    told: list[int] = []

    def tell(number: int, frame: object) -> None:
        told.append(number)
        connection.sendall(b"!")

    signal.signal(signal.SIGTERM, tell)
    code = proxy.wait()
    return TERMINATED if told else code


def _call(leader: str) -> socket.socket:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_connection((leader, PORT))
        except OSError as error:
            if time.monotonic() > until:
                raise InputError(f"no answer from the main node, {leader} ({error})") from None
            time.sleep(1)


def _program(name: str) -> str:
    """A program of the MPI library that is installed beside this Python, or on the PATH."""
    path = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if path is None:
        raise InputError(f"{name} is missing: pip install mpi4py mpich")
    return path


if __name__ == "__main__":
    run(main)
