"""Changes of the logical positions in training, which compose with any scheme: randomised positions and PoSE.

A transform takes a batch and returns another, and never sees evaluation or validation. It is a pure function of the batch's rows,
the seed, the step and the rows' numbers in the update, so that it is the same on any number of ranks and after a resume.
`Batch` (lit_long/batch.py) is taken as it comes: a named tuple with ``document_ids``, ``positions`` and ``mask_documents``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from lit_long.config import UserError, check
from lit_long.config.ranges import Count
from lit_long.config.typed import setting_names

if TYPE_CHECKING:
    from torch import Generator, Tensor

B = TypeVar("B", bound=Any)


@dataclass(frozen=True)
class PositionTransform(ABC):
    """Base class of all transforms. A subclass is a frozen dataclass; its fields are the keys allowed in ``position.training``."""

    def __post_init__(self) -> None:
        check(type(self), {name: getattr(self, name) for name in setting_names(type(self))}, "position.training")
        self.validate()

    def validate(self) -> None:
        """Raise a UserError when a setting makes no sense."""

    @property
    @abstractmethod
    def reach(self) -> int:
        """Tokens that all positions it makes lie within: the largest is at most ``reach`` − 1. An encoder that looks at the length of the
        context makes its tables for that."""

    @abstractmethod
    def __call__(self, batch: B, seed: int, step: int, first_row: int = 0) -> B:
        """The batch with other positions.

        Args:
            seed, step: of the run, and the number of optimizer updates before this one.
            first_row: number of the batch's first row in the whole update, over all ranks.
        """

    def require(self, condition: bool, name: str, wanted: str) -> None:
        if not condition:
            raise UserError(f"position.training.{name} must be {wanted}, not {getattr(self, name)!r}")


@dataclass(frozen=True)
class Randomised(PositionTransform):
    """Randomised positions (Giraffe, Pal et al. 2023; as released): t = cumsum(2·U[0, 1]), times L / max(t_last, L).

    Steps are 1 on average and no position exceeds L = ``length``; positions are real-valued, fp64. Each document has its own walk;
    each whole sequence where documents are not masked. The first token is at the walk's first step, not at 0, as released.
    """

    length: Count = 2048

    @property
    def reach(self) -> int:
        return self.length + 1

    def __call__(self, batch: B, seed: int, step: int, first_row: int = 0) -> B:
        import torch

        rows = [
            torch.cat([self.walk(count, generator) for count in runs(ids, batch.mask_documents)])
            for ids, generator in each_row(batch, seed, step, first_row)
        ]
        return batch._replace(positions=torch.stack(rows).to(batch.positions.device))

    def walk(self, count: int, generator: Generator) -> Tensor:
        """Positions of ``count`` tokens, fp64 [count]."""
        import torch

        walk = (2 * torch.rand(count, generator=generator, dtype=torch.float64)).cumsum(0)
        return (walk * (self.length / max(float(walk[-1]), self.length))).clamp(max=self.length)  # rounding may exceed it


@dataclass(frozen=True)
class PoSE(PositionTransform):
    """PoSE (Zhu et al. 2023, 2309.10400): windows of ``window`` tokens whose positions reach into ``target`` tokens.

    Every sequence is cut into windows that do not attend to each other (where documents are masked, a window also ends with its
    document). A window is split at random places into ``chunks``; chunk i's positions are shifted by u_i, with u_0 = 0 and u_i
    uniform in u_{i−1} … target − window, so they rise and stay below ``target``. Targets are left as they are: the last token of
    a window still predicts the next token of the text.
    """

    window: Count = 2048
    target: Count = 16_384
    chunks: Count = 2

    def validate(self) -> None:
        self.require(self.target >= self.window, "target", f"at least window={self.window}")
        self.require(self.chunks <= self.window, "chunks", f"at most window={self.window}")

    @property
    def reach(self) -> int:
        return self.target

    def __call__(self, batch: B, seed: int, step: int, first_row: int = 0) -> B:
        import torch

        all_positions, all_ids = [], []
        for ids, generator in each_row(batch, seed, step, first_row):
            documents = runs(ids, batch.mask_documents)
            sizes = [min(self.window, count - start) for count in documents for start in range(0, count, self.window)]
            all_positions.append(torch.cat([self.shifted(size, generator) for size in sizes]))
            windows = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
            all_ids.append(torch.where(ids < 0, ids, windows))  # padding stays what it is
        ids, positions = torch.stack(all_ids), torch.stack(all_positions)
        return batch._replace(
            document_ids=ids.to(batch.document_ids.device), positions=positions.to(batch.positions.device), mask_documents=True
        )

    def shifted(self, count: int, generator: Generator) -> Tensor:
        """Positions of a window of ``count`` tokens, int64 [count]."""
        import torch

        positions, shift = torch.arange(count), 0
        cuts = (torch.randperm(count - 1, generator=generator)[: self.chunks - 1] + 1).sort().values.tolist()
        for start, stop in zip(cuts, [*cuts, count][1:], strict=True):
            shift = int(torch.randint(shift, self.target - self.window + 1, (), generator=generator))
            positions[start:stop] += shift
        return positions


def runs(ids_T: Tensor, masked: bool) -> list[int]:
    """Tokens of each document of a row in their order; of the whole row where documents are not ``masked``."""
    if not masked:
        return [len(ids_T)]
    return ids_T.unique_consecutive(return_counts=True)[1].tolist()


def each_row(batch: Any, seed: int, step: int, first_row: int) -> list[tuple[Tensor, Generator]]:
    """Document ids [T] of every row, on the CPU, with the row's own source of randomness."""
    import numpy as np
    import torch

    rows = []
    for row, ids in enumerate(batch.document_ids.cpu(), start=first_row):
        key = np.random.SeedSequence([seed, step, row]).generate_state(1, np.uint64)[0]
        rows.append((ids, torch.Generator().manual_seed(int(key))))
    return rows


TRANSFORMS: dict[str, type[PositionTransform]] = {"randomised": Randomised, "pose": PoSE}
