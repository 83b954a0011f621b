"""
What a training step keeps in memory, counted in bytes, and what to change when it does not fit.

    footprint = footprint_of(loss_model, parameters, [batch_of_1, batch_of_2])
    footprint.peak(rows=8) <= HEADROOM * available_bytes(device, footprint, num_ranks)
    footprint.report()             # parameters 16.8 MB, gradients 16.8 MB, moments 33.6 MB, 51.2 MB a row

Kept are parameters, gradients, the moments of the optimizer (fp32, with fp32 masters behind low-precision
parameters) and, from forward to backward, what autograd saves: a share per row, and copies of the weights in
the dtype of the products. Autograd is asked for the latter with hooks that hold nothing, so measuring needs
no room. What an operation needs only while it runs is not counted, which is why HEADROOM is below 1.
"""

import ctypes
import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from utils.pipeline.errors import OUT_OF_MEMORY, StageError, lacking_resource
from utils.training.loss import Batch

HEADROOM = 0.85
MOMENTS_BYTES, MASTER_BYTES = 8, 4
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h of the GNU C library
LARGEST_MMAP_THRESHOLD = 32 << 20
CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Footprint:
    """Bytes of the weights, their gradients and moments; saved in a step whatever its rows; saved per row."""

    parameters: int
    gradients: int
    moments: int
    copies: int
    row: int

    def peak(self, rows: int) -> int:
        """Bytes held at the end of a forward pass of `rows`."""
        return self.parameters + self.gradients + self.moments + self.copies + rows * self.row

    def report(self) -> str:
        """One line for people."""
        return (
            f"parameters {megabytes(self.parameters)}, gradients {megabytes(self.gradients)}, "
            f"moments {megabytes(self.moments)}, copies of weights {megabytes(self.copies)}, "
            f"activations {megabytes(self.row)} a row"
        )


def footprint_of(
    loss_model: nn.Module, parameters: Sequence[nn.Parameter], batches: Sequence[Batch]
) -> Footprint:
    """Measure with one or two micro-batches of 1 and 2 rows; `parameters` are those that train."""
    kept = [saved_bytes(loss_model, batch) for batch in batches]
    row = kept[-1] - kept[0] if len(kept) > 1 else kept[0]
    tensors = [*loss_model.parameters(), *loss_model.buffers()]
    return Footprint(
        parameters=sum(each.nbytes for each in tensors),
        gradients=sum(4 * each.numel() for each in parameters),
        moments=sum(_moment_bytes(each) for each in parameters),
        copies=max(0, kept[0] - row),
        row=row,
    )


def _moment_bytes(parameter: nn.Parameter) -> int:
    return parameter.numel() * (MOMENTS_BYTES + (MASTER_BYTES if parameter.dtype.itemsize < 4 else 0))


def saved_bytes(loss_model: nn.Module, batch: Batch) -> int:
    """Bytes that a forward pass of `batch` leaves for the backward pass, the weights themselves apart."""
    weights = {each.untyped_storage().data_ptr() for each in loss_model.parameters()}
    seen: dict[int, StorageWeakRef] = {}
    total = 0

    def count(tensor: Tensor) -> None:
        nonlocal total
        storage = tensor.untyped_storage()
        known = seen.get(storage._cdata)
        if storage.data_ptr() not in weights and (known is None or known.expired()):
            seen[storage._cdata] = StorageWeakRef(storage)
            total += storage.nbytes()

    with torch.autograd.graph.saved_tensors_hooks(count, lambda _: None):
        loss_model(batch)
    return total


def available_bytes(device: torch.device, footprint: Footprint, num_ranks: int) -> int:
    """
    Bytes that this process may hold on `device`, those that it holds for its weights included. Processes
    share the memory of a host evenly.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    return free_host_bytes() // num_ranks + footprint.parameters


def free_host_bytes(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int:
    """Memory that the machine, or the container around this process, can still give; on macOS all of it."""
    if not meminfo.is_file():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = 1024 * int(fields["MemAvailable"].split()[0])
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - int(used.read_text()))
    return max(0, free)


def peak_bytes(device: torch.device) -> int:
    """The most that this process has held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def ran_out(error: BaseException) -> bool:
    """Whether an allocation failed."""
    return lacking_resource(error) == OUT_OF_MEMORY


@contextmanager
def building_watched(name: str, parameters: int, device: torch.device, num_shares: int = 1) -> Iterator[None]:
    """
    The region in which a model of so many `parameters`, split into `num_shares`, is made; StageError when it
    does not fit.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        weights, step = (each * parameters // num_shares for each in (4, 4 + 4 + MOMENTS_BYTES))
        split = f" in each of {num_shares} processes" if num_shares > 1 else ""
        raise StageError(
            f"out of memory while {name} was built on {device.type}: its {parameters:,} parameters take "
            f"{megabytes(weights)}, and {megabytes(step)} with gradients and moments{split} "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__})",
            fix='a smaller "model" (docs/models.md has their sizes), or a machine with more memory',
        ) from error


def megabytes(count: int) -> str:
    """Bytes for people: 16.8 MB, 3.1 GB."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def keep_freed_memory() -> bool:
    """
    Let this process keep what it frees for its next allocation, up to blocks of 32 MiB, as CUDA's allocator
    does. A step on a CPU asks for the same blocks each time, and getting fresh pages for them takes some
    percent of it. False where the C library is not GNU's.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wishes = {
        M_TRIM_THRESHOLD: 2**31 - 1,
        M_TOP_PAD: 2 * LARGEST_MMAP_THRESHOLD,
        M_MMAP_THRESHOLD: LARGEST_MMAP_THRESHOLD,
    }
    return all(mallopt(name, value) for name, value in wishes.items())
