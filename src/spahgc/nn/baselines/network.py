"""What all baseline networks have in common, and how one is fitted: AdamW, one whole slide a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from tqdm.auto import tqdm

from ..training import History, seeded

Inputs = Mapping[str, Tensor]
"""What a network reads of a slide, by name; ``"embedding"``, (n, d), is always there."""
Step = tuple[Inputs, Tensor]
"""A reference slide: its inputs, and its expression, standardised per gene over the reference, (n, g)."""


class Network(nn.Module):
    """A network from the inputs of a slide to its standardised expression, (n, g)."""

    recalls: bool = False
    """Whether it needs the reference slides to predict (:meth:`recall`)."""

    def losses(self, inputs: Inputs, expression: Tensor) -> dict[str, Tensor]:
        """Terms whose sum is minimised, by name."""
        return {"mse": mse_loss(self(inputs), expression)}

    def recall(self, references: Sequence[Step]) -> None:
        """Look at the reference slides again; called in evaluation mode before predictions are asked for."""


@dataclass(frozen=True)
class Training:
    """How a network is fitted.

    Parameters
    ----------
    epochs
        Passes over the slides.
    learning_rate, weight_decay
        Of AdamW.
    seed
        Seed of weights, dropout and the order of the slides.
    label
        Text of the progress bar; empty: no bar.
    patience
        Where there is validation, stop after this many epochs without a better score; `None`: go on to the last.
    """

    epochs: int
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    seed: int = 0
    label: str = ""
    patience: int | None = None


def fit_network(
    make: Callable[[], Network],
    steps: Sequence[Step],
    training: Training,
    *,
    device: str | torch.device = "cpu",
    names: Sequence[str] | None = None,
    validate: Callable[[Network], float] | None = None,
) -> tuple[Network, History]:
    """Make a network and fit it.

    Every slide is a step, in an order drawn anew each epoch. Everything random comes from the seed; torch's own random
    state is the same after as before.

    Parameters
    ----------
    make
        Makes the network, its weights drawn from torch's global generator.
    steps
        The reference slides, on `device`.
    training
        Hyperparameters.
    device
        Torch device.
    names
        Names of the slides, for messages.
    validate
        Called after each epoch with the network ready to predict; returns a score, higher is better, of other slides.

    Returns
    -------
    The network of the last epoch, on `device`, ready to predict, and its history: per epoch, averaged over slides,
    ``loss`` and its terms, and with `validate` ``validation``.

    Raises
    ------
    FloatingPointError
        If the loss becomes NaN or infinite; the message names epoch and slide.
    """
    device = torch.device(device)
    slides = [f"slide {i}" for i in range(len(steps))] if names is None else list(names)
    weights_and_dropout, shuffle = (int(s) for s in np.random.SeedSequence(training.seed).generate_state(2))
    order = torch.Generator().manual_seed(shuffle)
    history: History = {}
    with seeded(weights_and_dropout, device):
        network = make().to(device)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
        )
        for epoch in tqdm(range(training.epochs), desc=training.label, unit="epoch", disable=not training.label):
            network.train()
            drawn = torch.randperm(len(steps), generator=order).tolist()
            rows = [_step(network, steps[i], optimizer) for i in drawn]
            _record(history, rows, [slides[i] for i in drawn], epoch)
            if validate is not None:
                ready(network, steps)
                scores = history.setdefault("validation", [])
                scores.append(validate(network))
                if training.patience is not None and len(scores) - int(np.argmax(scores)) > training.patience:
                    break
    return ready(network, steps), history


def ready(network: Network, references: Sequence[Step]) -> Network:
    """The network in evaluation mode, with the reference slides recalled."""
    network.eval()
    with torch.no_grad():
        network.recall(references)
    return network


def _step(network: Network, step: Step, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    optimizer.zero_grad(set_to_none=True)
    terms = network.losses(*step)
    loss = torch.stack(list(terms.values())).sum()
    loss.backward()
    optimizer.step()
    return {"loss": loss.detach()} | {name: term.detach() for name, term in terms.items()}


def _record(history: History, rows: Sequence[Mapping[str, Tensor]], names: Sequence[str], epoch: int) -> None:
    values = torch.stack([torch.stack(list(row.values())) for row in rows]).double().cpu()
    bad = (~values.isfinite().all(dim=1)).nonzero()
    if len(bad):
        raise FloatingPointError(
            f"The loss became NaN or infinite in epoch {epoch + 1}, on {names[int(bad[0])]!r}. Look for extreme values "
            "in its embedding or expression, or take a smaller learning_rate."
        )
    for key, value in zip(rows[0], values.mean(dim=0).tolist(), strict=True):
        history.setdefault(key, []).append(value)
