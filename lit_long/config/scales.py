"""An experiment at one of its scales: the same table on a laptop, on one GPU, and as the paper ran it.

    scale: laptop                  the one that runs when no other is asked for
    scales:
      laptop: {model: tiny, …}     settings on top of the experiment's own; `scale=paper` picks others
      paper: {model: llama2-7b, …}

A scale says what differs: model, tokens, lengths, grid. Stages and what they are for stand once, in the experiment. A stage, or an axis of the grid,
that a scale sets to null is not there at that scale.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from lit_long.config.typed import UserError, nearest

SCALE, SCALES = "scale", "scales"


def at_scale(experiment: dict[str, Any], wanted: str | None, file: Path) -> dict[str, Any]:
    """The experiment's settings at scale ``wanted``, or at its own choice; ``scales`` itself is gone.

    Raises:
        UserError: it has no such scale, or none at all.
    """
    rest = {key: value for key, value in experiment.items() if key != SCALES}
    scales = experiment.get(SCALES)
    if scales is None:
        if wanted:
            raise UserError(f"scale={wanted}: {file} has no scales; leave the word out")
        return rest
    if not isinstance(scales, dict) or not all(isinstance(value, dict) for value in scales.values()):
        raise UserError(f"{file}: scales must be NAME: {{settings}} for each scale")
    name = str(wanted or experiment.get(SCALE) or next(iter(scales), None))
    if name not in scales:
        raise UserError(f"scale={name}: {file} has {', '.join(map(str, scales)) or 'none'}{nearest(name, scales)}")
    settled = copy.deepcopy(rest)
    merge(settled, scales[name])
    settled[SCALE] = name
    for group in ("stages", "grid"):
        if isinstance(settled.get(group), dict):
            settled[group] = {key: value for key, value in settled[group].items() if value is not None}
    return settled


def merge(into: dict[str, Any], layer: dict[str, Any]) -> None:
    """Put ``layer`` on top, group by group."""
    for key, value in layer.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)
