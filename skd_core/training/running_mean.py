"""The running mean of all weights, which is what is measured and exported, and the check that weights are numbers."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from skd_core.training.module import TeacherStudent


class RunningMean:
    """Exponential moving average of weights and statistics, all tensors in a few calls.

    The tensors are listed once: to collect a state dict of hundreds of entries takes longer than the mean itself.

    Args:
        model: on its device; its tensors must only be changed in place from here on.

    Attributes:
        module: the mean, as a network in evaluation mode.
    """

    def __init__(self, model: TeacherStudent) -> None:
        self.module: TeacherStudent = copy.deepcopy(model).eval()
        weights, means = list(model.state_dict().values()), list(self.module.state_dict().values())
        pairs = list(zip(means, weights, strict=True))
        self._means = [mean for mean, weight in pairs if weight.is_floating_point()]
        self._weights = [weight for weight in weights if weight.is_floating_point()]
        self._counts = [pair for pair in pairs if not pair[1].is_floating_point()]

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """``mean = decay mean + (1 - decay) weight``; counters are copied."""
        torch._foreach_lerp_(self._means, self._weights, 1 - decay)
        for mean, weight in self._counts:
            mean.copy_(weight)

    @torch.no_grad()
    def weights_are_finite(self) -> bool:
        """Whether no weight or statistic of the model holds NaN or inf; one look at the device for all of them."""
        largest: Tensor = torch.nn.utils.get_total_norm(self._weights, math.inf)
        return bool(largest.isfinite())
