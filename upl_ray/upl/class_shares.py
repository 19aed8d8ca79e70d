"""The classes of one member, split over several workers, each of which encodes its share of them.

Every worker holds all contexts and sees the same batches. A step exchanges a few numbers for each image (the softmax's
statistics) and the gradient of the contexts; the result is that of one worker, to rounding, and the same on all.

The workers are the ranks of torch.distributed's default process group. Tensors travel by `all_reduce`, the
one collective that both gloo and NCCL have on a GPU.

Shapes: R workers, C classes, c classes of the own share.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class ClassShares:
    """Contiguous shares of the classes, whose sizes differ by one at most; one worker has all and exchanges nothing.

    Args:
        n_classes: C.
        rank: of this worker.
        world: R; 1: torch.distributed is not used, and need not be initialised.

    Raises:
        ValueError: there are more workers than classes.
    """

    def __init__(self, n_classes: int, rank: int = 0, world: int = 1) -> None:
        if world > n_classes:
            raise ValueError(
                f"{world} workers cannot share {n_classes} classes, as each needs one; lower compute.workers_per_trial."
            )
        self.n_classes, self.rank, self.world = n_classes, rank, world
        self.own = slice(n_classes * rank // world, n_classes * (rank + 1) // world)

    def gather(self, x: Tensor) -> Tensor:
        """The values of all workers, [...] -> [R, ...]; gradients flow into the own ones alone."""
        if self.world == 1:
            return x[None]
        values = x.new_zeros(self.world, *x.shape)
        values[self.rank] = x.detach()
        dist.all_reduce(values)
        return torch.cat([values[: self.rank], x[None], values[self.rank + 1 :]])

    def join(self, x: Tensor) -> Tensor:
        """What belongs to classes, of all of them: [G, c, ...] -> [G, C, ...]; without gradients."""
        if self.world == 1:
            return x
        values = x.new_zeros(len(x), self.n_classes, *x.shape[2:])
        values[:, self.own] = x
        dist.all_reduce(values)
        return values

    def add_up(self, x: Tensor) -> None:
        """Replace a tensor by the sum of all workers' tensors, which is bitwise the same on all of them."""
        if self.world > 1:
            dist.all_reduce(x)

    def of_first(self, value: T) -> T:
        """The first worker's value, of any kind that pickle takes, for all: storage may change between two reads."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def least(self, number: int, device: torch.device) -> int:
        """The smallest of all workers' numbers; it travels through `device`."""
        if self.world == 1:
            return number
        x = torch.tensor(number, device=device)
        dist.all_reduce(x, dist.ReduceOp.MIN)
        return int(x)
