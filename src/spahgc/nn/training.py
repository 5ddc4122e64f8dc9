"""The training loop: AdamW, one slide a step (DESIGN section 2.6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import HeteroData
from tqdm.auto import tqdm

from ._parallel import check_same, gathered, rank_seeds, share
from .config import Config
from .graph import GraphTensors, graph_tensors
from .loss import Measured, Terms, supervised_terms, supervised_terms_by_components
from .masking import TargetEncoder
from .model import SpaHGC

if TYPE_CHECKING:
    from lightning.fabric import Fabric

History = dict[str, list[float]]

KEEP = 2**31
"""Bytes of graphs that stay on the device between epochs."""
_NODES_X_WIDTH_PER_THREAD = 250_000
"""Work for which another thread pays. Below it, threads wait for each other: on two cores, 800 nodes of width 64 take a
tenth longer with two threads than with one, and more than twenty times as long if other programs use the cores."""


def train(
    graphs: Sequence[tuple[HeteroData | GraphTensors, Tensor]],
    config: Config | None = None,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    components: Tensor | None = None,
    validate: Callable[[SpaHGC], float] | None = None,
    patience: int | None = None,
    names: Sequence[str] | None = None,
    progress: bool = False,
    fabric: Fabric | None = None,
) -> tuple[SpaHGC, History]:
    """Train the network.

    Every slide is a step, in an order drawn anew each epoch. Everything random comes from `seed`; torch's own random
    state is the same after as before. On CUDA the layers compute in bfloat16 (autocast), the output layer and the
    losses in float32, and sums over edges are not reproducible to the last bit.

    With `fabric`, the N processes that it joins train one network together. Each calls this with the same arguments. In
    a step each takes another slide, the gradients are averaged, and the weights are the same everywhere, bit for bit.
    All draw the same order of slides; masks and dropout differ, those of the first process being what `seed` gives
    without `fabric`. An epoch has 1/N of the steps, rounded up. Every slide counts once in it: where N does not divide
    their number, the last step averages over the slides that are left.

    Parameters
    ----------
    graphs
        Graph of each reference slide (or block of one) in turn as the target, its references taken from the other
        slides, and its expression, float32 (n, g). Not changed. ``data["target"].base``, (n, g), if present is added to
        the output. Any sequence will do: an item is asked for when its step comes, and kept on the device while all
        kept ones take less than :data:`KEEP` bytes.
    config
        Hyperparameters; the default is the paper's. With both contrastive weights 0, the views are not computed.
    seed
        Seed of weights, dropout, masks and slide order.
    device
        Torch device; that of `fabric`, if there is one.
    components
        Fixed components (r, g) of the output; see :class:`SpaHGC`.
    validate
        Called after each epoch with the network in evaluation mode, without gradients, on `device`; returns a score,
        higher is better, of slides that are **not** in `graphs`. The weights of the best epoch are returned. With
        `fabric`, only the first process calls it.
    patience
        Stop after this many epochs without a better score; `None`: go on to the last epoch. Needs `validate`.
    names
        Names of the slides, for messages.
    progress
        Show a progress bar; with `fabric`, in the first process only.
    fabric
        A launched ``lightning.fabric.Fabric`` with the strategy ``DDPStrategy(static_graph=True)``. `None`: one device.

    Returns
    -------
    The network on `device`, in evaluation mode, and its history: per epoch, averaged over slides, ``loss``, ``mse``,
    ``pearson`` (the mean per-gene correlation itself), ``contrast_target`` and ``contrast_reference`` (where they are
    computed), and with `validate` also ``validation``, whose first maximum is the epoch of the weights returned.

    Raises
    ------
    ValueError
        For no slides, or slides that differ in features or genes; with `fabric`, for processes that were given
        different slides, hyperparameters or seeds, or that are more than there are slides.
    FloatingPointError
        If the loss becomes NaN or infinite; the message names epoch and slide.
    """
    config = Config() if config is None else config
    slides = [f"slide {i}" for i in range(len(graphs))] if names is None else list(names)
    n_genes, sizes = _check(graphs, slides, validate, patience)
    device = torch.device(device) if fabric is None else fabric.device
    if fabric is not None:
        check_same((slides, sizes, n_genes, config, seed, validate is None, patience), len(slides), fabric)
    weights_and_dropout, masks, shuffle = (int(s) for s in np.random.SeedSequence(seed).generate_state(3))
    with _seeded(weights_and_dropout, device), _threads(max(map(sum, sizes)), config):
        steps = Steps(graphs, device, by_components=components is not None)
        model = SpaHGC(steps[0][0].target.shape[1], n_genes, config, components=components).to(device)
        if fabric is not None and fabric.global_rank > 0:
            dropout, masks = rank_seeds(seed, fabric.global_rank)
            _seed(dropout, device)
        generators = torch.Generator(device).manual_seed(masks), torch.Generator().manual_seed(shuffle)
        return model, _loop(model, steps, slides, generators, validate, patience, progress, fabric)


def _loop(
    model: SpaHGC,
    steps: Steps,
    names: list[str],
    generators: tuple[torch.Generator, torch.Generator],
    validate: Callable[[SpaHGC], float] | None,
    patience: int | None,
    progress: bool,
    fabric: Fabric | None,
) -> History:
    config = model.config
    masks, shuffle = generators
    progress = progress and (fabric is None or fabric.is_global_zero)
    # One kernel for all weights instead of one per weight and operation.
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    target_encoder = TargetEncoder(model.encoder, config.ema_decay)
    contrasts = config.weight_target > 0 or config.weight_reference > 0
    loss: nn.Module = StepLoss(model, target_encoder if contrasts else None, masks)
    if fabric is not None:
        loss, optimizer = fabric.setup(loss, optimizer)
    history: History = {}
    best_score, best_epoch, best_weights = -math.inf, -1, None
    for epoch in (bar := tqdm(range(config.epochs), desc="Training", unit="epoch", disable=not progress)):
        model.train()
        order = torch.randperm(len(steps), generator=shuffle).tolist()
        terms = []
        for i, weight in share(order, fabric):
            terms.append(_step(loss, steps[i], weight, optimizer))
            if contrasts:
                target_encoder.update(model.encoder)
        _record(history, gathered(torch.stack(terms), len(order), fabric), [names[i] for i in order], contrasts, epoch)
        if validate is None:
            continue
        model.eval()
        score = _score(model, validate, fabric)
        history.setdefault("validation", []).append(score)
        if progress:
            bar.set_postfix(score=f"{score:.3f}")
        if score > best_score:
            best_score, best_epoch = score, epoch
            best_weights = {name: value.clone() for name, value in model.state_dict().items()}
        elif patience is not None and epoch - best_epoch >= patience:
            break
    model.eval()
    if validate is not None:
        if best_weights is None:
            raise ValueError(f"validate gave no finite score in {len(history['validation'])} epochs.")
        model.load_state_dict(best_weights)
    return history


class StepLoss(nn.Module):
    """Loss of a slide: prediction and contrastive terms in one forward pass, as data-parallel training wraps it."""

    def __init__(self, model: SpaHGC, target_encoder: TargetEncoder | None, masks: torch.Generator) -> None:
        super().__init__()
        self.model, self.target_encoder, self.masks = model, target_encoder, masks

    def forward(self, graph: GraphTensors, expression: Tensor | Measured) -> tuple[Tensor, Tensor]:
        """The loss, and the loss and its terms without gradient, (5,)."""
        device, components = graph.target.device, self.model.components
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            prediction = self.model(graph) if isinstance(expression, Tensor) else self.model.head_output(graph)
            zero = prediction.new_zeros(())
            contrast = (
                (zero, zero)
                if self.target_encoder is None
                else self.model.contrast(graph, self.target_encoder, self.masks)
            )
        if graph.core is not None:
            prediction = prediction.index_select(0, graph.core)
        if isinstance(expression, Tensor):
            supervised = supervised_terms(prediction, expression)
        elif components is not None:
            supervised = supervised_terms_by_components(prediction, components, expression)
        else:
            raise TypeError("The network has no components: it is trained on the expression itself.")
        terms = Terms(*supervised, *contrast)
        loss = terms.total(self.model.config)
        return loss, torch.stack([loss, *terms]).detach()


def _step(
    loss: nn.Module, slide: tuple[GraphTensors, Tensor | Measured], weight: float, optimizer: torch.optim.Optimizer
) -> Tensor:
    """One slide; returns the loss and its terms, (5,), left on the device so that no step waits for it."""
    optimizer.zero_grad(set_to_none=True)
    value, terms = loss(*slide)
    (value if weight == 1 else weight * value).backward()
    optimizer.step()
    return terms


def _score(model: SpaHGC, validate: Callable[[SpaHGC], float], fabric: Fabric | None) -> float:
    """Score of the network; that of the first process for all, so that they agree on the best epoch and the last."""
    score = math.nan
    if fabric is None or fabric.is_global_zero:
        with torch.no_grad():
            score = float(validate(model))
    return score if fabric is None else fabric.broadcast(score)


def _record(history: History, terms: Tensor, names: list[str], contrasts: bool, epoch: int) -> None:
    """Add the means over slides of an epoch's terms, (n_slides, 5), to the history; an error if one is not finite."""
    bad = (~terms.isfinite().all(dim=1)).nonzero()
    if len(bad):
        first = int(bad[0])
        labels = ("loss", "mse", "1 - pearson", "contrast_target", "contrast_reference")
        values = ", ".join(f"{label} {value:g}" for label, value in zip(labels, terms[first].tolist(), strict=True))
        raise FloatingPointError(
            f"The loss became NaN or infinite in epoch {epoch + 1}, on {names[first]!r} ({values}). Look for extreme "
            "values in its embedding, expression or base prediction, or take a smaller learning_rate."
        )
    loss, mse, pearson, target, reference = terms.double().mean(dim=0).tolist()
    row = {"loss": loss, "mse": mse, "pearson": 1 - pearson}
    if contrasts:
        row |= {"contrast_target": target, "contrast_reference": reference}
    for key, value in row.items():
        history.setdefault(key, []).append(value)


class Steps:
    """The slides (or blocks) of a training, made and moved to the device when their step comes.

    Those that fit into :data:`KEEP` bytes altogether stay there. The expression is that of a block's core; with
    `by_components` it is prepared for a loss that is taken by components.
    """

    def __init__(
        self,
        graphs: Sequence[tuple[HeteroData | GraphTensors, Tensor]],
        device: torch.device,
        *,
        by_components: bool = False,
    ) -> None:
        self._graphs, self._device, self._by_components = graphs, device, by_components
        self._kept: dict[int, tuple[GraphTensors, Tensor | Measured]] = {}
        self._free = KEEP

    def __len__(self) -> int:
        return len(self._graphs)

    def __getitem__(self, i: int) -> tuple[GraphTensors, Tensor | Measured]:
        if i in self._kept:
            return self._kept[i]
        data, expression = self._graphs[i]
        graph = data if isinstance(data, GraphTensors) else graph_tensors(data)
        graph, expression = graph.to(self._device).with_edges(), expression.to(self._device)
        if graph.core is not None:
            expression = expression.index_select(0, graph.core)
        by_components = self._by_components and graph.base is None
        step = graph, Measured.of(expression) if by_components else expression
        size = graph.nbytes + expression.nbytes
        if size <= self._free:
            self._kept[i] = step
            self._free -= size
        return step


def _check(
    graphs: Sequence[tuple[HeteroData | GraphTensors, Tensor]],
    names: Sequence[str],
    validate: object,
    patience: int | None,
) -> tuple[int, list[tuple[int, int]]]:
    """Number of genes, and of each graph's target and reference nodes; an error for slides that do not fit together."""
    if len(graphs) == 0:
        raise ValueError("There is no slide to train on.")
    if len(names) != len(graphs):
        raise ValueError(f"There are {len(names)} names for {len(graphs)} slides.")
    if patience is not None and (validate is None or patience < 1):
        raise ValueError(f"patience is at least 1 and needs validate; it is {patience}, and validate is {validate}.")
    expressions, widths, sizes = {}, {}, []
    for i, name in enumerate(names):
        data, y = graphs[i]
        target, reference = (
            (data.target, data.reference) if isinstance(data, GraphTensors) else (data["target"].x, data["reference"].x)
        )
        expressions[i, name], widths[i, name] = tuple(y.shape), target.shape[1]
        sizes.append((len(target), len(reference)))
        if y.ndim == 2 and len(target) != len(y):
            raise ValueError(f"{name!r} has {len(target)} spots and {len(y)} rows of expression.")
    n_genes = {shape[1] for shape in expressions.values() if len(shape) == 2}
    if len(n_genes) > 1 or any(len(shape) != 2 for shape in expressions.values()):
        shapes = {name: shape for (_, name), shape in expressions.items()}
        raise ValueError(f"Expression is (n_spots, n_genes) with the same genes on every slide, not {shapes}.")
    if len(set(widths.values())) > 1:
        found = {name: width for (_, name), width in widths.items()}
        raise ValueError(f"The slides differ in the width of their embeddings: {found}.")
    return n_genes.pop(), sizes


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators of the CPU and of `device`; put their states back at the end.

    Initialisation and dropout take no generator of their own.
    """
    backend = {"cuda": torch.cuda, "mps": torch.mps}.get(device.type)
    arguments = (device,) if device.type == "cuda" else ()
    before = torch.get_rng_state()
    before_device = backend.get_rng_state(*arguments) if backend else None
    try:
        _seed(seed, device)
        yield
    finally:
        torch.set_rng_state(before)
        if backend and before_device is not None:
            backend.set_rng_state(before_device, *arguments)


def _seed(seed: int, device: torch.device) -> None:
    """Seed the global generators of the CPU and of `device`; torch.manual_seed would seed all devices."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@contextmanager
def _threads(most_nodes: int, config: Config) -> Iterator[None]:
    """No more of torch's threads than the largest graph is worth; their number is put back at the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, max(1, config.hidden * most_nodes // _NODES_X_WIDTH_PER_THREAD)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
