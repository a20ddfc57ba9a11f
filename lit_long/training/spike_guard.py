"""Updates that would do harm: a loss or a gradient that is not finite, or a loss far above those before it.

``trainer.on_bad_step=stop`` ends the stage before such an update is applied; ``skip`` leaves it out: weights, AdamW's moments and the schedule
stay as they are, so that the run goes on as if its batch had never been (PaLM, Chowdhery et al. 2022, §5.1, did so by hand). When as many as
``ENOUGH`` in a row would be left out, it is the weights that are bad, and the stage ends. All ranks see the same sums, and so decide alike.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import Any

from lit_long.config import UserError

WINDOW, ENOUGH = 128, 16  # losses that a new one is compared with, and how many of them there must be; or bad updates in a row


class SpikeGuard:
    """Tells bad updates, and counts those that were skipped.

    Args:
        policy: stop or skip.
        spike: a loss above this multiple of the median of the last ones is bad, too; 0 = only what is not finite.
    """

    def __init__(self, policy: str = "stop", spike: float = 0.0) -> None:
        self.policy, self.spike = policy, spike
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.skipped = self.in_a_row = 0

    def should_skip(self, loss: float, norm: float, update: int) -> bool:
        """Whether to skip this update.

        Args:
            norm: of the gradient, before clipping.
            update: its number, from 0.

        Raises:
            UserError: it is bad, and the policy is to stop; or the last ones were all bad.
        """
        problem = self.problem(loss, norm)
        if not problem:
            self.losses.append(loss)
            self.in_a_row = 0
            return False
        if self.policy == "stop":
            raise UserError(
                f"update {update + 1}: {problem}. It was not applied, and checkpoints from before it are whole. The same command goes on from "
                "the newest one, and comes to the same update: change what it needs, such as optim.lr or the data; or set "
                "trainer.on_bad_step=skip to leave such updates out"
            )
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row == ENOUGH:
            first = update + 2 - ENOUGH
            raise UserError(
                f"update {first} was bad, and so were all {ENOUGH} up to update {update + 1}, where {problem}. They were left out, which moves nothing: "
                f"not their batches are bad but the weights, since before update {first}. Change what it needs, such as optim.lr, or trainer.spike "
                f"where it is too low; checkpoints from before update {first} are whole"
            )
        return True

    def problem(self, loss: float, norm: float) -> str:
        """What is wrong with an update, if anything is."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return f"the loss is {loss:g} and the norm of the gradient {norm:g}"
        if self.spike and len(self.losses) >= ENOUGH and loss > self.spike * (usual := median(self.losses)):
            return (
                f"the loss is {loss:.4g}, more than {self.spike:g} times the median of the last {len(self.losses)}, {usual:.4g}"
            )
        return ""

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self.losses), "skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses.clear()
        self.losses.extend(state["losses"])
        self.skipped, self.in_a_row = state["skipped"], state.get("in_a_row", 0)  # the first ones have none
