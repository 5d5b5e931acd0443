"""The compiled updates of mean field. Log-odds are against the first class, whose own are 0."""

from __future__ import annotations

import numpy as np

from medseg.postprocess.dense.kernels import compiled


@compiled
def scaled(values, scale, voxels, weight):
    """(V, classes) values of some voxels, times their scales and a weight."""
    out = np.empty(values.shape, np.float32)
    for v in range(voxels.shape[0]):
        factor = weight * scale[voxels[v]]
        for c in range(values.shape[1]):
            out[v, c] = factor * values[v, c]
    return out


@compiled
def start(odds, lead, marginals, targets):
    """Give every voxel the network's marginals; find those that messages may move.

    Args:
        odds: (N, C - 1) log-odds of the network.
        lead: A voxel whose most likely class leads by so much in log-odds is left alone.
        marginals: (N, C - 1), filled.
        targets: (N,), filled from its start.

    Returns:
        How many targets there are.
    """
    found = 0
    for n in range(odds.shape[0]):
        if _decide(odds[n], marginals[n]) < lead:
            targets[found] = n
            found += 1
    return found


@compiled
def _decide(logits, marginals):
    """Softmax of logits, that of the first class being 0; gives the lead of the most likely."""
    best, second = np.float32(0), np.float32(-np.inf)
    for c in range(logits.shape[0]):
        if logits[c] > best:
            best, second = logits[c], best
        elif logits[c] > second:
            second = logits[c]
    total = np.exp(-best)
    for c in range(logits.shape[0]):
        marginals[c] = np.exp(logits[c] - best)
        total += marginals[c]
    for c in range(logits.shape[0]):
        marginals[c] /= total
    return best - second


@compiled
def moved(marginals, sent, tolerance, voxels):
    """Find what moved by more than a tolerance since it was sent; send it.

    Returns:
        The voxels, and (V, C - 1) their changes: 0 where a class moved less.
    """
    classes = marginals.shape[1]
    found = np.empty(voxels.shape[0], np.int32)
    changes = np.empty((voxels.shape[0], classes), np.float32)
    count = 0
    for v in range(voxels.shape[0]):
        n = voxels[v]
        has_moved = False
        for c in range(classes):
            change = marginals[n, c] - sent[n, c]
            changes[count, c] = 0
            if abs(change) > tolerance:
                has_moved = True
                changes[count, c] = change
                sent[n, c] = marginals[n, c]
        if has_moved:
            found[count] = n
            count += 1
    return found[:count], changes[:count]


@compiled
def update(targets, odds, messages, parts, own, pull, settled, marginals):
    """Add what was received to the messages of targets, and give them their marginals.

    Args:
        targets: (T,) voxels to update; on return, the first entries are those that stay open.
        odds: (N, C - 1) log-odds, without what the marginals of C - 1 classes do to them.
        messages: (N, C - 1) of all iterations so far.
        parts: (T, C - 1) what was received.
        own: (N,) share of a voxel in its own message, or empty.
        pull: (C - 1, C - 1) what a message of each class adds to the log-odds of another.
        settled: A voxel whose most likely class leads by so much in log-odds is left alone.
        marginals: (N, C - 1), overwritten.

    Returns:
        How many targets stay open.
    """
    classes = odds.shape[1]
    logits, received = np.empty(classes, np.float32), np.empty(classes, np.float32)
    still = 0
    for t in range(targets.shape[0]):
        n = targets[t]
        for c in range(classes):
            messages[n, c] += parts[t, c]
            received[c] = messages[n, c]
            if own.shape[0]:
                received[c] -= own[n] * marginals[n, c]
        for c in range(classes):
            logits[c] = odds[n, c]
            for d in range(classes):
                logits[c] += pull[c, d] * received[d]
        if _decide(logits, marginals[n]) < settled:
            targets[still] = n
            still += 1
    return still
