"""A model's frozen layers in parts, one in each process: for models that do not fit on a device.

torch's `fully_shard` puts a layer together when it is computed, forward and backward, and takes it apart again.  All
processes must then ask for the same layers in the same order, while what each computes differs: batches that are cut
by tokens, texts that end early.  So before a process reads or learns, all agree on what comes next; one that has
nothing of the kind to do asks for the layers along with the others, and computes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rerank.errors import ConfigError

if TYPE_CHECKING:
    from rerank.train.processes import Processes

_NOTHING, _BACKWARD, _FORWARD, _READING = range(4)
"""What a process is about to do; what most comes first is done first: to read without gradients, to compute with them,
to go back from all that was computed, or to talk to the others."""


class Shards:
    """The parts of frozen layers that a process holds, and its agreement with the others on who asks for what.

    Args:
        processes: all that hold parts.
        device: of this process.
    """

    def __init__(self, processes: Processes, device: str) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        self._processes = processes
        self._mesh = init_device_mesh(device.partition(":")[0], (processes.size,))
        self._layers: list[Any] = []
        self._computed, self._own = 0, 0
        """Forward passes with gradients since the last backward pass: of all, and of this process's."""

    def hold(self, transformer: Any) -> None:
        """Keeps of each layer of `transformer` this process's part; weights that are trained stay whole.

        Raises:
            ConfigError: it has no layers that are known to be computed one after the other.
        """
        from torch.distributed.fsdp import fully_shard

        self._layers = layers_of(transformer)
        options: dict[str, Any] = {"mesh": self._mesh, "reshard_after_forward": True}
        for layer in self._layers:
            fully_shard(layer, ignored_params={w for w in layer.parameters() if w.requires_grad}, **options)
        held = {weight for layer in self._layers for weight in layer.parameters()}
        # Over the layers, so that the next one comes while one is computed.
        fully_shard(transformer, ignored_params=set(transformer.parameters()) - held, **options)
        transformer.register_forward_pre_hook(self._before)
        self._layers[0].register_forward_pre_hook(_begin_gradients, prepend=True, with_kwargs=True)

    def begin(self) -> None:
        """Puts each layer together once, so that memory which is reused is not made in inference mode; all must."""
        self._ask(self._layers)

    def _ask(self, layers: Sequence[Any]) -> None:
        for layer in layers:
            layer.unshard()
            layer.reshard()

    # -- what comes next ------------------------------------------------------------

    def _before(self, *_: Any) -> None:
        import torch

        self._agree(_FORWARD if torch.is_grad_enabled() else _READING)

    def backward(self) -> None:
        """Returns when all go back."""
        self._agree(_BACKWARD)

    def accompany(self) -> None:
        """Returns when no process computes any more."""
        self._agree(_NOTHING)

    def _agree(self, wanted: int) -> None:
        """Returns when what this process is about to do comes next."""
        while True:
            now = self._processes.most(wanted)
            self._computed += now == _FORWARD
            self._own += now == wanted == _FORWARD
            if now == _BACKWARD:
                own = self._own if wanted == _BACKWARD else 0
                for _ in range(self._computed - own):
                    self._ask(self._layers[::-1])
                self._computed = self._own = 0
            elif now != wanted:
                self._ask(self._layers)
            if now == wanted:
                return


def _begin_gradients(layer: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Lets the first layer be gone back through like the others: it is taken apart by what comes after its gradient."""
    import torch

    states = given[0] if given else named["hidden_states"]
    if torch.is_grad_enabled() and not states.requires_grad:
        states.requires_grad_()


def layers_of(transformer: Any) -> list[Any]:
    """The layers of a transformer that are computed one after the other.

    Raises:
        ConfigError: it does not say which those are.
    """
    import torch

    names = set(getattr(transformer, "_no_split_modules", None) or ())
    for module in transformer.modules():
        if isinstance(module, torch.nn.ModuleList) and {type(layer).__name__ for layer in module} <= names:
            return list(module)
    raise ConfigError(
        f"{type(transformer).__name__} does not say which its layers are, so it cannot be divided; train without FSDP"
    )
