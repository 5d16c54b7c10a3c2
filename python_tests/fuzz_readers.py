"""Fuzzes the readers of data and of requests with atheris. No test, a program.

    pip install atheris
    python python_tests/fuzz_readers.py -max_total_time=600

A crash is any exception but InputError.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["ifru_ext.io", "ifru_ext.ids", "ifru_ext.columns"]):
    from ifru_ext.errors import InputError
    from ifru_ext.ids import IdMap
    from ifru_ext.io.ledger import Ledger
    from ifru_ext.io.reading import read_interactions
    from ifru_ext.io.requests import Known, Request

KNOWN = Known(IdMap(["7", "a", "u1"]), IdMap([3, 5]), ignore_unknown=True)
HEADERS = ["", "user,item\n", "user,item,rating,timestamp\n", "user_id:token\titem_id:token\n"]
SUFFIXES = [".csv", ".tsv", ".inter", ".parquet", ".json"]
FOLDER = Path(tempfile.mkdtemp(prefix="ifru-ext-fuzz-"))


def read(content: bytes) -> None:
    data = atheris.FuzzedDataProvider(content)
    kind = data.ConsumeIntInRange(0, 2)
    suffix = data.PickValueInList(SUFFIXES)
    header = data.PickValueInList(HEADERS).encode()
    rest = data.ConsumeBytes(len(content))
    if kind == 2:
        (FOLDER / "ledger.jsonl").write_bytes(rest)
        with contextlib.suppress(InputError):
            Ledger(FOLDER)
        return
    path = FOLDER / f"data{suffix}"
    path.write_bytes(header + rest)
    with contextlib.suppress(InputError):
        if kind == 1:
            json.dumps(Request.read(path, KNOWN).digest(KNOWN, bytes(32)))
        elif suffix != ".json":
            read_interactions(path, threshold=1.0)


if __name__ == "__main__":
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()
