"""One run in several processes: who rolls out what, how the parts come together, and what a process does when another ends.

Every process rolls out its share of a step's prompts; their scored rollouts are then gathered, so that advantages, filters and
figures are those of the whole batch in every process. Updates share the groups, with losses weighted so that the averaged
gradient is that of one process. The first process alone writes the run folder. What passes between them is tensors and JSON.

In one process (`Team()`) nothing is shared, gathered or copied.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from safetensors.torch import load, save
from torch import Tensor

T = TypeVar("T")
PATIENCE = "XOMNI_RL_PATIENCE"
"""Environment variable: seconds that a process waits for the others; half an hour if it is not set."""


class PeerError(RuntimeError):
    """Another process of this run failed or ended; the message says which and what to do, as far as it is known."""


@dataclass(frozen=True)
class Team:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: number of this process, from 0; 0 leads: it writes the run folder and speaks.
        size: how many there are.
        group: what they talk over, on the CPU; None if there is one.
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    @classmethod
    def current(cls, device: str) -> Team:
        """The processes that a launcher (torchrun, accelerate, Slurm) has started together; doing it again gives the same.

        Args:
            device: type of the device trained on: "cpu", or "cuda", where every process takes the one of its local rank.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        patience = timedelta(seconds=float(os.environ.get(PATIENCE, "1800")))
        state = PartialState(cpu=device == "cpu", timeout=patience)
        return cls(state.process_index, state.num_processes, _cpu_group(dist.group.WORLD, patience))

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of some items: neighbours stay together, and parts differ by one at most.

        >>> Team(rank=1, size=2).share("abcde")
        ['d', 'e']
        """
        start, end = self._bounds(len(items))
        return list(items[start:end])

    def same(self, value: T) -> T:
        """The first process's value, a JSON one, in every process."""
        if self.size == 1:
            return value
        told: T = self.gathered(value if self.leads else None)[0]
        return told

    def gathered(self, value: Any) -> list[Any]:
        """Every process's value, a JSON one, by rank."""
        if self.size == 1:
            return [value]
        return [json.loads(part) for part in self._all(json.dumps(value).encode())]

    def rows(self, mine: Tensor | None, device: torch.device) -> Tensor:
        """The rows of every process under each other, by rank.

        Args:
            mine: [n, …] this process's, the same in every process but for n; None = it has none.
            device: where they are wanted.
        """
        if self.size == 1 and mine is not None:
            return mine
        parts = self.tensors({} if mine is None else {"rows": mine})
        return torch.cat([part["rows"] for part in parts if part]).to(device)

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replaces every tensor by its sum over the processes, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def tensors(self, mine: Mapping[str, Tensor], *, only_first: bool = False) -> list[dict[str, Tensor]]:
        """Every process's tensors on the CPU, by rank; with `only_first` the others get nothing."""
        packed = save({name: value.detach().cpu().contiguous() for name, value in mine.items()})
        return [load(part) for part in (self._to_first(packed) if only_first else self._all(packed))]

    def together(self, work: Callable[[], T]) -> T:
        """What `work` gives in this process, once it is done in all of them.

        Raises: what `work` raised here; PeerError if it failed elsewhere.
        """
        if self.size == 1:
            return work()
        failure: Exception | None = None
        try:
            result = work()
        except Exception as error:
            failure = error
        reasons = self.gathered(None if failure is None else f"{type(failure).__name__}: {failure}")
        if failure is not None:
            raise failure
        for rank, reason in enumerate(reasons):
            if reason is not None:
                raise PeerError(f"process {rank} of this run failed: {reason}")
        return result

    @contextmanager
    def watched(self, run: Path) -> Iterator[None]:
        """Turns the end of another process, or the launcher's order to end because of it, into a PeerError."""
        if self.size == 1:
            yield
            return
        advice = f"go on with resume={run}"

        def told_to_end(number: int, frame: FrameType | None) -> None:
            raise PeerError(f"told to end, as when another process of this run has ended; {advice}")

        in_main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, told_to_end) if in_main else None
        try:
            yield
        except RuntimeError as error:
            if not _is_lost_connection(error):
                raise
            raise PeerError(f"another process of this run has ended, or does not answer; {advice}") from error
        finally:
            if in_main:
                signal.signal(signal.SIGTERM, before)

    def _bounds(self, count: int) -> tuple[int, int]:
        """Where this process's part of `count` items begins and ends."""
        each, more = divmod(count, self.size)
        start = self.rank * each + min(self.rank, more)
        return start, start + each + (self.rank < more)

    def _all(self, mine: bytes) -> list[bytes]:
        """Every process's bytes, by rank."""
        sizes = self._sizes(len(mine))
        parts = [torch.empty(max(sizes), dtype=torch.uint8) for _ in sizes]
        dist.all_gather(parts, _padded(mine, max(sizes)), group=self.group)
        return _cut(parts, sizes)

    def _to_first(self, mine: bytes) -> list[bytes]:
        """Every process's bytes, by rank, in the first process; nothing in the others."""
        sizes = self._sizes(len(mine))
        parts = [torch.empty(max(sizes), dtype=torch.uint8) for _ in sizes] if self.leads else []
        dist.gather(_padded(mine, max(sizes)), parts or None, dst=0, group=self.group)
        return _cut(parts, sizes[: len(parts)])

    def _sizes(self, mine: int) -> list[int]:
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([mine]), group=self.group)
        return [int(size) for size in sizes]


@cache
def _cpu_group(world: Any, patience: timedelta) -> Any:
    """A group over `world` that passes what lies on the CPU, whatever passes the gradients."""
    return dist.new_group(backend="gloo", timeout=patience)


def _padded(content: bytes, size: int) -> Tensor:
    padded = torch.zeros(size, dtype=torch.uint8)
    padded[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return padded


def _cut(parts: Sequence[Tensor], sizes: Sequence[int]) -> list[bytes]:
    return [part[:size].numpy().tobytes() for part, size in zip(parts, sizes, strict=True)]


def _is_lost_connection(error: RuntimeError) -> bool:
    """Whether an error is about the other processes. gloo has no class of its own for it, but names itself."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
