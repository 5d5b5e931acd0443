"""What all checks share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec

import numpy as np
import torch
from torch import Tensor

from medseg.errors import PluginError

P = ParamSpec("P")


def seeded(check: Callable[P, None]) -> Callable[P, None]:
    """Run a check from a fixed random state, and put the caller's back."""

    @functools.wraps(check)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            check(*args, **kwargs)

    return run


def broken(what: str, got: object, expected: object) -> NoReturn:
    """Report a breach of a contract."""
    raise PluginError(f"{what}: got {got}; expected {expected}")


def equal(a: Any, b: Any) -> bool:
    """Whether two nests of dicts, lists and arrays hold the same numbers."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(np.asarray(a), np.asarray(b)))
    return bool(a == b)
