"""Random choices of elements, from as few random numbers as will do."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

_STEPS = 2**16


def chosen(
    shape: tuple[int, ...], share: float, generator: torch.Generator | None = None, device: torch.device | None = None
) -> Tensor:
    """Choose elements at random, each with probability `share` (to 1 / 65536); boolean, of `shape`.

    On the CPU four elements are drawn by one random number of 64 bits; `torch.bernoulli` draws one for each.
    """
    device = device if generator is None else generator.device
    if device is not None and device.type != "cpu":
        return torch.rand(shape, generator=generator, device=device) < share
    n, below = torch.Size(shape).numel(), round(share * _STEPS) - _STEPS // 2
    if below == _STEPS // 2:  # One more than the largest number: all of them.
        return torch.ones(shape, dtype=torch.bool)
    numbers = torch.empty((n + 3) // 4, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    return (numbers.view(torch.int16)[:n] < below).view(shape)


class Dropout(nn.Module):
    """What `torch.nn.Dropout` does, with :func:`chosen` on the CPU, where its own draws take longer than a product."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, states: Tensor) -> Tensor:
        if not self.training or self.p == 0 or states.device.type != "cpu":
            return dropout(states, self.p, self.training)
        return states * chosen(tuple(states.shape), 1 - self.p).to(states.dtype).div_(1 - self.p)
