"""What a model can know of its precision once it is trained, so that no volume has to try."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medseg.inference.precision import candidate
from medseg.inference.predictor import Predictor
from medseg.networks.checkpoint import set_settled
from medseg.volumes.dataset import Case

MOST = 4  # cases that are tried


def settle(model: Path, predictor: Predictor, cases: Sequence[Case]) -> None:
    """Try a lower precision on validation cases; the model keeps it if all get the same labels.

    Args:
        model: The model's file.
        predictor: The model; unless its `inference.precision` is "auto" there is nothing to try.
        cases: Cases that did not train.

    Raises:
        DataError: A case cannot be read, or the file not be written.
    """
    lower = candidate(predictor.device)
    if predictor.config.inference.precision != "auto" or lower == "fp32":
        return
    for case in cases[:MOST]:
        ready = predictor.prepare(predictor.load_case(case))
        for member, some in zip(predictor.members, ready.prepared, strict=True):
            if any(member.over(prepared).run.precision != lower for prepared in some):
                return
    set_settled(model, lower)
