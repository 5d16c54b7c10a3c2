"""Runs a function or a command in several processes that torch.distributed joins; no test.

Reads one JSON object per line and answers with the processes' exit codes. `size` is the number of
processes and `out` a folder for what each of them leaves. Either `case` is a function of
distributed_cases.py that is called with `options`, and its result is saved; or `argv` is a command
of ifru, as torchrun would start it, of which `killed`, [rank, seconds], is killed after so long.
The processes are forked, so that torch is imported once.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

TIMEOUT = 60


def run_case(rank, size, out, case, options):
    """One process."""
    import distributed_cases
    import torch
    import torch.distributed as dist

    from ifru_ext.distributed import Group

    wait = timedelta(seconds=TIMEOUT)
    store = dist.FileStore(f"{out}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=wait)
    result = getattr(distributed_cases, case)(Group(), **options)
    torch.save(result, f"{out}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    return 0


def run_command(rank, size, out, argv, port):
    """One process, whose output goes to files."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{out}/{rank}.{name}", os.O_WRONLY | os.O_CREAT), number)
    sys.stdout = os.fdopen(1, "w")
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(address, RANK=str(rank), WORLD_SIZE=str(size))
    sys.argv = ["ifru", *argv]
    from ifru_ext.__main__ import main

    return main()


def forked(size, out, case=None, options=None, argv=None, killed=None):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = []
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                if argv is None:
                    code = run_case(rank, size, out, case, options)
                else:
                    code = run_command(rank, size, out, argv, port)
                    sys.stdout.flush()
            except BaseException:
                Path(f"{out}/{rank}.txt").write_text(traceback.format_exc())
            os._exit(code)
        pids.append(pid)
    if killed is not None:
        rank, seconds = killed
        time.sleep(seconds)
        os.kill(pids[rank], signal.SIGKILL)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def serve():
    import torch

    torch.set_num_threads(1)  # a forked process has none of its parent's threads
    import distributed_cases

    for name in distributed_cases.UNLEARNINGS:  # trained once, for all processes
        distributed_cases.request(name)
    answers = sys.stdout
    with open(os.devnull, "w") as sys.stdout:
        for line in sys.stdin:
            print(json.dumps(forked(**json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    serve()
