"""CNDA and CNAP against loops over single edges, written from the formulas."""

from __future__ import annotations

import math

import pytest
import torch

from spahgc.nn import CrossNodeAttentionPooling, CrossNodeDualAttention, Edges

HIDDEN, HEADS = 12, 3
WIDTH = HIDDEN // HEADS


@pytest.fixture
def states():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(8, HIDDEN, generator=generator)
    reference = torch.randn(6, HIDDEN, generator=generator)
    expression = torch.randn(6, HIDDEN, generator=generator)
    # Spot 5 is retrieved by nobody; spot 2 by everybody.
    references = torch.stack([torch.randperm(5, generator=generator)[:3] for _ in range(8)])
    references[:, 0] = torch.where((references[:, 1:] == 2).any(dim=1), references[:, 0], 2)
    return target, reference, expression, references


def edges(references, n=6):
    there = Edges.of(references, n)
    return there, there.reversed()


def dual(module, target, reference, expression, references):
    return module(target, reference, expression, *edges(references))


def pool(module, target, reference, references):
    return module(target, module.answer(reference), edges(references)[0])


def randomize(module):
    """Weights that make attention far from uniform; the norm is not the identity either."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.7)
    return module


def linear(module, x, head):
    """What one head's map gives for one node."""
    rows = slice(head * WIDTH, (head + 1) * WIDTH)
    bias = 0 if module.bias is None else module.bias[rows]
    return [float(v) for v in module.weight[rows] @ x + bias]


def layer_norm(module, y):
    mean = sum(y) / len(y)
    variance = sum((v - mean) ** 2 for v in y) / len(y)
    scaled = [(v - mean) / math.sqrt(variance + module.eps) for v in y]
    return torch.tensor([s * float(w) + float(b) for s, w, b in zip(scaled, module.weight, module.bias, strict=True)])


def attend(query, keys, values):
    """Softmax attention of one receiver over its edges, in plain floats; zeros where there is none."""
    if not keys:
        return [0.0] * WIDTH
    scores = [math.exp(sum(q * k for q, k in zip(query, key, strict=True)) / math.sqrt(WIDTH)) for key in keys]
    weights = [s / sum(scores) for s in scores]
    assert len(weights) == 1 or max(weights) > 1.05 / len(weights)
    return [sum(w * value[d] for w, value in zip(weights, values, strict=True)) for d in range(WIDTH)]


def to_target(attention, target, answers, references):
    result = torch.zeros(len(target), HIDDEN)
    for t in range(len(target)):
        for head in range(HEADS):
            keys = [linear(attention.key, answers[r], head) for r in references[t].tolist()]
            values = [linear(attention.value, answers[r], head) for r in references[t].tolist()]
            heard = attend(linear(attention.query, target[t], head), keys, values)
            result[t, head * WIDTH : (head + 1) * WIDTH] = torch.tensor(heard)
    return result


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dual_attention_equals_the_formula_in_both_directions(states, dtype):
    """float32 takes the compiled kernel; float64 takes the tensor operations, as the GPU does."""
    target, reference, expression, references = states
    module = randomize(CrossNodeDualAttention(HIDDEN, HEADS))
    inputs = target.to(dtype), reference.to(dtype), expression.to(dtype), references
    found_target, found_reference = (found.float() for found in dual(module.to(dtype), *inputs))
    module.float()

    answers = [torch.cat([x, layer_norm(module.norm, y.tolist())]) for x, y in zip(reference, expression, strict=True)]
    expected = to_target(module.to_target, target, answers, references)
    torch.testing.assert_close(found_target, expected, atol=1e-5, rtol=1e-5)

    back, expected = module.to_reference, torch.zeros(len(reference), HIDDEN)
    for r in range(len(reference)):
        retrievers = [t for t in range(len(target)) if r in references[t].tolist()]
        for head in range(HEADS):
            keys = [linear(back.key, target[t], head) for t in retrievers]
            values = [linear(back.value, target[t], head) for t in retrievers]
            heard = attend(linear(back.query, reference[r], head), keys, values)
            expected[r, head * WIDTH : (head + 1) * WIDTH] = torch.tensor(heard)
    torch.testing.assert_close(found_reference, expected, atol=1e-5, rtol=1e-5)
    assert not found_reference[5].any()
    assert found_reference[2].any()


@torch.no_grad()
def test_pooling_equals_the_formula(states):
    target, reference, _, references = states
    module = randomize(CrossNodeAttentionPooling(HIDDEN, HEADS))
    own = torch.stack([module.state.weight @ h + module.state.bias for h in target])
    expected = own + to_target(module.attention, target, reference, references)
    torch.testing.assert_close(pool(module, target, reference, references), expected, atol=1e-5, rtol=1e-5)


def test_every_weight_gets_a_gradient(states):
    target, reference, expression, references = states
    for module, inputs in (
        (CrossNodeDualAttention(HIDDEN, HEADS), (dual, target, reference, expression, references)),
        (CrossNodeAttentionPooling(HIDDEN, HEADS), (pool, target, reference, references)),
    ):
        found = inputs[0](module, *inputs[1:])
        sum(part.square().sum() for part in (found if isinstance(found, tuple) else (found,))).backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in module.parameters())


@pytest.mark.parametrize("module", [CrossNodeDualAttention, CrossNodeAttentionPooling])
def test_heads_divide_the_width(module):
    with pytest.raises(ValueError, match=r"hidden \(12\) is not a multiple of heads \(5\)"):
        module(12, 5)


def test_weights_are_those_of_the_attention(states):
    """Their mean over heads, by a loop over single edges."""
    target, reference, _, references = states
    module = randomize(CrossNodeAttentionPooling(HIDDEN, HEADS)).attention
    found = module.weights(target, module.keys_and_values(reference), references)
    expected = torch.zeros(8, 3)
    for t in range(8):
        for h in range(HEADS):
            part = slice(h * WIDTH, (h + 1) * WIDTH)
            query = module.query(target[t])[part]
            scores = [query @ module.key(reference[r])[part] / math.sqrt(WIDTH) for r in references[t]]
            expected[t] += torch.stack(scores).softmax(dim=0) / HEADS
    torch.testing.assert_close(found, expected)
    assert (found.max(dim=1).values > 0.4).any()
