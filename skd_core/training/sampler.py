"""The frames of each step: every random choice follows from (seed, epoch, index), so that a run resumes exactly."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class EpochSampler(Sampler[list[tuple[int, int, int]]]):
    """Batches of (epoch, index, repetition): what an epoch holds depends on (seed, epoch) alone.

    Every set fills its share of the slots with permutations of its samples, one after the other; the sets' slots are
    spread evenly. Every rank draws the same order and takes its own share of each global batch. Where there are several
    ranks, the batch is mixed before, so that each of them sees all sets. The last, incomplete global batch is left out.

    Args:
        counts: samples of each set, or of the only one.
        batch_size: global, over all ranks.
        shares: of each set in every batch, relative to each other; None: by their number of samples.
        steps: of an epoch; None: as many as hold all samples once.
    """

    def __init__(
        self,
        counts: int | Sequence[int],
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        shares: Sequence[float] | None = None,
        *,
        steps: int | None = None,
    ) -> None:
        self.counts = [counts] if isinstance(counts, int) else list(counts)
        self.shares = [float(n) for n in self.counts] if shares is None else list(shares)
        self.batch_size, self.seed, self.steps = batch_size, seed, steps
        self.rank, self.world_size = rank, world_size
        self.epoch, self.first = 0, 0

    def __len__(self) -> int:
        return self.steps or max(sum(self.counts) // self.batch_size, 1)

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        order = self._order()
        for step in range(self.first, len(self)):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            if self.world_size > 1:  # else the sets' slots take turns, in step with the ranks
                generator = torch.Generator().manual_seed(mix_seed(self.seed + 1, self.epoch, step))
                batch = [batch[i] for i in torch.randperm(len(batch), generator=generator).tolist()]
            yield [(self.epoch, *which) for which in batch[self.rank :: self.world_size]]

    def _order(self) -> list[tuple[int, int]]:
        """(index, repetition) of every slot of the epoch."""
        slots = len(self) * self.batch_size
        if len(self.counts) == 1 and self.steps is None:
            slots = min(slots, self.counts[0])
        total, due = sum(self.shares), [0.0] * len(self.shares)
        drawn = [self._draws(which) for which in range(len(self.counts))]
        order = []
        for _ in range(slots):
            for which, share in enumerate(self.shares):
                due[which] += share / total
            which = max(range(len(due)), key=due.__getitem__)
            due[which] -= 1
            order.append(next(drawn[which]))
        return order

    def _draws(self, which: int) -> Iterator[tuple[int, int]]:
        """A set's samples in random order, and again in another."""
        first = sum(self.counts[:which])
        for repetition in itertools.count():
            salt = -1 - which - len(self.counts) * repetition
            generator = torch.Generator().manual_seed(mix_seed(self.seed, self.epoch, salt))
            for index in torch.randperm(self.counts[which], generator=generator).tolist():
                yield first + index, repetition


class RunSampler(Sampler[list[tuple[int, int, int]]]):
    """The batches of a run from a step to its end, one epoch after the other, so that workers read ahead across epochs.

    Args:
        epochs: of one epoch each; only used while this is iterated.
        first: the step to begin at, 0 for a new run.
        total: steps of the whole run.
    """

    def __init__(self, epochs: EpochSampler, first: int, total: int) -> None:
        self.epochs, self.first, self.total = epochs, first, total

    def __len__(self) -> int:
        return self.total - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        step = self.first
        while step < self.total:
            self.epochs.epoch, self.epochs.first = divmod(step, len(self.epochs))
            batches = list(self.epochs)[: self.total - step]
            yield from batches
            step += len(batches)


def mix_seed(seed: int, epoch: int, index: int) -> int:
    """A seed for one (seed, epoch, index); neighbours give unrelated streams (splitmix64's finaliser)."""
    mask = (1 << 64) - 1
    x = (seed * 0x9E3779B97F4A7C15 + epoch * 0xBF58476D1CE4E5B9 + (index + 1) * 0x94D049BB133111EB) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return (x ^ (x >> 31)) >> 1
