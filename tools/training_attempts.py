"""What might make a training step faster on a CPU: `python tools/training_attempts.py [--weights NAME ...]`.

Forward, backward and Adam of backbone and 2D heads on one core, with the weights as stored; alternatives take turns.
Prints the median CPU time of a step as training does it (channels last), and that time divided by each alternative's.
"""

from __future__ import annotations

import argparse
import statistics
import time
import types
from collections.abc import Callable

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from skd_core.inference.bundled import resolve
from skd_core.inference.weights import load_weights
from skd_core.models.student import Student


def student_of(name: str) -> Student:
    """A student for training, denormal weights among them, which loading for inference sets to zero."""
    student, _ = load_weights(name)
    own = student.state_dict()
    stored = load_file(str(resolve(name)))
    student.load_state_dict(own | {key: value for key, value in stored.items() if key in own})
    return student.train()


def stepper(student: Student, images: Tensor, features: Callable[[Tensor], Tensor]) -> Callable[[], float]:
    """A function that does one step and returns its CPU time, seconds."""
    optimizer = torch.optim.Adam(student.parameters(), 1e-6)

    def step() -> float:
        start = time.process_time()
        maps = student.maps_2d(features(images))
        loss = torch.stack([value.float().mean() for value in vars(maps).values() if torch.is_tensor(value)]).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return time.process_time() - start

    return step


def with_products(student: Student) -> Student:
    """The network with convolutions of one pixel as matrix products, which channels last allows without a copy."""

    def forward(self: nn.Conv2d, x: Tensor) -> Tensor:
        return F.linear(x.permute(0, 2, 3, 1), self.weight[:, :, 0, 0], self.bias).permute(0, 3, 1, 2)

    for module in student.modules():
        if isinstance(module, nn.Conv2d) and (module.kernel_size, module.stride, module.groups) == ((1, 1), (1, 1), 1):
            module.forward = types.MethodType(forward, module)  # type: ignore[method-assign]
    return student


def flushed(step: Callable[[], float]) -> Callable[[], float]:
    """The same with denormal numbers taken as zero."""

    def run() -> float:
        torch.set_flush_denormal(True)
        try:
            return step()
        finally:
            torch.set_flush_denormal(False)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", nargs="+", default=["default"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", default="480x144")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--compile", action="store_true", help="torch.compile too, which takes minutes to begin with")
    options = parser.parse_args()
    torch.set_num_threads(1)
    width, height = map(int, options.size.split("x"))
    images = torch.randint(0, 256, (options.batch, 3, height, width), dtype=torch.uint8)
    for name in options.weights:
        last = student_of(name).to(memory_format=torch.channels_last)
        plain = student_of(name)
        products = with_products(student_of(name).to(memory_format=torch.channels_last))

        def contiguous(images: Tensor, net: Student = plain) -> Tensor:
            features: Tensor = net.backbone((images.float() - net.mean) / net.std)
            return features

        steps = {"channels last": stepper(last, images, last.features)}
        steps["flushed denormals"] = flushed(steps["channels last"])
        steps["contiguous"] = stepper(plain, images, contiguous)
        steps["1x1 convolutions as matrix products"] = stepper(products, images, products.features)
        if options.compile:
            steps["compiled"] = stepper(last, images, torch.compile(last.features))
        for step in steps.values():
            step()
        took: dict[str, list[float]] = {kind: [] for kind in steps}
        for _ in range(options.rounds):
            for kind, step in steps.items():
                took[kind].append(step())
        base = took["channels last"]
        print(f"{name}: channels last {statistics.median(base):.2f} s")
        for kind, times in list(took.items())[1:]:
            ratios = [a / b for a, b in zip(base, times, strict=True)]
            print(f"  / {kind}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
