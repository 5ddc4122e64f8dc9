"""A plain reference for speed: the method as DESIGN section 2 says it, written as one would without thinking of cost.

Per-spot heaps for the retrieval, attention by gathering and scattering over lists of edges, a loop over genes in the
loss, features copied for every view. It uses the weights of a network of the package, so that both can be checked to
give the same numbers.
"""

from __future__ import annotations

import copy
import heapq
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import leaky_relu, mse_loss
from torch_geometric.nn import SAGEConv
from torch_geometric.utils import scatter, softmax


def nearest(query: np.ndarray, bank: np.ndarray, k: int) -> np.ndarray:
    """The published retrieval: for each spot L1 distances to all reference spots, and a heap; (n, k)."""
    found = np.empty((len(query), k), np.int64)
    for i, spot in enumerate(query):
        distances = np.abs(bank - spot).sum(axis=1)
        found[i] = heapq.nsmallest(k, range(len(bank)), key=distances.__getitem__)
    return found


def attention(
    query: Tensor, key: Tensor, value: Tensor, source: Tensor, receiver: Tensor, heads: int, n_receivers: int
) -> Tensor:
    """Attention over a list of edges: everything gathered per edge, weighted, and scattered to the receivers."""
    width = query.shape[1] // heads
    q, k, v = (
        states[edges].view(-1, heads, width) for states, edges in ((query, receiver), (key, source), (value, source))
    )
    scores = (q * k).sum(dim=2) / width**0.5
    weights = softmax(scores, receiver, num_nodes=n_receivers)
    return scatter((weights.unsqueeze(2) * v).flatten(1), receiver, dim=0, dim_size=n_receivers, reduce="sum")


def encode(encoder: Any, data: Any, target_x: Tensor, reference_x: Tensor) -> tuple[Tensor, Tensor]:
    """Input maps and layers, with the weights of the package's encoder."""
    target, reference = encoder.target(target_x), encoder.reference(reference_x)
    expression = encoder.expression(reference_x[:, encoder.n_features :])
    source, receiver = data.refer.sender, data.refer.receiver
    for layer in encoder.layers:
        to_target = sage(layer.near, target, torch.stack([data.near.sender, data.near.receiver]))
        to_reference = sage(layer.close, reference, torch.stack([data.close.sender, data.close.receiver]))
        refer = layer.refer
        answer = torch.cat([reference, refer.norm(expression)], dim=1)
        asks, back = refer.to_target, refer.to_reference
        from_reference = attention(
            asks.query(target), asks.key(answer), asks.value(answer), source, receiver, asks.heads, len(target)
        )
        from_target = attention(
            back.query(reference), back.key(target), back.value(target), receiver, source, back.heads,
            len(reference),
        )  # fmt: skip
        target = leaky_relu((to_target + from_reference) / 2, 0.2)
        reference = leaky_relu((to_reference + from_target) / 2, 0.2)
    return target, reference


def sage(layer: Any, states: Tensor, edges: Tensor) -> Tensor:
    """PyG's own layer, on the weights of the package's."""
    if not hasattr(layer, "_pyg"):
        conv = SAGEConv(layer.lin_l.in_features, layer.lin_l.out_features)
        conv.lin_l.weight, conv.lin_l.bias, conv.lin_r.weight = layer.lin_l.weight, layer.lin_l.bias, layer.lin_r.weight
        object.__setattr__(layer, "_pyg", conv)
    return layer._pyg(states, edges)


def predict(network: Any, data: Any, target_x: Tensor, reference_x: Tensor) -> Tensor:
    """Values of the genes, (n, g)."""
    target, reference = encode(network.encoder, data, target_x, reference_x)
    source, receiver = data.refer.sender, data.refer.receiver
    pooling, asks = network.pooling, network.pooling.attention
    gathered = attention(
        asks.query(target), asks.key(reference), asks.value(reference), source, receiver, asks.heads, len(target)
    )
    return network.head(pooling.state(target) + gathered)


def pearson_loop(prediction: Tensor, expression: Tensor) -> Tensor:
    """1 - mean per-gene Pearson, gene by gene."""
    total = prediction.new_zeros(())
    for gene in range(prediction.shape[1]):
        p, e = prediction[:, gene], expression[:, gene]
        p, e = p - p.mean(), e - e.mean()
        total = total + 1 - (p * e).sum() / (p.norm() * e.norm() + 1e-8)
    return total / prediction.shape[1]


class Epoch:
    """Epochs of the published training over some slides."""

    def __init__(self, network: Any, slides: list[tuple[Any, Tensor]]) -> None:
        self.network, self.slides = network, slides
        self.second = copy.deepcopy(network.encoder).requires_grad_(False).eval()
        config = network.config
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )

    def __call__(self) -> None:
        """One epoch: a step per slide."""
        self.network.train()
        for data, expression in self.slides:
            self._step(data, expression)

    def _step(self, data: Any, expression: Tensor) -> None:
        network, config = self.network, self.network.config
        self.optimizer.zero_grad()
        prediction = predict(network, data, data.target, data.reference)
        supervised = mse_loss(prediction, expression) + config.weight_pearson * pearson_loop(prediction, expression)
        view_1, view_2 = [], []
        for features, ratio in ((data.target, config.mask_target), (data.reference, config.mask_reference)):
            kept = (torch.rand_like(features) >= ratio).float()
            view_1.append(features * kept)
            view_2.append(features * (1 - kept))
        first = encode(network.encoder, data, *view_1)
        with torch.no_grad():
            second = encode(self.second, data, *view_2)
        terms = [(2 - 2 * torch.cosine_similarity(a, b, dim=1)).mean() for a, b in zip(first, second, strict=True)]
        loss = supervised + config.weight_target * terms[0] + config.weight_reference * terms[1]
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for own, other in zip(self.second.parameters(), network.encoder.parameters(), strict=True):
                own.mul_(config.ema_decay).add_(other, alpha=1 - config.ema_decay)
