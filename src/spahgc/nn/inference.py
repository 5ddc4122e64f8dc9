"""Prediction of a slide of any size, layer by layer over all of its spots (DESIGN section 2).

A reference spot attends back to target spots anywhere on the slide, so a slide cannot be cut into pieces that are
predicted one after another. But a layer can be computed for some spots at a time: what grows with the slide are the
hidden states of two layers and the edges. The result equals that of the whole graph, up to the order of sums.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import leaky_relu

from .._run import Progress, no_progress, weighted, with_progress
from .._slides import Float32
from .graph import SlideGraph
from .layers import Edges, RunningAttention, neighbor_mean
from .model import SLOPE, HeteroLayer, SpaHGCNetwork

CHUNK = 8192  # target spots to process at once
IN_MEMORY = 2**31  # bytes of hidden states up to which they stay in memory; beyond, they are in a temporary file


@torch.inference_mode()
def predict(
    network: SpaHGCNetwork,
    graph: SlideGraph,
    write: Callable[[slice, Float32], None] | None = None,
    *,
    attended: Callable[[slice, Float32], None] | None = None,
    progress: Progress = no_progress,
) -> None:
    """Predict the target spots of a graph, some at a time.

    Parameters
    ----------
    network
        The trained network, in evaluation mode, on the device to use.
    graph
        From :func:`slide_graph`.
    write
        Called with rows and their predicted values, float32 (n_rows, n_genes), until all rows are done.
    attended
        Called with rows and how much they attend to each of their references, float32 (n_rows, K), summing to 1: once
        per layer that attends to references, and once for the pooling.
    progress
        Called with the share of the work that was done, each time some was; the shares sum to 1.

    Examples
    --------
    >>> import numpy as np
    >>> from spahgc.nn import Config, SpaHGCNetwork, predict, slide_graph
    >>> rng = np.random.default_rng(0)
    >>> graph = slide_graph(rng.random((9, 8)), rng.random((9, 2)), rng.random((20, 8)), rng.random((20, 3)))
    >>> predict(SpaHGCNetwork(8, 3, Config(hidden=16)).eval(), graph, lambda rows, values: print(values.shape))
    (9, 3)
    """
    encoder, n = network.encoder, graph.features.shape[0]
    device, hidden = network.head.weight.device, network.config.hidden
    joint = graph.joint.to(device)
    close = Edges.of(_table(graph.close), len(joint)).to(device)
    expression = encoder.expression(joint[:, encoder.n_features :])
    reference = encoder.reference(joint)
    once = weighted(progress, 1 / (2 + len(encoder.layers)))

    with ExitStack() as files:
        states = files.enter_context(_states(n, hidden))
        for rows in with_progress(n, once, CHUNK):
            features = torch.from_numpy(np.asarray(graph.features[rows], dtype=np.float32))
            states[rows] = encoder.target(features.to(device)).cpu()
        # Before there are two states: together, they would be the most memory in use at a time.
        getattr(graph.features, "forget", lambda: None)()
        updated = files.enter_context(_states(n, hidden))
        for layer in cast("list[HeteroLayer]", encoder.layers):
            refer = layer.refer
            if refer is not None:
                answer = refer.answer(reference, expression)
                back = RunningAttention(refer.to_reference.query(reference), network.config.heads)
            for rows in with_progress(n, once, CHUNK):
                own, references = states[rows].to(device), _table(graph.references[rows], device)
                # A spot without neighbors has a mean of zeros.
                around = states[_table(graph.near[rows])].sum(dim=1).to(device) / max(graph.near.shape[1], 1)
                new = layer.near(own, around)
                if refer is not None:
                    new = (new + refer.to_target(own, answer, Edges.of(references, len(answer)))) / 2
                    if attended is not None:
                        attended(rows, refer.to_target.weights(own, answer, references).cpu().numpy())
                    sender = torch.arange(len(own), device=device).repeat_interleave(references.shape[1])
                    back.add(refer.to_reference.keys_and_values(own), sender, references.reshape(-1))
                updated[rows] = leaky_relu(new, SLOPE).cpu()
            new = layer.close(reference, neighbor_mean(reference, close))
            reference = leaky_relu(new if refer is None else (new + back.result()) / 2, SLOPE)
            states, updated = updated, states
        pooling, kept = network.pooling, network.pooling.answer(reference)
        for rows in with_progress(n, once, CHUNK):
            own, references = states[rows].to(device), _table(graph.references[rows], device)
            if attended is not None and pooling.attention is not None and kept is not None:
                attended(rows, pooling.attention.weights(own, kept, references).cpu().numpy())
            if write is not None:
                pooled = pooling(own, kept, Edges.of(references, len(reference)))
                write(rows, network.output(pooled).cpu().numpy())


@contextmanager
def _states(n: int, hidden: int) -> Iterator[Tensor]:
    """Hidden states of all target spots, float32 (n, hidden), in memory or in a file."""
    if 4 * n * hidden <= IN_MEMORY:
        yield torch.empty(n, hidden)
        return
    with tempfile.TemporaryFile(prefix="spahgc-") as file:
        yield torch.from_numpy(np.memmap(file, np.float32, "w+", shape=(n, hidden)))


def _table(rows: NDArray[np.integer], device: torch.device | str = "cpu") -> Tensor:
    return torch.from_numpy(rows).to(device, torch.int64)
