"""The compiled blurs of planes: separable, in place, and only where there is something."""

from __future__ import annotations

import numpy as np

from medseg.postprocess.dense.kernels import compiled


@compiled
def clear(grid, live):
    """Set the live strips back to zero."""
    strip = grid.shape[0] // live.size
    for plane in range(live.shape[0]):
        for s in range(live.shape[1]):
            if live[plane, s]:
                start = (plane * live.shape[1] + s) * strip
                grid[start : start + strip] = 0


@compiled
def _blurred(out, rows, taps, at):
    """Put the rows around row `at`, weighted by the taps, into `out`: two pairs of rows a pass."""
    reach = taps.shape[0] - 1
    tap, row = taps[0], rows[at]
    for c in range(out.shape[0]):
        out[c] = tap * row[c]
    for q in range(1, reach, 2):
        near, far = taps[q], taps[q + 1]
        before, after = rows[at - q], rows[at + q]
        long_before, long_after = rows[at - q - 1], rows[at + q + 1]
        for c in range(out.shape[0]):
            out[c] += near * (before[c] + after[c]) + far * (long_before[c] + long_after[c])
    if reach % 2:
        tap, before, after = taps[reach], rows[at - reach], rows[at + reach]
        for c in range(out.shape[0]):
            out[c] += tap * (before[c] + after[c])


@compiled
def _blurred_along(out, row, taps, lanes):
    """The same along one row, which has a margin of zeros at both ends."""
    reach = taps.shape[0] - 1
    n, middle = out.shape[0], reach * lanes
    tap, centre = taps[0], row[middle : middle + n]
    for c in range(n):
        out[c] = tap * centre[c]
    for q in range(1, reach, 2):
        near, far = taps[q], taps[q + 1]
        short, long = q * lanes, (q + 1) * lanes
        before, after = row[middle - short :], row[middle + short :]
        long_before, long_after = row[middle - long :], row[middle + long :]
        for c in range(n):
            out[c] += near * (before[c] + after[c]) + far * (long_before[c] + long_after[c])
    if reach % 2:
        tap, before, after = taps[reach], row[:n], row[2 * middle :]
        for c in range(n):
            out[c] += tap * (before[c] + after[c])


@compiled
def _near(filled, at, reach):
    """Whether a row around row `at` is filled."""
    return filled[max(0, at - reach) : at + reach + 1].any()


@compiled
def blur_planes(grid, live, rows, columns, lanes, down, along):
    """Blur each plane of (rows, columns of lanes), in place: along rows, then down columns."""
    per = rows // live.shape[1]
    reach = down.shape[0] - 1
    margin = (along.shape[0] - 1) * lanes
    padded = np.zeros(columns + 2 * margin, np.float32)
    blurred = np.zeros((rows + 2 * reach, columns), np.float32)
    filled = np.zeros(rows, np.bool_)
    for plane in range(live.shape[0]):
        if not live[plane].any():
            continue
        cells = grid[plane * rows * columns : (plane + 1) * rows * columns].reshape(rows, columns)
        for r in range(rows):
            filled[r] = live[plane, r // per]
            if filled[r]:
                padded[margin : margin + columns] = cells[r]
                _blurred_along(blurred[reach + r], padded, along, lanes)
            else:
                blurred[reach + r] = 0
        for r in range(rows):
            if _near(filled, r, reach):
                _blurred(cells[r], blurred, down, reach + r)
                live[plane, r // per] = True


@compiled
def blur(grid, live, wanted, shape, axis, taps):
    """Blur one axis of the planes, in place, where the result is wanted."""
    n, per, reach = shape[axis], live.shape[1], taps.shape[0] - 1
    strip = grid.shape[0] // live.size
    inner = 1
    for a in range(axis + 1, 4):
        inner *= shape[a]
    line = np.zeros((n + 2 * reach, strip), np.float32)
    filled = np.empty(n, np.bool_)
    for o in range(live.shape[0] // (n * inner)):
        for b in range(inner):
            first = o * n * inner + b  # the planes of a line are `inner` apart
            for s in range(per):
                some = False
                for c in range(n):
                    filled[c] = live[first + c * inner, s]
                    some |= filled[c]
                if not some:
                    continue
                for c in range(n):
                    start = ((first + c * inner) * per + s) * strip
                    if filled[c]:
                        line[reach + c] = grid[start : start + strip]
                    else:
                        line[reach + c] = 0
                for c in range(n):
                    plane = first + c * inner
                    if wanted[plane] and _near(filled, c, reach):
                        start = (plane * per + s) * strip
                        _blurred(grid[start : start + strip], line, taps, reach + c)
                        live[plane, s] = True
