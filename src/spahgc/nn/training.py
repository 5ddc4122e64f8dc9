"""Training: one loop for all networks (AdamW, one slide per step), and the training of SpaHGC on it."""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from tqdm.auto import tqdm

from .graph import GraphTensors
from .loss import Measured, pearson_loss, supervised_terms_by_components
from .model import Config, SpaHGCNetwork, TargetEncoder

if TYPE_CHECKING:
    from lightning.fabric import Fabric

History = dict[str, list[float]]

KEEP = 2**31  # bytes of graphs that stay on the device between epochs
# Work that pays for another thread. Below it, threads wait for each other: on two cores, 800 nodes of width 64 take a
# tenth longer with two threads than with one, and more than twenty times as long if other programs use the cores.
_NODES_X_WIDTH_PER_THREAD = 250_000


def fit(
    loss: nn.Module,
    steps: Sequence[tuple[Any, ...]],
    names: Sequence[str],
    *,
    epochs: int,
    learning_rate: float,
    weight_decay: float,
    shuffle: int,
    label: str = "",
    after_step: Callable[[], None] | None = None,
    after_epoch: Callable[[History], bool] | None = None,
    fabric: Fabric | None = None,
) -> History:
    """Minimize a loss with AdamW, one slide per step, in a new random order each epoch.

    Parameters
    ----------
    loss
        Module that holds the network. Called with the items of a step, it returns scalar terms by name; the one named
        ``"loss"`` is minimized.
    steps, names
        Arguments of the loss for each slide, read item by item, and the slides' names for error messages.
    epochs, learning_rate, weight_decay
        Passes over the slides, and parameters of AdamW.
    shuffle
        Seed of the order of the slides.
    label
        Text of the progress bar; empty for no bar.
    after_step, after_epoch
        Called after each step; after each epoch, with the history, to which it may add. `True` from `after_epoch` ends
        the training.
    fabric
        As for :func:`train`.

    Returns
    -------
    Mean of each term over the slides, per epoch. A term that becomes NaN or infinite is a FloatingPointError.
    """
    # One kernel for all weights instead of one per weight and operation.
    optimizer = torch.optim.AdamW(loss.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True)
    if fabric is not None:
        loss, optimizer = fabric.setup(loss, optimizer)
    generator, history = torch.Generator().manual_seed(shuffle), History()
    for epoch in tqdm(range(epochs), desc=label, unit="epoch", disable=not label):
        loss.train()
        order = torch.randperm(len(steps), generator=generator).tolist()
        rows, terms = [], {}
        for i, weight in share(order, fabric):
            optimizer.zero_grad(set_to_none=True)
            terms = loss(*steps[i])
            (weight * terms["loss"]).backward()
            optimizer.step()
            # Left on the device, so that no step waits for it.
            rows.append(torch.stack([term.detach() for term in terms.values()]))
            if after_step is not None:
                after_step()
        values = torch.stack(rows)
        if fabric is not None:
            values = _stacked(values, fabric).transpose(0, 1).flatten(0, 1)[: len(order)]
        values = values.cpu()
        bad = (~values.isfinite().all(dim=1)).nonzero()
        if len(bad):
            first = int(bad[0])
            found = ", ".join(f"{term} {value:g}" for term, value in zip(terms, values[first].tolist(), strict=True))
            raise FloatingPointError(
                f"The loss became NaN or infinite in epoch {epoch + 1}, on {names[order[first]]!r} ({found}). Look for "
                "extreme values in its embedding or expression, or use a smaller learning_rate."
            )
        for term, value in zip(terms, values.double().mean(dim=0).tolist(), strict=True):
            history.setdefault(term, []).append(value)
        if after_epoch is not None and after_epoch(history):
            break
    return history


def share(order: list[int], fabric: Fabric | None) -> list[tuple[int, float]]:
    """Slides that this process takes in an epoch, and the weights of their losses.

    Slides are dealt out one by one, equally many to each process. Where they do not suffice for the last step, the
    other processes compute a slide again with weight 0, and the weights of the rest keep the mean over slides.
    """
    if fabric is None:
        return [(i, 1.0) for i in order]
    n, size = len(order), fabric.world_size
    places = range(fabric.global_rank, -(-n // size) * size, size)
    left = n % size or size
    return [(order[place % n], 1.0 if place < n - left else size / left if place < n else 0.0) for place in places]


def _stacked(values: Tensor, fabric: Fabric) -> Tensor:
    """Values of all processes, of the same shape, stacked."""
    stacked = values.new_zeros(fabric.world_size, *values.shape)
    stacked[fabric.global_rank] = values
    return fabric.all_reduce(stacked, reduce_op="sum")


def _check_processes(arguments: object, n_slides: int, fabric: Fabric) -> None:
    """Raise, in every process, if the arguments differ between processes, or if there are more of them than slides."""
    digest = torch.tensor(zlib.crc32(repr(arguments).encode()), device=fabric.device)
    if _stacked(digest, fabric).unique().numel() > 1:
        raise ValueError(
            "The processes that train together were given different slides, hyperparameters or seeds. Call train with "
            "the whole reference and the same arguments, with an int as the seed, in each of them."
        )
    if n_slides < fabric.world_size:
        raise ValueError(
            f"There are {fabric.world_size} processes for {n_slides} slides (or blocks), and each needs its own in "
            f"every step. Start at most {n_slides}: torchrun --nproc-per-node={n_slides}"
        )


_SEEDED = threading.RLock()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators; restore those of the CPU and of CUDA at the end. Threads take turns."""
    with _SEEDED, torch.random.fork_rng(range(torch.cuda.device_count()) if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Use at most `n` threads of torch, at least one, and restore their number at the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, max(1, n)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def few_threads(n_nodes: int, width: int) -> AbstractContextManager[None]:
    """Limit torch's threads to what graphs of `n_nodes` nodes pay for."""
    return threads(n_nodes * width // _NODES_X_WIDTH_PER_THREAD)


def train(
    graphs: Sequence[tuple[GraphTensors, Tensor]],
    config: Config | None = None,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    components: Tensor | None = None,
    validate: Callable[[SpaHGCNetwork], float] | None = None,
    names: Sequence[str] | None = None,
    progress: bool = False,
    fabric: Fabric | None = None,
) -> tuple[SpaHGCNetwork, History]:
    """Train the network.

    Everything random comes from `seed`; torch's random state is the same after as before. On CUDA, layers compute in
    bfloat16 (autocast), the output layer and the losses in float32, and sums over edges are not reproducible to the
    last bit.

    With `fabric`, N processes call this function with the same arguments and train one network together. In every step
    each takes a different slide, and gradients are averaged. An epoch has 1/N of the steps, rounded up, and every slide
    counts once. Masks and dropout differ between processes; the first has those of `seed` without `fabric`.

    Parameters
    ----------
    graphs
        Graph of each reference slide (or block of one) as the target, with references from the other slides, and its
        expression, float32 (n_spots, n_genes). Any sequence: items are read when their step comes, and stay on the
        device as long as they fit into 2 GiB together.
    config
        Hyperparameters; the paper's by default. With both contrastive weights 0, no masked views are computed.
    seed
        Seed of weights, dropout, masks and slide order.
    device
        Torch device; ignored with `fabric`, which has its own.
    components
        Fixed components of the output, (n_components, n_genes); see :class:`SpaHGCNetwork`.
    validate
        Called after each epoch with the network in evaluation mode; returns a score (higher is better) on slides that
        are **not** in `graphs`. The weights of the best epoch are returned instead of the last.
    names
        Names of the slides, for error messages.
    progress
        Show a progress bar, in the first process only.
    fabric
        A launched ``lightning.fabric.Fabric`` with the strategy ``DDPStrategy(static_graph=True)``.

    Returns
    -------
    The network on `device`, in evaluation mode, and its history: per epoch and averaged over slides, ``loss``, ``mse``,
    ``pearson`` (mean per-gene correlation), ``contrast_target`` and ``contrast_reference`` (if computed), and
    ``validation`` (with `validate`).

    Raises
    ------
    ValueError
        If slides are missing or differ in features or genes, or processes in arguments or outnumber the slides.
    """
    config = Config() if config is None else config
    slides = [f"slide {i}" for i in range(len(graphs))] if names is None else list(names)
    n_genes, sizes = _check_slides(graphs, slides)
    device = torch.device(device) if fabric is None else fabric.device
    weights_and_dropout, masks, shuffle = (int(s) for s in np.random.SeedSequence(seed).generate_state(3))
    if fabric is not None:
        _check_processes((slides, sizes, n_genes, config, seed, validate is None), len(slides), fabric)
        progress = progress and fabric.is_global_zero
    with seeded(weights_and_dropout, device), few_threads(max(map(sum, sizes)), config.hidden):
        model = SpaHGCNetwork(graphs[0][0].target.shape[1], n_genes, config, components=components).to(device)
        steps = Steps(graphs, device, model.components)
        if fabric is not None and fabric.global_rank > 0:
            own = np.random.SeedSequence(seed, spawn_key=(fabric.global_rank,)).generate_state(2)
            masks = int(own[1])
            torch.manual_seed(int(own[0]))
        contrasts = config.weight_target > 0 or config.weight_reference > 0
        follower = TargetEncoder(model.encoder, config.ema_decay) if contrasts else None
        best: dict[str, Tensor] = {}

        def keep_best(history: History) -> bool:
            model.eval()
            with torch.no_grad():
                score = float(validate(model)) if validate is not None else math.nan
            scores = history.setdefault("validation", [])
            if score > max((s for s in scores if not math.isnan(s)), default=-math.inf):
                best.update({name: value.clone() for name, value in model.state_dict().items()})
            scores.append(score)
            return False

        history = fit(
            StepLoss(model, follower, torch.Generator(device).manual_seed(masks)),
            steps,
            slides,
            epochs=config.epochs,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            shuffle=shuffle,
            label="Training" if progress else "",
            after_step=None if follower is None else lambda: follower.update(model.encoder),
            after_epoch=None if validate is None else keep_best,
            fabric=fabric,
        )
    if validate is not None:
        if not best:
            raise ValueError(f"validate returned no finite score in {config.epochs} epochs.")
        model.load_state_dict(best)
    return model.eval(), history


class StepLoss(nn.Module):
    """Loss of SpaHGC on one slide; prediction and contrastive terms in one forward pass, as `fabric` wraps it."""

    def __init__(self, model: SpaHGCNetwork, target_encoder: TargetEncoder | None, masks: torch.Generator) -> None:
        super().__init__()
        self.model, self.target_encoder, self.masks = model, target_encoder, masks

    def forward(self, graph: GraphTensors, expression: Tensor | Measured) -> dict[str, Tensor]:
        """MSE + 0.5 (1 - Pearson) + 0.2 L_target + 0.1 L_reference, with the weights of the config, and its terms."""
        model, config, device = self.model, self.model.config, graph.target.device
        contrast = None
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            output = model.output(model.pooled(graph), genes=False)
            if self.target_encoder is not None:
                contrast = model.contrast(graph, self.target_encoder, self.masks)
        output = output if graph.core is None else output.index_select(0, graph.core)
        if isinstance(expression, Measured):
            mse, pearson = supervised_terms_by_components(output, expression)
        else:
            mse, pearson = mse_loss(output, expression), pearson_loss(output, expression)
        loss, terms = mse + config.weight_pearson * pearson, {"mse": mse, "pearson": 1 - pearson}
        if contrast is not None:
            loss = loss + config.weight_target * contrast[0] + config.weight_reference * contrast[1]
            terms |= {"contrast_target": contrast[0], "contrast_reference": contrast[1]}
        return {"loss": loss, **terms}


class Steps(Sequence[tuple[GraphTensors, "Tensor | Measured"]]):
    """Slides (or blocks) on the device, with the expression of their core; what fits into KEEP bytes stays there."""

    def __init__(
        self, graphs: Sequence[tuple[GraphTensors, Tensor]], device: torch.device, components: Tensor | None = None
    ) -> None:
        self._graphs, self._device, self._components = graphs, device, components
        self._kept: dict[int, tuple[GraphTensors, Tensor | Measured]] = {}
        self._free = KEEP

    def __len__(self) -> int:
        return len(self._graphs)

    def __getitem__(self, i: Any) -> Any:
        if i in self._kept:
            return self._kept[i]
        graph, expression = self._graphs[i]
        graph, expression = graph.to(self._device), expression.to(self._device)
        if graph.core is not None:
            expression = expression.index_select(0, graph.core)
        step = graph, expression if self._components is None else Measured.of(expression, self._components)
        size = graph.nbytes + expression.nbytes
        if size <= self._free:
            self._kept[i] = step
            self._free -= size
        return step


def _check_slides(
    graphs: Sequence[tuple[GraphTensors, Tensor]], names: Sequence[str]
) -> tuple[int, list[tuple[int, int]]]:
    """Number of genes, and of each graph's target and reference nodes; raise if the slides do not fit together."""
    first, sizes = None, []
    for name, (graph, expression) in zip(names, graphs, strict=True):
        n_spots, *shape = *graph.target.shape, expression.shape[-1]
        first = first or (name, shape)
        if tuple(expression.shape) != (n_spots, shape[1]) or shape != first[1]:
            raise ValueError(
                f"Slide {name!r} has embeddings {tuple(graph.target.shape)} and expression {tuple(expression.shape)}, "
                f"but both must have a row per spot, and the features and genes of {first[0]!r}, {tuple(first[1])}."
            )
        sizes.append((n_spots, len(graph.reference)))
    if first is None:
        raise ValueError("There are no slides to train on.")
    return first[1][1], sizes
