"""The compiled updates of mean field. Log-odds are against the first class, whose own are 0."""

from __future__ import annotations

import numpy as np

from medseg.postprocess.dense.kernels import compiled


@compiled
def scaled(values, scale, voxels, weight):
    """Values of some voxels, times their scales and a weight."""
    out = np.empty(voxels.shape[0], np.float32)
    for v in range(voxels.shape[0]):
        out[v] = weight * scale[voxels[v]] * values[v]
    return out


@compiled
def moved(marginals, sent, tolerance, voxels, changes):
    """Find the marginals that moved by more than a tolerance since they were sent; send them.

    Fills the first entries of `voxels` and `changes`, and says how many.
    """
    found = 0
    for n in range(marginals.shape[0]):
        change = marginals[n] - sent[n]
        if abs(change) > tolerance:
            voxels[found], changes[found] = n, change
            sent[n] = marginals[n]
            found += 1
    return found


@compiled
def add(messages, targets, parts):
    """Add (classes, targets) parts to the messages."""
    for c in range(messages.shape[0]):
        for t in range(targets.shape[0]):
            messages[c, targets[t]] += parts[c, t]


@compiled
def update(targets, odds, messages, rows, own, costs, settled, marginals):
    """Give each target the marginals that its messages ask for.

    Args:
        targets: Voxels to update; on return, the first entries are those that stay open.
        odds: (C - 1, N) log-odds of the network.
        messages: (C - 1, N) pairwise messages of all classes but the first.
        rows: (N,) messages of all classes together.
        own: (N,) share of a voxel in its own message, or empty.
        costs: (C - 1, C) what a message of each class takes from the log-odds of another.
        settled: A voxel whose most likely class leads by so much in log-odds is left alone.
        marginals: (C - 1, N), overwritten.

    Returns:
        How many targets stay open.
    """
    classes = costs.shape[1]
    message = np.empty(classes, np.float32)
    logits = np.zeros(classes, np.float32)
    still = 0
    for t in range(targets.shape[0]):
        n = targets[t]
        message[0] = rows[n]
        for c in range(1, classes):
            message[c] = messages[c - 1, n]
            message[0] -= message[c]
        if own.shape[0]:
            rest = np.float32(1)
            for c in range(1, classes):
                message[c] -= own[n] * marginals[c - 1, n]
                rest -= marginals[c - 1, n]
            message[0] -= own[n] * rest
        best, second = np.float32(0), np.float32(-np.inf)
        for c in range(1, classes):
            value = odds[c - 1, n]
            for d in range(classes):
                value -= costs[c - 1, d] * message[d]
            logits[c] = value
            if value > best:
                best, second = value, best
            elif value > second:
                second = value
        total = np.float32(0)
        for c in range(classes):
            total += np.exp(logits[c] - best)
        for c in range(1, classes):
            marginals[c - 1, n] = np.exp(logits[c] - best) / total
        if best - second < settled:
            targets[still] = n
            still += 1
    return still


@compiled
def unsettled(odds, lead, voxels):
    """Find the voxels whose most likely class leads by less; fills `voxels`, says how many."""
    found = 0
    for n in range(odds.shape[1]):
        best, second = np.float32(0), np.float32(-np.inf)
        for c in range(odds.shape[0]):
            value = odds[c, n]
            if value > best:
                best, second = value, best
            elif value > second:
                second = value
        if best - second < lead:
            voxels[found] = n
            found += 1
    return found
