"""Runs commands that are killed at a chosen moment; see test_kill.py. No test, a program.

Reads one JSON object per line: `argv`, `store`, and either `event`, the number of the operation
that changes the store before which the command kills itself, or `after`, the seconds after which it
is killed. Answers with one: the signal or exit code, and the operations that were counted. Each
command is a process of its own, forked so that torch is imported once.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time

# Before one that only reads, the store is as it was before the last that does not.
_CHANGES = ("os.rename", "os.remove", "os.symlink", "os.mkdir", "os.rmdir", "os.truncate")
_OPENS_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def run(argv, store, event, answer):
    """The child: runs the command, and dies before the chosen operation."""
    count = 0

    def watch(name, args):
        nonlocal count
        changes = name in _CHANGES or (name == "open" and args[2] & _OPENS_TO_WRITE)
        # Inside a folder that is being removed, names are relative to it.
        if changes and (store in str(args[0]) or not os.path.isabs(str(args[0]))):
            count += 1
            if count == event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    sys.argv = ["ifru", *argv]
    from ifru_ext.__main__ import main

    code = main()
    os.write(answer, str(count).encode())
    os._exit(code)


def forked(argv, store, event=None, after=None):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        run(argv, store, event, write)
    os.close(write)
    if after is not None:
        time.sleep(after)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    begin = time.monotonic()
    _, status = os.waitpid(pid, 0)
    seconds = time.monotonic() - begin
    count = os.read(read, 20)
    os.close(read)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "count": int(count or 0),
        "seconds": seconds,
    }


def serve():
    import torch

    torch.set_num_threads(1)  # a forked process has none of its parent's threads
    import ifru_ext.__main__
    import ifru_ext.cli
    import ifru_ext.report.figures
    import ifru_ext.report.page  # noqa: F401

    answers = sys.stdout
    with open(os.devnull, "w") as sys.stdout:
        os.dup2(sys.stdout.fileno(), 2)
        for line in sys.stdin:
            print(json.dumps(forked(**json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    serve()
