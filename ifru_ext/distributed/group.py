"""The processes that hold a model together, and what they say to one another."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ifru_ext import inner
from ifru_ext.errors import InputError

__all__ = ["Group", "ProcessLostError", "processes_expected"]


class ProcessLostError(RuntimeError):
    """Another process of the group has ended, or did not answer in time."""


def processes_expected() -> int:
    """How many processes the launcher (torchrun, Slurm with its variables) has started; else 1.

    Raises:
        InputError: WORLD_SIZE is no positive integer.
    """
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise InputError(f"WORLD_SIZE: expected a number of processes, got {text!r:.80}")
    return int(text)


class Group:
    """Some processes, of which each runs the same program on its own part of a model.

    All that they exchange goes by one collective, all-to-all: rows to those who need them, and back
    to those who own them, who add them up in the order of the processes. So a sum has the same bits
    in every run of one layout, whatever algorithm the backend takes for its own reductions.

    Args:
        handle: A process group of torch.distributed, the default one by default: "gloo" for tensors
            on a CPU, "nccl" for those on a GPU.

    Attributes:
        rank: Of this process, from 0.
        size: The number of processes.
        bytes_sent: What this process has sent to the others.

    Raises:
        InputError: torch.distributed is not initialised.
    """

    def __init__(self, handle: dist.ProcessGroup | None = None) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise InputError(
                "group: expected torch.distributed to be initialised, got none; "
                "Group.from_environment does it for processes that torchrun has started"
            )
        self._handle = handle
        self.rank, self.size = dist.get_rank(handle), dist.get_world_size(handle)
        self.bytes_sent = 0

    @classmethod
    def alone(cls) -> Group:
        """This process by itself, which needs no torch.distributed."""
        group = object.__new__(cls)
        group._handle, group.rank, group.size, group.bytes_sent = None, 0, 1, 0
        return group

    @classmethod
    @contextmanager
    def from_environment(cls, device: str = "cpu", timeout: float = 600.0) -> Iterator[Group]:
        """All processes that torchrun has started, or this one alone without it.

        Args:
            device: "cpu" for gloo, or "cuda" for NCCL.
            timeout: Seconds after which a process that does not answer counts as lost.

        Raises:
            InputError: The variables of the launcher are missing or wrong.
            ProcessLostError: The processes do not find one another in time.
        """
        backend = {"cpu": "gloo", "cuda": "nccl"}.get(device)
        if backend is None:
            raise InputError(f"device: expected 'cpu' or 'cuda', got {device!r}")
        if not 0 < timeout < 1e6:
            raise InputError(f"timeout: expected a positive number of seconds, got {timeout}")
        wait = timedelta(seconds=timeout)
        if processes_expected() == 1:  # no address is needed, and no port opened to others
            yield cls.alone()
            return
        try:
            if backend == "nccl":  # a device for each process of a machine
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            dist.init_process_group(backend, timeout=wait)
        except ValueError as error:
            raise InputError(f"torch.distributed: cannot be initialised ({error})") from None
        except RuntimeError as error:
            text = str(error).splitlines()[0]
            raise ProcessLostError(f"the other processes cannot be reached ({text})") from None
        try:
            yield cls()
        finally:
            dist.destroy_process_group()

    @property
    def handle(self) -> dist.ProcessGroup:
        """Of torch.distributed; of more than one process."""
        handle = dist.group.WORLD if self._handle is None else self._handle
        assert handle is not None
        return handle

    def exchange(self, rows: Tensor, send: list[int], receive: list[int]) -> Tensor:
        """Sends rows to each process, and returns those that each has sent here.

        Args:
            rows: [sum of send, ...], in the order of the processes that they are for.
            send: Rows for each process, this one included.
            receive: Rows from each process.

        Returns:
            [sum of receive, ...], in the order of the processes.

        Raises:
            ProcessLostError: A process has ended or does not answer.
        """
        if self.size == 1:
            return rows
        row_bytes = math.prod(rows.shape[1:]) * rows.element_size()
        self.bytes_sent += (sum(send) - send[self.rank]) * row_bytes
        sent = rows.contiguous()
        if sent.device.type != self._device:  # of a process that computes elsewhere
            sent = sent.to(self._device)
        received = sent.new_empty(sum(receive), *rows.shape[1:])
        try:
            dist.all_to_all_single(received, sent, receive, send, group=self._handle)
        except RuntimeError as error:
            raise self._lost(error) from None
        return received.to(rows.device)

    def exchange_with(
        self, rows: Tensor, send: list[int], receive: list[int], number: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`exchange`, and the sum of a number of each process by the same messages.

        Args:
            rows: See `exchange`, as the next two.
            send: See there.
            receive: See there.
            number: [] float64.

        Returns:
            The rows, and [] float64, the same bits in each process.
        """
        if self.size == 1:
            return rows, number
        row_bytes = math.prod(rows.shape[1:]) * rows.element_size()
        tail = number.reshape(1).view(torch.uint8)
        mine = rows.contiguous().view(-1).view(torch.uint8).split([n * row_bytes for n in send])
        packed = torch.cat([part for rows_to in mine for part in (rows_to, tail)])
        sizes = [[n * row_bytes + 8 for n in counts] for counts in (send, receive)]
        messages = self.exchange(packed, *sizes).split(sizes[1])
        numbers = torch.cat([message[-8:] for message in messages]).view(torch.float64)
        received = torch.cat([message[:-8] for message in messages]).view(rows.dtype)
        return received.view(sum(receive), *rows.shape[1:]), numbers.sum()

    def counts(self, send: list[int]) -> list[int]:
        """What each process has for this one: from one number for each."""
        ones = [1] * self.size
        received: list[int] = self.exchange(self._numbers(send), ones, ones).tolist()
        return received

    def total(self, numbers: Tensor) -> Tensor:
        """Sums over all processes, added in their order.

        Args:
            numbers: Any shape, the same in each.
        """
        if self.size == 1:
            return numbers
        ones = [1] * self.size
        mine = numbers.reshape(1, -1).expand(self.size, -1)
        return self.exchange(mine, ones, ones).sum(0, dtype=numbers.dtype).view(numbers.shape)

    def summed(self, numbers: Tensor) -> Tensor:
        """`total` of many numbers: each process adds up a part of them, and sends its sums to all.

        Args:
            numbers: [k], k the same in each.
        """
        if self.size == 1:
            return numbers
        n = numbers.shape[0]
        cuts = [n * r // self.size for r in range(self.size + 1)]
        send = [b - a for a, b in pairwise(cuts)]
        mine = send[self.rank]
        parts = self.exchange(numbers, send, [mine] * self.size).view(self.size, mine)
        sums = parts.sum(0)
        return self.exchange(sums.repeat(self.size), [mine] * self.size, send)

    def count(self, number: int) -> int:
        """The sum of a number of each process."""
        return int(self.total(self._numbers([number])))

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows of all processes, in their order, in each of them.

        Args:
            rows: [k, ...], k as it is in each.
        """
        if self.size == 1:
            return rows
        send = [rows.shape[0]] * self.size
        copies = rows.expand(self.size, *rows.shape).reshape(-1, *rows.shape[1:])
        return self.exchange(copies, send, self.counts(send))

    def collected(self, rows: Tensor) -> Tensor:
        """The rows of all processes, in their order, in process 0; none of them in the others."""
        send = [rows.shape[0], *[0] * (self.size - 1)]
        return self.exchange(rows, send, self.counts(send))

    def scattered(self, parts: Sequence[Tensor], like: Tensor) -> Tensor:
        """What process 0 has for each process.

        Args:
            parts: [k, ...] for each of them, in process 0; not looked at in the others.
            like: [0, ...], of the dtype and on the device of the parts.
        """
        if self.rank == 0:
            rows, send = torch.cat([like, *parts]), [len(part) for part in parts]
        else:
            rows, send = like, [0] * self.size
        return self.exchange(rows, send, self.counts(send))

    def told(self, value: dict[str, Any] | None) -> dict[str, Any] | None:
        """What process 0 says, as JSON: nothing is unpickled.

        Args:
            value: In process 0, perhaps None; not looked at in the others.
        """
        text = self._text(json.dumps(value))
        heard = self.scattered([text] * self.size, text[:0])
        said: dict[str, Any] | None = json.loads(bytes(heard.tolist()))
        return said

    def check(self, sentence: str | None) -> None:
        """Ends in all processes what one of them finds wrong.

        Args:
            sentence: What is wrong here; None for nothing.

        Raises:
            InputError: In all of them, by the sentence of the first that has one.
        """
        texts = self.gathered(self._text((sentence or "") + "\n"))
        found = bytes(texts.tolist()).decode().split("\n")
        first = next(filter(None, found), None)
        if first is not None:
            raise InputError(first)

    def spread(self) -> AbstractContextManager[None]:
        """Inner products of vectors whose rows these processes hold; see `ifru_ext.inner`."""
        return inner.spread(self.total)

    def _numbers(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)

    def _text(self, text: str) -> Tensor:
        return torch.tensor(list(text.encode()), dtype=torch.uint8, device=self._device)

    @property
    def _device(self) -> str:
        on_gpu = self.size > 1 and dist.get_backend(self._handle) == "nccl"
        return "cuda" if on_gpu else "cpu"

    def _lost(self, error: RuntimeError) -> ProcessLostError:
        # Without the place in torch's own source that it begins with.
        text = re.sub(r"^\[[^]]*\] *", "", str(error).splitlines()[0])
        return ProcessLostError(
            f"process {self.rank} of {self.size} lost another one, which has ended or does not "
            f"answer ({text})"
        )
