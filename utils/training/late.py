"""
Numbers of a step on their way from the device to the host, which never waits for them inside a step.

    clock = StepClock(device)
    ...                                            # launch the step
    clock.stop()
    late = LateNumbers({"loss": loss, "grad_norm": norm})       # starts the copy
    ...                                            # the next step is launched meanwhile
    late.read()["loss"]                            # waits only if it must

On CUDA one vector goes to pinned memory without blocking, with an event behind it; elsewhere there is nothing
to wait for and the vector is read where it is.
"""

import time

import torch
from torch import Tensor


class LateNumbers:
    """Named 0-dimensional tensors as floats, once somebody asks."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._names = tuple(tensors)
        self._vector = torch.stack([each.detach().double() for each in tensors.values()])
        self._arrived: torch.cuda.Event | None = None
        if self._vector.is_cuda:
            pinned = torch.empty(self._vector.shape, dtype=torch.float64, pin_memory=True)
            self._vector = pinned.copy_(self._vector, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> dict[str, float]:
        """The numbers; waits for the device where they are not there yet."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return dict(zip(self._names, self._vector.tolist(), strict=True))


class StepClock:
    """Seconds from here to `stop`, on the device's own clock where the host runs ahead of it."""

    def __init__(self, device: torch.device) -> None:
        self._events = None
        if device.type == "cuda":
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self._events[0].record()
        self._started = self._stopped = time.perf_counter()

    def stop(self) -> None:
        self._stopped = time.perf_counter()
        if self._events:
            self._events[1].record()

    def seconds(self) -> float:
        """After the numbers of the step were read."""
        if self._events:
            return self._events[0].elapsed_time(self._events[1]) / 1000
        return self._stopped - self._started
