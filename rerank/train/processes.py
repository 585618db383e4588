"""The processes that train one model together: each computes its share of every step, the first one writes.

`accelerate launch` and torchrun start them; they find each other by the environment that those set.  What they tell
each other is little: the sum of gradients once a step, some numbers, and who is done.  A process that ends takes the
others with it: their next word to each other fails.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from rerank.errors import ConfigError, ModelError, RerankError

if TYPE_CHECKING:
    from torch import Tensor

    from rerank.train.sharding import Shards

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PATIENCE = timedelta(days=7)
"""How long a process waits for others: the first one may mine groups or measure for hours while they wait."""
_PRECISION, _FSDP = "ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_FSDP"
_NUMBERS_AT_ONCE = 1 << 25
"""Numbers of gradients that are added up together: more need a copy of that size."""


class Processes:
    """Some processes, and which of them this one is.

    >>> ALONE.share([30, 10, 20]), ALONE.add(2.0, 1.0), ALONE.gather("a")
    ([0, 1, 2], [2.0, 1.0], ['a'])

    Args:
        rank: of this process, from 0.
        size: how many there are.
    """

    shards: Shards | None = None
    """What they hold together of the model's frozen layers; None where each has the whole model."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, sizes: Sequence[int]) -> list[int]:
        """The places of what this process computes, so that all have about as much to do.

        >>> [Processes(rank, 2).share([5, 1, 4, 2]) for rank in range(2)]
        [[0, 1], [2, 3]]

        Args:
            sizes: of all that is to be computed, the same in every process.
        """
        loads = [0] * self.size
        own = []
        for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
            rank = loads.index(min(loads))
            loads[rank] += max(1, sizes[place])
            if rank == self.rank:
                own.append(place)
        return sorted(own)

    def in_turn(self, work: Callable[[], T]) -> T:
        """What `work` gives; no two do it at a time."""
        made: list[T] = []
        for rank in range(self.size):
            if rank == self.rank:
                made.append(work())
            self.gather(rank)
        return made[0]

    def backward(self, loss: Tensor) -> None:
        """Puts the gradient of `loss` into the weights."""
        if self.shards is not None:
            self.shards.backward()
        loss.backward()

    # -- what is told ------------------------------------------------------------

    @contextlib.contextmanager
    def _talking(self) -> Iterator[None]:
        """The processes talk in the block, once none computes; what fails then fails because another is gone."""
        if self.shards is not None:
            self.shards.accompany()
        with _gone():
            yield

    def most(self, number: int) -> int:
        """The highest number that a process has, said while some compute."""
        import torch

        found = torch.tensor(number)
        with _gone():
            torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return int(found)

    def gather(self, value: T) -> list[T]:
        """What each process has, by rank."""
        if self.size == 1:
            return [value]
        import torch

        found: list[Any] = [None] * self.size
        with self._talking():
            torch.distributed.all_gather_object(found, value)
        return found

    def merge(self, known: Mapping[int, T]) -> dict[int, T]:
        """What all processes know together."""
        return {place: value for some in self.gather(known) for place, value in some.items()}

    def lead(self, work: Callable[[], T]) -> T:
        """What `work` gives in the first process, where alone it is done.

        Raises:
            RerankError: what it raises there; the others tell it as the first one's.
        """
        if self.size == 1:
            return work()
        if not self.is_first:
            done, failure = self._heard()
            if failure is not None:
                raise RerankError(f"the first process: {failure}")
            found: T = done
            return found
        try:
            result = work()
        except RerankError as error:
            self._heard(failure=str(error))
            raise
        self._heard(result)
        return result

    def _heard(self, result: Any = None, failure: str | None = None) -> tuple[Any, str | None]:
        """What the first process says, which all wait for."""
        return self.gather((result, failure))[0]

    def first(self, work: Callable[[], T]) -> T:
        """What `work` gives here; the others begin when the first one is done, and find what it has kept on disk."""
        made: list[T] = []
        self.lead(lambda: made.append(work()))
        return made[0] if made else work()

    # -- what is added up ------------------------------------------------------------

    def add(self, *numbers: float) -> list[float]:
        """The sum of each number over all processes."""
        if self.size == 1:
            return list(numbers)
        import torch

        sums = torch.tensor(numbers, dtype=torch.float64)
        with self._talking():
            torch.distributed.all_reduce(sums)
        found: list[float] = sums.tolist()
        return found

    def add_gradients(self, weights: Sequence[Any]) -> None:
        """Makes each weight's gradient the sum of its gradients in all processes, to the bit the same in all.

        A weight that has one nowhere keeps none: an optimiser leaves it as it is.
        """
        if self.size == 1:
            return
        import torch

        have = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.int32)
        with self._talking():
            torch.distributed.all_reduce(have)
        learnt = [weight for weight, n in zip(weights, have.tolist(), strict=True) if n]
        for some in _buckets([weight.numel() for weight in learnt]):
            of = [learnt[i] for i in some]
            flat = torch.cat([_gradient(weight) for weight in of])
            with self._talking():
                torch.distributed.all_reduce(flat)
            for weight, part in zip(of, flat.split([weight.numel() for weight in of]), strict=True):
                weight.grad = part.view_as(weight).clone()


ALONE = Processes()
"""One process by itself."""


def _gradient(weight: Any) -> Tensor:
    import torch

    flat: Tensor = (torch.zeros_like(weight) if weight.grad is None else weight.grad).reshape(-1)
    return flat


def _buckets(sizes: Sequence[int]) -> Iterator[range]:
    """Neighbouring places whose sizes come to no more than are added up at once, or one that has more.

    >>> list(_buckets([1 << 24, 1 << 24, 1, 1 << 26]))
    [range(0, 2), range(2, 3), range(3, 4)]
    """
    start, n = 0, 0
    for place, size in enumerate(sizes):
        if n and n + size > _NUMBERS_AT_ONCE:
            yield range(start, place)
            start, n = place, 0
        n += size
    if n:
        yield range(start, len(sizes))


@contextlib.contextmanager
def _gone() -> Iterator[None]:
    """What fails inside the block fails because another process is gone."""
    try:
        yield
    except RuntimeError as error:
        raise ModelError(
            "another process of this training has ended, and the others cannot go on without it: its own message says "
            "why; the same command goes on from the last checkpoint"
        ) from error


# -- how they were started ------------------------------------------------------------


def launched() -> tuple[int, int]:
    """This process's rank and how many a launcher started, on all machines; (0, 1) where none did."""
    return _number("RANK", 0), _number("WORLD_SIZE", 1)


def own_threads(budget: int) -> int:
    """This process's part of a machine's processors."""
    return max(1, budget // max(1, _number("LOCAL_WORLD_SIZE", launched()[1])))


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "on")


@contextlib.contextmanager
def together(device: str) -> Iterator[Processes]:
    """The processes that a launcher started, this one among them, while the block runs; one alone where none did.

    Args:
        device: what this process computes on; with several on one machine, `cuda` is to each one of its own.

    Raises:
        ConfigError: a launcher's settings that do not fit, or fewer devices than processes.
    """
    _check_launcher()
    rank, size = launched()
    shards = _is_set(_FSDP)
    with _own_ways():
        if size == 1:
            yield ALONE
            return
        import torch

        if device != "cpu":
            _take_device(device)
        begins = not torch.distributed.is_initialized()
        if begins:
            backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
            torch.distributed.init_process_group(backend, timeout=_PATIENCE)
        processes = Processes(rank, size)
        if shards:
            from rerank.train.sharding import Shards

            processes.shards = Shards(processes, device)
        yield processes
        # After an error others may still wait for a word: they are not waited for.
        if begins:
            torch.distributed.destroy_process_group()


def _take_device(device: str) -> None:
    import torch

    here, local = torch.cuda.device_count(), _number("LOCAL_RANK", 0)
    if device != "cuda":
        raise ConfigError(
            f"several processes train, each on a CUDA device of its own or all on processors, and device {device!r} is "
            "none of both; leave --device out, choose by CUDA_VISIBLE_DEVICES, or give --device cpu"
        )
    if local >= here:
        raise ConfigError(
            f"process {local} of this machine has no device: there are {here}; start as many processes as devices "
            "(--num_processes, --nproc-per-node)"
        )
    torch.cuda.set_device(local)


def _check_launcher() -> None:
    """Returns when a launcher's settings are such that training here does what they say.

    Raises:
        ConfigError: they are not.
    """
    if _is_set("ACCELERATE_USE_DEEPSPEED"):
        raise ConfigError(
            "accelerate was told to use DeepSpeed (distributed_type: DEEPSPEED), which is not used here: of what ZeRO "
            "1 and 2 divide an adapter has little, and what ZeRO 3 does FSDP does; start as "
            "docs/examples/accelerate.yaml says, or accelerate-fsdp.yaml for a model that does not fit on a device"
        )
    if not _is_set(_FSDP):
        return
    wrong = {
        "fsdp_version": ("2", os.environ.get("FSDP_VERSION", "1")),
        "fsdp_reshard_after_forward": ("true", os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true")),
        "fsdp_offload_params": ("false", os.environ.get("FSDP_OFFLOAD_PARAMS", "false")),
        "fsdp_activation_checkpointing": ("false", os.environ.get("FSDP_ACTIVATION_CHECKPOINTING", "false")),
    }
    for name, (wanted, given) in wrong.items():
        if given.lower() != wanted:
            instead = "; the recipe's 'checkpointing' does that" if "checkpointing" in name else ""
            raise ConfigError(
                f"accelerate was told to use FSDP with {name}: {given}, where {wanted} is needed{instead}; "
                "docs/examples/accelerate-fsdp.yaml has what fits"
            )


@contextlib.contextmanager
def _own_ways() -> Iterator[None]:
    """Inside the block transformers does not hear what a launcher says of precision and sharding: that is done here."""
    ours = {_PRECISION: "no", _FSDP: "false"}
    given = {name: os.environ[name] for name in ours if name in os.environ}
    if given.get(_PRECISION, "no") != "no":
        logger.info("the launcher's mixed_precision, %s, is not used: the recipe says it", given[_PRECISION])
    os.environ |= {name: ours[name] for name in given}
    try:
        yield
    finally:
        os.environ |= given
