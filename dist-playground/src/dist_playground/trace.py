"""What a step spent on computing, on communicating, and on both at once, from torch's profiler.

On CUDA these are kernels: NCCL's, and all others. On gloo they are the CPU's operations. The part
of the communication during which nothing is computed is what parallelism costs: it is exposed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["Timeline", "draw", "record"]

Interval = tuple[float, float]  # milliseconds from the beginning
# Copies within a GPU cannot be told from those between two, so all count as communication.
WORDS = ("nccl", "gloo:", "all_reduce_kernel", "barrier", "memcpy dtod", "memcpy ptop")


@dataclass(frozen=True)
class Timeline:
    """When a device computed and when it communicated, over `milliseconds`."""

    milliseconds: float
    compute: list[Interval]
    communication: list[Interval]

    @property
    def exposed(self) -> float:
        """Milliseconds of communication with no computation beside it."""
        both = (
            total(self.compute)
            + total(self.communication)
            - total(merged(self.compute + self.communication))
        )
        return total(self.communication) - both


def merged(intervals: list[Interval]) -> list[Interval]:
    """The union, in order, as intervals that do not touch."""
    found: list[Interval] = []
    for start, stop in sorted(intervals):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((start, stop))
    return found


def joined(intervals: list[Interval], gap: float) -> list[Interval]:
    """Merged, also across gaps that are too short to be seen: a picture needs no more."""
    return [(start, stop - gap) for start, stop in merged([(a, b + gap) for a, b in intervals])]


def total(intervals: list[Interval]) -> float:
    """Their length together; they must not overlap."""
    return sum(stop - start for start, stop in intervals)


def record(step: Callable[[], object], device: torch.device) -> Timeline:
    """Run one step under the profiler."""
    cuda = device.type == "cuda"
    activity = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        step()
        if cuda:
            torch.cuda.synchronize(device)
    compute: list[Interval] = []
    communication: list[Interval] = []
    for event in profiler.profiler.kineto_results.events():
        if (event.device_type() == torch._C._autograd.DeviceType.CUDA) != cuda:
            continue
        name = event.name().lower()
        start = event.start_ns() / 1e6
        interval = (start, start + event.duration_ns() / 1e6)
        if any(word in name for word in WORDS):
            communication.append(interval)
        elif name.startswith("aten::") or cuda:
            compute.append(interval)
    every = compute + communication
    begin, end = min(start for start, _ in every), max(stop for _, stop in every)
    return Timeline(
        end - begin,
        merged([(start - begin, stop - begin) for start, stop in compute]),
        merged([(start - begin, stop - begin) for start, stop in communication]),
    )


def draw(timelines: dict[str, Timeline]) -> str:
    """An SVG: for each name a lane of computation and one of communication, on one time axis."""
    longest = max(timeline.milliseconds for timeline in timelines.values())
    width, left, lane = 900, 170, 16
    scale = (width - left - 20) / longest
    parts = []
    y = 24
    for name, timeline in timelines.items():
        parts.append(f'<text x="8" y="{y + 14}">{name}</text>')
        parts.append(
            f'<text x="8" y="{y + 30}" fill="#888">{timeline.milliseconds:.1f} ms, exposed '
            f"{timeline.exposed:.1f}</text>"
        )
        for row, (colour, intervals) in enumerate(
            (("#4878a8", timeline.compute), ("#d8843c", timeline.communication))
        ):
            for start, stop in joined(intervals, 0.3 / scale):
                parts.append(
                    f'<rect x="{left + start * scale:.2f}" y="{y + row * (lane + 2)}" '
                    f'width="{max((stop - start) * scale, 0.1):.2f}" height="{lane}" '
                    f'fill="{colour}"/>'
                )
        y += 2 * lane + 22
    legend = (
        '<text x="170" y="14" fill="#4878a8">computing</text>'
        '<text x="250" y="14" fill="#d8843c">communicating</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f"{legend}{''.join(parts)}</svg>\n"
    )
