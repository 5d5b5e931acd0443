# mypy: disable-error-code="untyped-decorator"
"""The kernels of a permutohedral lattice: which vertices surround a point, and the blur over them.

Adams, Baek and Davis 2010, doi:10.1111/j.1467-8659.2009.01645.x, section 3: the points of d
dimensions are laid into the hyperplane of d + 1 coordinates that sum to 0. The vertices there are
the integer points whose coordinates all leave the same remainder by d + 1; the simplex around a
point has one vertex of each remainder, and from one to the next it is a step along one of d + 1
axes: +1 in every coordinate but -d in the axis' own.

A vertex is known by one number, a sum of its coordinates times odd constants modulo 2^64, so that a
step along an axis adds a constant. Two of ten million vertices share a number with a chance of
3e-6; then each would see the other's value.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from medseg.postprocess.dense.kernels import compiled
from medseg.volumes.image import Array

_FEWEST_SLOTS = 1 << 12
_SCATTER = -7046029254386353131
"""2^64 over the golden ratio, as a signed number (Knuth, TAOCP 3, section 6.4)."""


@compiled
def build(
    features: Array, scales: Array, factors: Array, steps: Array, most: int
) -> tuple[Array, Array, Array]:
    """Number the vertices around points, in the order in which they are met.

    Args:
        features: (d, N) float32.
        scales: (d,) float64, of each feature on its way into the hyperplane.
        factors: (d + 1,) int64 constants that make a number of a vertex.
        steps: (d + 1,) int64, what a step along each axis adds to that number.
        most: The vertices a step away from those exist too, if all are not more than that.

    Returns:
        vertices: (N, d + 1) int32, those of the simplex around each point.
        weights: (N, d + 1) float32, barycentric.
        neighbours: (d + 1, V, 2) int32, one step on and one step back; V where there is none.
    """
    corners, points = len(steps), features.shape[1]
    vertices = np.empty((points, corners), np.int32)
    weights = np.empty((points, corners), np.float32)
    found = np.empty(corners, np.int64)
    table = np.full(_FEWEST_SLOTS, -1, np.int32)
    names = np.empty(_FEWEST_SLOTS // 2, np.int64)
    count = 0
    for n in range(points):
        table, names = _room(count, corners, table, names)
        _enclose(features[:, n], scales, factors, steps, found, weights[n])
        for corner in range(corners):
            vertices[n, corner] = _meet(found[corner], names, table, count)
            count = max(count, vertices[n, corner] + 1)
    if most:
        names, table, grown = _grow(names, table, count, steps, most)
        count = grown if grown <= most else count
    return vertices, weights, _neighbours(names, table, count, steps)


@compiled
def _enclose(
    feature: Array, scales: Array, factors: Array, steps: Array, found: Array, weights: Array
) -> None:
    """Find the simplex around one point: the numbers of its vertices and their weights."""
    corners = len(steps)
    rest = np.empty(corners)
    last = 0.0
    for axis in range(corners - 1, 0, -1):
        scaled = feature[axis - 1] * scales[axis - 1]
        rest[axis] = last - axis * scaled
        last += scaled
    rest[0] = last
    surplus = 0
    name = 0
    for axis in range(corners):
        nearest = int(np.floor(rest[axis] / corners + 0.5))
        rest[axis] = rest[axis] / corners - nearest
        name += factors[axis] * nearest * corners
        surplus += nearest
    order = _descending(rest)
    for rank in range(corners):
        axis = order[rank]
        wrapped = (rank + surplus) // corners
        rest[axis] += wrapped
        name -= factors[axis] * wrapped * corners
    for corner in range(corners):
        axis = order[(corners - 1 - corner - surplus) % corners]
        above = order[(corners - corner - surplus) % corners]
        weights[corner] = max(0.0, rest[axis] - rest[above] + (corner == 0))
        found[corner] = name
        name += steps[axis]


@compiled
def _descending(values: Array) -> Array:
    """The order of a few values, the largest first, by insertion; equal ones stay as they are."""
    order = np.arange(len(values))
    for last in range(1, len(values)):
        place = last
        while place > 0 and values[order[place - 1]] < values[last]:
            order[place] = order[place - 1]
            place -= 1
        order[place] = last
    return order


@compiled
def _slot(name: int, names: Array, table: Array) -> int:
    """The slot of a vertex in a table with open addresses, or the free one that is its."""
    mask = len(table) - 1
    slot = ((name * _SCATTER) >> 32) & mask
    while table[slot] >= 0 and names[table[slot]] != name:
        slot = (slot + 1) & mask
    return slot


@compiled
def _meet(name: int, names: Array, table: Array, count: int) -> int:
    """The place of a vertex among those met so far, or `count`, where it is put if it is new."""
    slot = _slot(name, names, table)
    if table[slot] < 0:
        table[slot] = count
        names[count] = name
    place: int = table[slot]
    return place


@compiled
def _room(count: int, needed: int, table: Array, names: Array) -> tuple[Array, Array]:
    """A table and a list that have room: the same, or of twice the size."""
    if count + needed <= len(names):
        return table, names
    longer = np.empty(2 * len(names), np.int64)
    longer[:count] = names[:count]
    wider = np.full(2 * len(longer), -1, np.int32)
    for vertex in range(count):
        wider[_slot(names[vertex], longer, wider)] = vertex
    return wider, longer


@compiled
def _grow(names: Array, table: Array, count: int, steps: Array, most: int) -> tuple[Any, ...]:
    """Add the vertices that are one step along one axis away; leave off once there are too many."""
    for vertex in range(count):
        if count > most:
            break
        table, names = _room(count, 2 * len(steps), table, names)
        for step in steps:
            count = max(count, _meet(names[vertex] + step, names, table, count) + 1)
            count = max(count, _meet(names[vertex] - step, names, table, count) + 1)
    return names, table, count


@compiled
def _neighbours(names: Array, table: Array, count: int, steps: Array) -> Array:
    """Those of the first vertices among themselves."""
    neighbours = np.full((len(steps), count, 2), count, np.int32)
    for axis in range(len(steps)):
        for vertex in range(count):
            other = table[_slot(names[vertex] + steps[axis], names, table)]
            if 0 <= other < count:
                neighbours[axis, vertex, 0] = other
                neighbours[axis, other, 1] = vertex
    return neighbours


@compiled
def spread(values: Array, vertices: Array, weights: Array, out: Array) -> None:
    """Add (N,) values, by their weights, to the vertices around them."""
    for n in range(len(values)):
        for corner in range(vertices.shape[1]):
            out[vertices[n, corner]] += weights[n, corner] * values[n]


@compiled
def blur(field: Array, neighbours: Array, side: np.float32, out: Array) -> None:
    """Blur (V + 1,) values, the last of them 0, by taps (side, 1 - 2 side, side) along an axis."""
    centre = np.float32(1) - 2 * side
    for vertex in range(len(neighbours)):
        beside = field[neighbours[vertex, 0]] + field[neighbours[vertex, 1]]
        out[vertex] = centre * field[vertex] + side * beside


@compiled
def gather(field: Array, vertices: Array, weights: Array, scale: np.float32) -> Array:
    """Read (N,) values with the weights that they were spread by."""
    out = np.empty(len(vertices), np.float32)
    for n in range(len(vertices)):
        total = np.float32(0)
        for corner in range(vertices.shape[1]):
            total += weights[n, corner] * field[vertices[n, corner]]
        out[n] = scale * total
    return out


@compiled
def quadratic(weights: Array, table: Array) -> Array:
    """(N,) sums of w_a w_b table[|a - b|] over all pairs of corners."""
    out = np.empty(len(weights), np.float32)
    for n in range(len(weights)):
        total = np.float32(0)
        for a in range(weights.shape[1]):
            for b in range(weights.shape[1]):
                total += weights[n, a] * weights[n, b] * table[abs(a - b)]
        out[n] = total
    return out
