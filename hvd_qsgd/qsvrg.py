"""QSVRG: stochastic gradient descent with reduced variance and quantized steps, for PyTorch on an unpatched Horovod.

Alistarh et al., "QSGD", NIPS 2017, theorem 3.6 and its algorithm.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable
from typing import Any, Callable

import horovod.torch as hvd
import torch

from hvd_qsgd.checks import positive, whole_number
from hvd_qsgd.errors import QSGDError
from hvd_qsgd.transport.horovod import HorovodTransport

Tensor = torch.Tensor
Closure = Callable[[], Any]
KEY = "compression"  # of an optimizer's state
TENSORS = ("reference", "full_gradient", "sum")  # of each parameter, in the state
MISTAKES = (
    "",
    "the closure left no gradients: call loss.backward() in it",
    "the closure gave two gradients for the same weights: it must compute the same loss of the same batch whenever it "
    "is called in a step, without dropout or other random numbers",
)
NO_GRADIENTS, TWO_GRADIENTS = 1, 2
# What a closure may differ in from call to call, as a part of its gradient: sums in another order, not another batch.
ROUNDING = 0.01


class QSVRG(torch.optim.Optimizer):
    """SGD that converges linearly on strongly convex losses: no noise of batches or of quantization remains.

    It minimizes f, the mean of the ranks' losses, each over the rank's own shard of the data. An epoch begins with the
    exact gradient ∇f(y) at the weights y. Each step then takes, on every rank, a batch j of its shard, and from
    the weights x the step

        x ← x - lr · mean over ranks of Q(∇f_j(x) - ∇f_j(y) + ∇f(y))

    The argument of Q tends to 0 as x and y tend to the minimum, and so does what Q adds. ::

        optimizer = QSVRG(model.parameters(), lr=0.1)
        for epoch in range(epochs):
            optimizer.snapshot(lambda: backward(shard))          # the mean loss over the whole shard
            for batch in batches:
                optimizer.step(lambda: backward(batch))          # called twice: with the weights y and x

    A closure computes a loss, calls ``backward()``, which may be several times for parts of it, and returns the loss.
    Gradients are cleared before. It must depend on nothing but its batch and the weights: no dropout, no draw of a
    batch. All ranks make the same calls. Ranks must begin with the same weights (``hvd.broadcast_parameters``). It
    exchanges the gradients itself: do not wrap it in ``hvd.DistributedOptimizer``.

    Args:
        params: as for every optimizer of PyTorch; groups may have an ``lr`` and ``average`` of their own.
        lr: the step size, such as 1/(10·L) for gradients with Lipschitz constant L.
        compression: Q: a ``hvd_qsgd.torch.QSGD`` with ``min_size=0``, or another of Horovod's; ``hvd.Compression.none``
            makes it SVRG. All weights are one vector to it. Default: the theorem's: √n levels, one l2 scale, the dense
            Elias code.
        average: an epoch begins at the mean of the last one's iterates, as the theorem has it; False: at the last one.
        process_set: Horovod's process set; the same one as the compression's.

    Weights of float64 are quantized as float32, which does not keep them from converging further: v is rounded relative
    to itself. ∇f(y) travels uncompressed, in the weights' dtype, once an epoch.

    Raises:
        QSGDError: an argument is wrong. In ``snapshot`` and the first step after it, on every rank: a closure does not
            do its part, or the ranks' weights or settings differ.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | None = None,
        *,
        compression: Any = None,
        average: bool = True,
        process_set: Any = hvd.global_process_set,
    ) -> None:
        if lr is None:
            raise QSGDError(
                "QSVRG needs lr, the step size. (It exchanges gradients itself: hvd.DistributedOptimizer is not for it)"
            )
        super().__init__(params, _checked_settings({"lr": lr, "average": average}))
        self.compression = _checked_compression(compression, process_set)
        self._transport = HorovodTransport(torch, hvd, process_set)
        self._process_set = process_set

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As PyTorch's; the next call must be ``snapshot``."""
        super().add_param_group({**param_group, **_checked_settings({**self.defaults, **param_group})})

    @torch.no_grad()
    def snapshot(self, closure: Closure) -> Any:
        """Begin an epoch: exchange the gradients of whole shards, unquantized.

        Args:
            closure: computes the mean loss over this rank's shard, and its gradients.

        Returns:
            What the closure returned.
        """
        _check_closure(closure)
        for parameter, group in self._parameters():
            state = self.state[parameter]
            if group["average"] and state.get("step"):
                parameter.copy_(state["sum"] / state["step"])
        loss, gradient, mistake = self._evaluate(closure)
        self._agree(mistake)
        for (parameter, _), full in zip(self._parameters(), self._split(self._exact_mean(gradient))):
            self.state[parameter] = {
                "step": 0,  # of the epoch
                "reference": parameter.clone(),
                "full_gradient": full.clone(),
                "sum": torch.zeros_like(parameter),  # of the epoch's iterates
            }
        return loss

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """One step of the epoch.

        Args:
            closure: computes the mean loss of this rank's batch, and its gradients. It is called twice.

        Returns:
            What the closure returned for the weights as they are.
        """
        closure = _check_closure(closure)
        states = [self.state[parameter] for parameter, _ in self._parameters()]
        if not all(states):
            raise QSGDError(
                "an epoch begins with snapshot(closure), whose closure computes the loss of the whole shard"
            )
        weights = [parameter.clone() for parameter, _ in self._parameters()]
        self._set_weights(state["reference"] for state in states)
        try:
            _, before, mistake = self._evaluate(closure)
        finally:
            self._set_weights(weights)
        loss, gradient, another = self._evaluate(closure)
        self._check(mistake or another, before, gradient, first=states[0]["step"] == 0)
        full = _vector(state["full_gradient"] for state in states)
        mean = hvd.allreduce(
            gradient - before + full, name="qsvrg.step", compression=self.compression, process_set=self._process_set
        )
        for (parameter, group), state, update in zip(self._parameters(), states, self._split(mean)):
            state["sum"] += parameter
            state["step"] += 1
            parameter.sub_(update * group["lr"])  # two roundings, which are the same on all processors
        return loss

    def state_dict(self) -> dict[str, Any]:
        """What continues a run bit for bit at any step, with the weights: tensors are not copied, as in PyTorch."""
        state = super().state_dict()
        state[KEY] = self.compression.state_dict() if hasattr(self.compression, "state_dict") else None
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a copy of what ``state_dict`` returned. All ranks must load the same.

        Raises:
            QSGDError: it is no such state, or one with another kind of compression.
        """
        self._check_state(state_dict)
        if (state_dict[KEY] is not None) != hasattr(self.compression, "state_dict"):
            raise QSGDError(
                "this state is of another kind of compression: make the optimizer with the same compression="
            )
        if state_dict[KEY] is not None:
            self.compression.load_state_dict(state_dict[KEY])
        super().load_state_dict(copy.deepcopy({name: state_dict[name] for name in state_dict if name != KEY}))

    def _check_state(self, saved: dict[str, Any]) -> None:
        """Raise if this is not what ``state_dict`` returned, or of other weights."""
        parameters = self._parameters()
        try:
            _ = saved[KEY]
            groups = [group["params"] for group in saved["param_groups"] if {"lr", "average"} <= group.keys()]
            states = [saved["state"].get(number, {}) for group in groups for number in group]
            shapes = [[state[name].shape for name in TENSORS] for state in states if state]
            own = [[p.shape] * len(TENSORS) for (p, _), state in zip(parameters, states) if state]
            steps = [whole_number("step", state["step"], 0, 2**63) for state in states if state]
        except QSGDError:
            raise
        except Exception as error:  # of whatever was passed
            raise QSGDError(f"this is no state of QSVRG: {error!r}; pass what state_dict() returned") from error
        if [len(group) for group in groups] != [len(group["params"]) for group in self.param_groups] or shapes != own:
            raise QSGDError(
                "this state of QSVRG is of other weights: load it with the groups of parameters as they were"
            )
        if len(set(steps)) > 1:
            raise QSGDError(f"this state of QSVRG has weights after different steps of the epoch: {sorted(set(steps))}")

    def _parameters(self) -> list[tuple[Tensor, dict[str, Any]]]:
        """Each parameter and its group."""
        return [(parameter, group) for group in self.param_groups for parameter in group["params"]]

    def _set_weights(self, weights: Iterable[Tensor]) -> None:
        for (parameter, _), values in zip(self._parameters(), weights):
            parameter.copy_(values)

    def _split(self, vector: Tensor) -> list[Tensor]:
        """The parts of a vector that belong to the parameters, in their shapes and dtypes."""
        parameters = [parameter for parameter, _ in self._parameters()]
        parts = torch.split(vector, [parameter.numel() for parameter in parameters])
        return [part.view(own.shape).to(own.dtype) for part, own in zip(parts, parameters)]

    def _evaluate(self, closure: Closure) -> tuple[Any, Tensor, int]:
        """What the closure returned, the gradient as a vector, and whether the closure made a mistake."""
        parameters = [parameter for parameter, _ in self._parameters()]
        for parameter in parameters:
            parameter.grad = None
        with torch.enable_grad():
            loss = closure()
        found = [parameter.grad for parameter in parameters]
        dense = (torch.zeros_like(p) if grad is None else grad.to_dense() for p, grad in zip(parameters, found))
        return loss, _vector(dense), NO_GRADIENTS if all(grad is None for grad in found) else 0

    def _check(self, mistake: int, before: Tensor, gradient: Tensor, first: bool) -> None:
        """Raise if a closure does not do its part: on all ranks in the first step, where both gradients are equal."""
        if first:
            different = bool((before - gradient).norm() > ROUNDING * gradient.norm())
            self._agree(mistake or different * TWO_GRADIENTS)
        elif mistake:
            raise QSGDError(MISTAKES[mistake])

    def _agree(self, mistake: int) -> None:
        """Raise on all ranks if one has made a mistake, or if they differ in weights or settings."""
        self._transport.prepare()
        settings = repr([(group["lr"], group["average"], len(group["params"])) for group in self.param_groups])
        weights = _vector(parameter.detach() for parameter, _ in self._parameters())
        own = torch.tensor([mistake, weights.numel(), _digest(settings.encode()), _digest(_bytes_of(weights))])
        mistakes, sizes, digests, contents = torch.stack(self._gather(own, "qsvrg.agree")).T.tolist()
        for rank, found in enumerate(mistakes):
            if found:
                raise QSGDError(f"rank {rank}: {MISTAKES[found]}")
        if len(set(sizes)) > 1:
            raise QSGDError(f"the ranks have different numbers of weights: {sizes}; give all the same parameters")
        if len(set(digests)) > 1:
            raise QSGDError("the ranks' groups of parameters, lr or average differ: make all optimizers alike")
        if len(set(contents)) > 1:
            raise QSGDError(
                "the ranks' weights differ: call hvd.broadcast_parameters(model.state_dict(), root_rank=0) before the "
                "first snapshot, and change the weights on no rank alone"
            )

    def _exact_mean(self, gradient: Tensor) -> Tensor:
        """The mean over the ranks, added up in their order, so that all have the same bits."""
        first, *others = self._gather(gradient, "qsvrg.snapshot")
        total = first.clone()
        for other in others:
            total += other
        return total / (1 + len(others))

    def _gather(self, vector: Tensor, name: str) -> list[Tensor]:
        """Every rank's vector, all of them equally long, as they are."""
        words = torch.nn.functional.pad(vector, (0, -vector.numel() % 8)).view(torch.int64)
        gathered = self._transport.allgather(words, name, words.numel()).wait()
        return [part.view(vector.dtype)[: vector.numel()] for part in gathered.chunk(self._transport.size)]


def _checked_settings(group: dict[str, Any]) -> dict[str, Any]:
    """What a group of parameters has of its own."""
    if not isinstance(group["average"], bool):
        raise QSGDError(f"average={group['average']!r} is neither True nor False")
    return {"lr": positive("lr", group["lr"], 0.1), "average": group["average"]}


def _check_closure(closure: Closure | None) -> Closure:
    if closure is None or not callable(closure):
        raise QSGDError(
            f"closure={closure!r} is no function: give one that computes the loss, calls backward() and returns it"
        )
    return closure


def _checked_compression(compression: Any, process_set: Any) -> Any:
    from hvd_qsgd.torch import QSGD  # which imports this module

    if compression is None:
        return QSGD.preset("qsgd-theory", min_size=0, process_set=process_set)
    if not all(callable(getattr(compression, name, None)) for name in ("compress", "decompress")):
        raise QSGDError(f"compression={compression!r} is none: use QSGD(min_size=0, ...) or hvd.Compression.none")
    if compression is QSGD or (isinstance(compression, QSGD) and compression._core.options.min_size):
        raise QSGDError(
            f"compression={compression!r} leaves vectors, which all weights are to it, uncompressed: make it "
            "with min_size=0"
        )
    return compression


def _vector(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _bytes_of(vector: Tensor) -> bytes:
    return vector.cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _digest(content: bytes) -> int:
    """A number that int64 holds."""
    return int.from_bytes(hashlib.sha256(content).digest()[:7], "little")
