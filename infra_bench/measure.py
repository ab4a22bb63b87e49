"""The course of one measurement: verify, calibrate, take turns, verify again."""

from __future__ import annotations

import gc
import math
import random
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch

from .case import Case, Implementation
from .contender import MOST_ROUNDS, Contender, is_lost, one_line
from .error import RefusalError
from .progress import Progress
from .record import CaseRecord, derive
from .tensors import Inputs, draw, outputs_of, release_cached, share_memory, size_in_bytes
from .timing import CpuTimer, InputSets, Timer
from .verify import Examiner

FEWEST_ROUNDS = 5
SLOW_ROUNDS = 3  # where one call alone is longer than the budget
CPU_SETS, CUDA_SETS = 3, 2
LARGEST_OF_SEVERAL = 1 << 30  # bytes of one set: more than any cache holds


def measure(
    case: Case,
    implementations: Sequence[Implementation],
    device: torch.device,
    budget_s: float,
    graph: bool,
    eager: bool,
    progress: Progress,
) -> CaseRecord:
    """Verify and time all implementations of a case in turns; see Run.measure."""
    seed = secrets.randbits(32)  # fresh every run: an answer prepared for a known seed is no use
    contenders = [
        Contender(each, status="skipped" if each.skip else "ok", reason=each.skip)
        for each in implementations
    ]
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            _Measurement(case, contenders, device, budget_s, graph, eager, progress, seed).course()
    except torch.OutOfMemoryError as full:
        # The harness itself, which holds inputs and float64 copies beside what they become.
        _fail_all(contenders, f"no memory to verify it: {one_line(full)}")
    except Exception as crash:
        if device.type == "cpu" or not is_lost():
            raise
        # The cases before this one are worth a record, so the run goes on to its end.
        _fail_all(contenders, f"an earlier crash took the GPU with it: {one_line(crash)}")
    return derive(
        CaseRecord(
            name=case.name,
            baseline=case.baseline,
            params=dict(case.params),
            rows=tuple(each.record() for each in contenders),
            flops=float(case.flops),
            bytes=float(case.bytes),
            peak_flops=float(case.peak_flops),
            peak_bytes=float(case.peak_bytes),
            tolerance=case.tolerance,
            seed=seed,
        )
    )


def _fail_all(contenders: list[Contender], reason: str) -> None:
    for each in contenders:
        if each.status == "ok":
            each.fail("failed", reason)


class _Measurement:
    def __init__(
        self,
        case: Case,
        contenders: list[Contender],
        device: torch.device,
        budget_s: float,
        graph: bool,
        eager: bool,
        progress: Progress,
        seed: int,
    ) -> None:
        self.case, self.device, self.budget_s = case, device, budget_s
        self.graph, self.eager, self.progress = graph, eager, progress
        self.all = contenders
        self.generator = torch.Generator(device).manual_seed(seed)
        self.random = random.Random(seed)

    def course(self) -> None:
        if not self.alive():
            return
        if self.device.type == "cuda":
            from .cuda import Flush

            # First of all, and from the driver: cut from a large block that an earlier case left,
            # this small buffer would keep the rest of it from any large tensor.
            release_cached(self.device)
            self.flush = Flush(self.device)
        sets = self.draw_sets()
        self.verify_before(Examiner(self.case, sets[0], self.device))
        inputs = InputSets(sets, self.case.inplace)
        timer = self.calibrate(inputs)
        self.take_turns(timer, inputs)
        # The known buffers with other contents, then buffers never seen before.
        self.verify_after(Examiner(self.case, sets[0], self.device, self.draw))
        unseen = self.draw()
        del timer, inputs, sets  # float64 copies of large inputs need the room
        self.verify_after(Examiner(self.case, unseen, self.device))

    def alive(self) -> list[Contender]:
        return _grouped([each for each in self.all if each.status == "ok"])

    def draw(self) -> Inputs:
        return draw(self.case.inputs, self.generator, self.case.name)

    def draw_sets(self) -> list[Inputs]:
        """Draw several sets of inputs; one, where it is too large to leave traces in a cache."""
        first = self.draw()
        count = CUDA_SETS if self.device.type == "cuda" else CPU_SETS
        if size_in_bytes(first) > LARGEST_OF_SEVERAL:
            count = 1
        return [first, *(self.draw() for _ in range(count - 1))]

    def verify_before(self, examiner: Examiner) -> None:
        """Examine a call, and two in a row with the same buffers and other contents."""
        for each in self.alive():
            self.progress.show(self.case.name, each.implementation.name, "verifying")
            examiner.expect(each.implementation)
            with each.on_trial():
                each.saw(examiner.call(each.implementation.function)[1])
        examiner.renew(self.draw)
        for each in self.alive():
            examiner.expect(each.implementation)
            with each.on_trial():
                self._call_twice(examiner, each)
                if self.device.type == "cuda":
                    from .streams import check_streams

                    check_streams(examiner, each.implementation.function, self.flush)

    def _call_twice(self, examiner: Examiner, contender: Contender) -> None:
        """Examine two calls in a row, which must not return the same memory."""
        first, error = examiner.call(contender.implementation.function)
        contender.saw(error)
        second, error = examiner.call(contender.implementation.function)
        contender.saw(error)
        # The first one is still held, so its memory cannot have been handed out again.
        if not self.case.inplace and share_memory(first, second):
            raise RefusalError(
                "returns the same memory from every call: "
                "a second result overwrites the first, which a caller may still hold"
            )

    def calibrate(self, inputs: InputSets) -> Timer:
        """Choose the timer for the whole case, and give each contender its pace and rounds."""
        timer: Timer
        if self.device.type == "cuda":
            timer = self._calibrate_cuda(inputs)
        else:
            timer = CpuTimer(inputs)
            self._pace(timer)
        for each in self.alive():
            assert each.pace is not None
            each.fewest = SLOW_ROUNDS if each.pace.seconds > self.budget_s else FEWEST_ROUNDS
            each.timer = timer.name
        return timer

    def _calibrate_cuda(self, inputs: InputSets) -> Timer:
        """Time as is asked for; else by events, or a graph where launches would dominate."""
        from .cuda import SHORT_CALL_S, EagerTimer, EventTimer, GraphTimer

        if self.eager:
            self._draw_beyond_l2(inputs)
            eager = EagerTimer(inputs)
            self._pace(eager)
            return eager
        events = EventTimer(inputs, self.flush)
        self._pace(events)
        paces = [each.pace.seconds for each in self.alive() if each.pace]
        short = bool(paces) and min(paces) < SHORT_CALL_S
        if self.case.inplace or not paces or not (self.graph or short):
            return events
        self._draw_beyond_l2(inputs)
        graphs = GraphTimer(inputs, self.flush)
        before = {id(each): each.pace for each in self.alive()}
        if self.graph:
            self._pace(graphs)
            return graphs
        try:
            for each in self.alive():
                each.pace = graphs.pace(each.implementation.function)
        except Exception:
            # One cannot be captured: then all are timed by events, or ratios would mean nothing.
            for each in self.alive():
                each.pace = before[id(each)]
            return events
        return graphs

    def _draw_beyond_l2(self, inputs: InputSets) -> None:
        """Add input sets until together they exceed the L2, so that calls in a row find it cold."""
        from .cuda import MOST_SETS

        if self.case.inplace:
            return
        wanted = math.ceil(2 * self.flush.l2 / max(1, size_in_bytes(inputs.sets[0])))
        for _ in range(len(inputs.sets), min(wanted, MOST_SETS)):
            inputs.sets.append(self.draw())

    def _pace(self, timer: Timer) -> None:
        for each in self.alive():
            self.progress.show(self.case.name, each.implementation.name, "warming up")
            with each.on_trial():
                each.pace = timer.pace(each.implementation.function)

    def take_turns(self, timer: Timer, inputs: InputSets) -> None:
        """Sample everyone once a round, so that whatever drifts hits all alike; check some results.

        The order is drawn anew each round, or each would always follow the same one: after a kernel
        that draws much power a GPU's clock is lower, after one that waits for memory it is cooler.
        """
        playing = self.alive()
        if not playing:
            return
        # Each one's last round is checked, and one that nobody can foresee.
        drawn = self.random.randrange(min(each.rounds_in(self.budget_s) for each in playing))
        with _no_collector():
            for turn in range(MOST_ROUNDS):
                self.random.shuffle(playing)
                ending = [each for each in playing if each.ends(self.budget_s)]
                if ending or turn == drawn:
                    self._checked_round(timer, inputs, playing, turn)
                else:
                    self._round(timer, playing, turn)
                playing = [each for each in playing if each.status == "ok" and each not in ending]
                if not playing:
                    return

    def _round(self, timer: Timer, playing: list[Contender], turn: int) -> None:
        for each in playing:
            self.progress.show(self.case.name, each.implementation.name, "timing", turn)
            with each.on_trial():
                each.sample(timer, turn)

    def _checked_round(
        self, timer: Timer, inputs: InputSets, playing: list[Contender], turn: int
    ) -> None:
        """Sample on contents never seen before, and examine what the timed call returned."""
        index = timer.last_set(turn)
        examiner = Examiner(self.case, inputs.sets[index], self.device, self.draw)
        inputs.renewed(index)
        for each in _grouped(playing):
            examiner.expect(each.implementation)
            with each.on_trial():
                # With the allocator's cache kept: to fill it again would take time from the sample.
                between = examiner.poison(release=False)
                returned = each.sample(timer, turn, once=True)
                del between
                try:
                    each.saw(examiner.judge(outputs_of(returned) or ()))
                except RefusalError as refusal:
                    raise RefusalError(f"in a timed call: {refusal}") from None

    def verify_after(self, examiner: Examiner) -> None:
        """Examine one more call."""
        for each in self.alive():
            self.progress.show(self.case.name, each.implementation.name, "verifying")
            examiner.expect(each.implementation)
            with each.on_trial():
                try:
                    each.saw(examiner.call(each.implementation.function)[1])
                except RefusalError as refusal:
                    raise RefusalError(f"after timing: {refusal}") from None


def _grouped(contenders: list[Contender]) -> list[Contender]:
    """Put those with a reference of their own last, the others' order kept.

    Right answers are there one at a time: so each is computed only once, and none becomes free
    memory, which an output left unwritten may get, before all that it judges are judged.
    """
    return sorted(contenders, key=lambda each: each.implementation.reference is not None)


@contextmanager
def _no_collector() -> Iterator[None]:
    """Keep Python's garbage collector out of the samples."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
