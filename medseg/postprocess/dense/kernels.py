"""The compiled loops of the dense CRF. They release the GIL, so that threads run side by side.

Values go through a filter alone or four together, as lanes of each cell. `splat4` and `slice4` say
again what `splat` and `slice_` say: only so written out does the compiler keep four in a register.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

_ONE = np.float32(1)


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function, once for all processes where there is a place to keep the result.

    Values are finite when they come here; what is allowed of fast-math only reorders sums.
    """
    options = {"nogil": True, "fastmath": {"contract", "reassoc", "nsz", "arcp"}}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return njit(**options)(function)


@compiled
def listed(inside, start, shape, index):
    """The voxels of a box that are inside: where in the flattened volume, and where in the box."""
    voxels = np.empty((3, index.shape[0]), np.int16)
    n = 0
    for i in range(inside.shape[0]):
        for j in range(inside.shape[1]):
            first = ((start[0] + i) * shape[1] + start[1] + j) * shape[2] + start[2]
            for k in range(inside.shape[2]):
                if inside[i, j, k]:
                    index[n] = first + k
                    voxels[0, n], voxels[1, n], voxels[2, n] = i, j, k
                    n += 1
    return index, voxels


@compiled
def places(voxels, index_i, index_j, index_k, first, second, third, shape, columns, strip):
    """The plane of each voxel's lowest cell, where in that plane it is, and in which strip."""
    strips = np.empty(voxels.shape[1], np.int16)
    planes = np.empty(voxels.shape[1], np.int32)
    offsets = np.empty(voxels.shape[1], np.int32)
    for n in range(voxels.shape[1]):
        plane = third[n] * shape[1] + index_i[voxels[0, n]]
        plane = plane * shape[2] + index_j[voxels[1, n]]
        planes[n] = plane * shape[3] + index_k[voxels[2, n]]
        offsets[n] = first[n] * columns + second[n]
        strips[n] = first[n] // strip
    return planes, offsets, strips


@compiled
def splat(
    grid, touched, values, sources, strips, planes, offsets, voxels, fi, fj, fk, u, v, t, steps
):
    """Spread values over the cells around their voxels; mark the lowest strip of each."""
    outer, si, sj, sk, row = steps[0], steps[1], steps[2], steps[3], steps[4]
    for s in range(sources.shape[0]):
        n = sources[s]
        touched[planes[n], strips[n]] = True
        x, y, z = fi[voxels[0, n]], fj[voxels[1, n]], fk[voxels[2, n]]
        w11 = u[n] * v[n]
        w10, w01, w00 = u[n] - w11, v[n] - w11, _ONE - u[n] - v[n] + w11
        base = planes[n] * sk + offsets[n]
        for h in range(2 if outer else 1):
            wh, ph = values[s, 0] * (t[n] if h else _ONE - t[n]), base + h * outer
            for a in range(2):
                wa, pa = wh * (x if a else _ONE - x), ph + a * si
                for b in range(2):
                    wb, pb = wa * (y if b else _ONE - y), pa + b * sj
                    for c in range(2):
                        w, p = wb * (z if c else _ONE - z), pb + c * sk
                        grid[p] += w * w00
                        grid[p + 1] += w * w01
                        grid[p + row] += w * w10
                        grid[p + row + 1] += w * w11


@compiled
def splat4(
    grid, touched, values, sources, strips, planes, offsets, voxels, fi, fj, fk, u, v, t, steps
):
    """The same for four values of each voxel."""
    outer, si, sj, sk, row = steps[0], steps[1], steps[2], steps[3], steps[4]
    for s in range(sources.shape[0]):
        n = sources[s]
        touched[planes[n], strips[n]] = True
        x, y, z = fi[voxels[0, n]], fj[voxels[1, n]], fk[voxels[2, n]]
        w11 = u[n] * v[n]
        w10, w01, w00 = u[n] - w11, v[n] - w11, _ONE - u[n] - v[n] + w11
        base = planes[n] * sk + offsets[n]
        e, f, g, i = values[s, 0], values[s, 1], values[s, 2], values[s, 3]
        for h in range(2 if outer else 1):
            wh, ph = t[n] if h else _ONE - t[n], base + h * outer
            for a in range(2):
                wa, pa = wh * (x if a else _ONE - x), ph + a * si
                for b in range(2):
                    wb, pb = wa * (y if b else _ONE - y), pa + b * sj
                    for c in range(2):
                        w, p = wb * (z if c else _ONE - z), pb + c * sk
                        _add4(grid, 4 * p, w * w00, e, f, g, i)
                        _add4(grid, 4 * (p + 1), w * w01, e, f, g, i)
                        _add4(grid, 4 * (p + row), w * w10, e, f, g, i)
                        _add4(grid, 4 * (p + row + 1), w * w11, e, f, g, i)


@compiled
def _add4(grid, p, w, e, f, g, i):
    grid[p] += w * e
    grid[p + 1] += w * f
    grid[p + 2] += w * g
    grid[p + 3] += w * i


@compiled
def slice_(grid, out, targets, planes, offsets, voxels, fi, fj, fk, u, v, t, steps):
    """Read the cells around voxels with the weights of `splat`, into (T, 1)."""
    outer, si, sj, sk, row = steps[0], steps[1], steps[2], steps[3], steps[4]
    for s in range(targets.shape[0]):
        n = targets[s]
        x, y, z = fi[voxels[0, n]], fj[voxels[1, n]], fk[voxels[2, n]]
        w11 = u[n] * v[n]
        w10, w01, w00 = u[n] - w11, v[n] - w11, _ONE - u[n] - v[n] + w11
        base = planes[n] * sk + offsets[n]
        total = np.float32(0)
        for h in range(2 if outer else 1):
            wh, ph = t[n] if h else _ONE - t[n], base + h * outer
            for a in range(2):
                wa, pa = wh * (x if a else _ONE - x), ph + a * si
                for b in range(2):
                    wb, pb = wa * (y if b else _ONE - y), pa + b * sj
                    for c in range(2):
                        w, p = wb * (z if c else _ONE - z), pb + c * sk
                        total += w * (
                            w00 * grid[p] + w01 * grid[p + 1]
                            + w10 * grid[p + row] + w11 * grid[p + row + 1]
                        )  # fmt: skip
        out[s, 0] = total


@compiled
def slice4(grid, out, targets, planes, offsets, voxels, fi, fj, fk, u, v, t, steps):
    """The same for four values of each voxel, into (T, 4)."""
    outer, si, sj, sk, row = steps[0], steps[1], steps[2], steps[3], steps[4]
    for s in range(targets.shape[0]):
        n = targets[s]
        x, y, z = fi[voxels[0, n]], fj[voxels[1, n]], fk[voxels[2, n]]
        w11 = u[n] * v[n]
        w10, w01, w00 = u[n] - w11, v[n] - w11, _ONE - u[n] - v[n] + w11
        base = planes[n] * sk + offsets[n]
        e = f = g = i = np.float32(0)
        for h in range(2 if outer else 1):
            wh, ph = t[n] if h else _ONE - t[n], base + h * outer
            for a in range(2):
                wa, pa = wh * (x if a else _ONE - x), ph + a * si
                for b in range(2):
                    wb, pb = wa * (y if b else _ONE - y), pa + b * sj
                    for c in range(2):
                        w, p = wb * (z if c else _ONE - z), 4 * (pb + c * sk)
                        q = p + 4 * row
                        k00, k01, k10, k11 = w * w00, w * w01, w * w10, w * w11
                        e += k00 * grid[p] + k01 * grid[p + 4]
                        f += k00 * grid[p + 1] + k01 * grid[p + 5]
                        g += k00 * grid[p + 2] + k01 * grid[p + 6]
                        i += k00 * grid[p + 3] + k01 * grid[p + 7]
                        e += k10 * grid[q] + k11 * grid[q + 4]
                        f += k10 * grid[q + 1] + k11 * grid[q + 5]
                        g += k10 * grid[q + 2] + k11 * grid[q + 6]
                        i += k10 * grid[q + 3] + k11 * grid[q + 7]
        out[s, 0], out[s, 1], out[s, 2], out[s, 3] = e, f, g, i


@compiled
def scatter(box, touched, values, sources, flat, columns):
    """Put (S, lanes) values where their voxels are; mark their rows."""
    for s in range(sources.shape[0]):
        p = flat[sources[s]]
        touched[p // columns, 0] = True
        for g in range(values.shape[1]):
            box[p * values.shape[1] + g] = values[s, g]


@compiled
def gather(box, out, targets, flat):
    """Read values where their voxels are, into (T, lanes)."""
    for s in range(targets.shape[0]):
        for g in range(out.shape[1]):
            out[s, g] = box[flat[targets[s]] * out.shape[1] + g]


@compiled
def mark(targets, planes, size):
    """Which planes these voxels lie in."""
    marked = np.zeros(size, np.bool_)
    for s in range(targets.shape[0]):
        marked[planes[targets[s]]] = True
    return marked
