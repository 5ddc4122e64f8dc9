"""Data-parallel training: which process takes which slide, and what they tell each other.

Every function takes the launched ``Fabric`` of Lightning, or `None` where one process trains alone.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning.fabric import Fabric


def share(order: list[int], fabric: Fabric | None) -> list[tuple[int, float]]:
    """Slides of this process in an epoch, and the weight of the loss of each.

    The slides are dealt out one by one, equally many to each. If there are not enough for the last step, those that
    have none compute one again that counts nothing, and the losses of the others are weighted such that the mean over
    processes is the mean over the slides that are left.
    """
    if fabric is None:
        return [(i, 1.0) for i in order]
    n, size = len(order), fabric.world_size
    places = range(fabric.global_rank, -(-n // size) * size, size)
    left = n % size or size
    return [(order[place % n], 1.0 if place < n - left else size / left if place < n else 0.0) for place in places]


def gathered(terms: Tensor, n: int, fabric: Fabric | None) -> Tensor:
    """Terms of all `n` slides in their order, (n, ...), on the CPU, from those of this process' steps."""
    if fabric is None:
        return terms.cpu()
    return _everyone(terms, fabric).transpose(0, 1).flatten(0, 1)[:n].cpu()


def rank_seeds(seed: int, rank: int) -> tuple[int, int]:
    """Seeds of dropout and of masks of a process that is not the first."""
    dropout, masks = (int(s) for s in np.random.SeedSequence(seed, spawn_key=(rank,)).generate_state(2))
    return dropout, masks


def check_same(what: object, n_slides: int, fabric: Fabric) -> None:
    """An error, in every process, if `what` differs between them, or if there are more of them than slides."""
    digest = torch.tensor(zlib.crc32(repr(what).encode()), device=fabric.device)
    if _everyone(digest, fabric).unique().numel() > 1:
        raise ValueError(
            "The processes that train together were given different slides, hyperparameters or seeds. Each reads the "
            "whole reference and calls train with the same arguments, an int as the seed; train deals out the slides."
        )
    if n_slides < fabric.world_size:
        raise ValueError(
            f"There are {fabric.world_size} processes for {n_slides} slides (or blocks): each takes another one in a "
            f"step. Start at most {n_slides}: torchrun --nproc-per-node={n_slides}"
        )


def _everyone(values: Tensor, fabric: Fabric) -> Tensor:
    """The values of every process, of the same shape, stacked."""
    stacked = values.new_zeros(fabric.world_size, *values.shape)
    stacked[fabric.global_rank] = values
    return fabric.all_reduce(stacked, reduce_op="sum")
