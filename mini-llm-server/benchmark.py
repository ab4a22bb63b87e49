"""python benchmark.py

Serves SmolLM2 three times, with continuous batching, static batching and FIFO, puts the same loads
on each over HTTP, and compares what the clients see: output tokens a second, time to first token
(TTFT), time between tokens (ITL) and whole latency.

The servers live all the time and take turns, so that noise of the machine meets all of them. In
closed loops each of N clients sends its next request when its last answer is complete; all answers
have one length (ignore_eos). In open loops requests of many lengths come at random moments, the
same for each server, at a rate. Prompts are pieces of this folder's LICENSE, cut to an exact number
of tokens, and prefix caching is off, so that no round finds its prompts again. Answers are greedy
and compared with what FIFO gave. Tokens are counted by the server's `usage`. A percentile is of one
round's requests; its samples are the rounds.

transformers' `generate` is a peer on the same weights and prompts: a request at a time beside one
client, and 32 requests as one batch beside 32 clients. With --peer-url any OpenAI-compatible server
is another one, asked by the same clients.
"""

import argparse
import asyncio
import random
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
try:
    import infra_bench
except ModuleNotFoundError:  # not installed: use the one in the checkout that this file lies in
    sys.path.insert(0, str(PACKAGE.parent))
    try:
        import infra_bench
    except ModuleNotFoundError:
        sys.exit(
            "benchmark.py needs its harness: use the whole checkout, or pip install infra-bench"
        )
try:
    import httpx
    import mini_llm_server
    import torch
    from benchmark_rows import TOLERANCE, ServerClock, rows_of
    from benchmark_transformers import Generate
    from mini_llm_server.bench.client import BenchmarkError, Job, Target
    from mini_llm_server.bench.load import Result, closed_loop, open_loop
    from mini_llm_server.bench.server_process import server
    from mini_llm_server.model.gguf import GGUFFile
    from mini_llm_server.model.gguf_tokenizer import gguf_tokenizer
    from mini_llm_server.model.loader import find_smollm2
    from mini_llm_server.model.tokenizer import ByteTokenizer, Tokenizer
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: run `pip install ./mini-llm-server` first") from None

BASELINE, CONTINUOUS = "fifo", "continuous"
SCHEDULERS = (BASELINE, "static", CONTINUOUS)
BLOCK_SIZE = 16


@dataclass(frozen=True)
class Load:
    """A case: `clients` in a closed loop, or `rate` requests a second in an open one.

    Attributes:
        prompt, output: tokens, from the least to the most that a request has.
        rounds: of each server; FIFO, which takes longest by far, has `fifo_rounds`.
    """

    requests: int
    prompt: tuple[int, int]
    output: tuple[int, int]
    clients: int = 0
    rate: float = 0.0
    rounds: int = 1
    fifo_rounds: int = 1
    transformers: bool = False

    @property
    def name(self) -> str:
        """The case's name in the record."""
        who = f"{self.rate:g} requests/s" if self.rate else f"{self.clients} clients"
        who = "1 client" if self.clients == 1 else who
        p, o = (f"{a}" if a == b else f"{a}-{b}" for a, b in (self.prompt, self.output))
        return f"{who}, {p} in, {o} out"

    def jobs(self, tokenizer: Tokenizer) -> list[Job]:
        """Return the requests: different pieces of real text, always the same ones."""
        ids = tokenizer.encode((PACKAGE / "LICENSE").read_text())
        rng = random.Random(0)
        jobs = []
        for i in range(self.requests):
            length, output = rng.randint(*self.prompt), rng.randint(*self.output)
            at = (len(ids) - length) * i // self.requests
            jobs.append(Job(ids[at : at + length], output))
        return jobs

    async def play(self, target: Target, jobs: Sequence[Job]) -> Result:
        """Put the load on a server; nothing less than every answer will do."""
        if self.rate:
            result = await open_loop(target, jobs, self.rate)
        else:
            result = await closed_loop(target, jobs, self.clients)
        if result.errors:
            raise BenchmarkError(f"{target.url}: {result.errors[0]}")
        return result


def loads_for(device: str, quick: bool) -> list[Load]:
    """What a machine can do in a minute (quick) or in six."""
    fixed, mixed = (64, 64), {"prompt": (16, 128), "output": (8, 48)}
    if device == "cuda":
        if quick:
            return [Load(16, (128, 128), (32, 32), clients=16, rounds=3, fifo_rounds=3)]
        return [
            Load(1, (128, 128), fixed, clients=1, rounds=3, fifo_rounds=3, transformers=True),
            Load(32, (128, 128), fixed, clients=32, rounds=3, transformers=True),
            Load(256, (128, 128), fixed, clients=128, rounds=3),
            *(Load(n, rate=rate, **mixed) for n, rate in ((20, 4), (60, 16), (200, 64))),
        ]
    if quick:
        return [
            Load(8, (32, 32), (32, 32), clients=8),
            Load(8, (16, 64), (4, 24), rate=2),
        ]
    return [
        Load(1, fixed, fixed, clients=1, rounds=3, fifo_rounds=3, transformers=True),
        Load(8, fixed, fixed, clients=8),
        Load(32, fixed, fixed, clients=32, rounds=2, transformers=True),
        *(Load(n, rate=rate, **mixed) for n, rate in ((6, 0.5), (10, 1), (20, 3))),
    ]


def serve_options(scheduler: str, model: str, loads: Sequence[Load]) -> list[str]:
    """Return the options of a server that can hold the largest load at once."""
    seqs = max(load.clients or load.requests for load in loads)
    tokens = max(load.prompt[1] + load.output[1] for load in loads)
    blocks = seqs * (-(-tokens // BLOCK_SIZE) + 1)
    budget = max(512, 16 * seqs)  # tokens of a step: some prompts besides the decodes
    return ["--model", model, "--scheduler", scheduler, "--max-num-seqs", str(seqs),
            "--block-size", str(BLOCK_SIZE), "--num-blocks", str(blocks),
            "--max-num-batched-tokens", str(budget), "--no-prefix-caching"]  # fmt: skip


def health(target: Target) -> dict[str, Any]:
    """Return what one of our servers says of itself."""
    report: dict[str, Any] = httpx.get(f"{target.url}/health", trust_env=False).json()
    return report


class Comparison:
    """Plays loads on our servers and on peers, and adds their rows to the run.

    Args:
        targets: our servers by scheduler, and peers by name.
        generate: transformers' answers to jobs, or None where it is no peer.
    """

    def __init__(
        self,
        run: infra_bench.Run,
        targets: dict[str, Target],
        tokenizer: Tokenizer,
        generate: Generate | None,
    ) -> None:
        self._run, self._targets = run, targets
        self._tokenizer, self._generate = tokenizer, generate

    def warm_up(self, loads: Sequence[Load]) -> None:
        """Let each server take its first steps, which are slower, on a GPU by seconds."""
        most = max(load.clients or load.requests for load in loads)
        warm = Load(most, (32, 64), (2, 2), clients=most)
        for name, target in self._targets.items():
            asyncio.run(warm.play(target, self._jobs(warm, name)))

    def add(self, load: Load) -> None:
        """Play one load in turns on all of them."""
        clocks = {name: ServerClock(self._targets[name].url) for name in SCHEDULERS}
        rounds: dict[str, list[Result]] = {name: [] for name in self._targets}
        for number in range(load.rounds):
            for name, target in self._targets.items():
                if name == BASELINE and number >= load.fifo_rounds:
                    continue
                result = asyncio.run(load.play(target, self._jobs(load, name)))
                rounds[name].append(result)
                print(
                    f"{load.name}, round {number + 1}: {name} {result.rate:.1f} tok/s", flush=True
                )
        about = health(self._targets[CONTINUOUS])
        for name in SCHEDULERS:
            if used := health(self._targets[name])["engine"]["blocks_used"]:
                raise BenchmarkError(f"{name} holds {used} blocks when idle")
        tolerance = TOLERANCE[about["dtype"]]
        reference = [answer.text for answer in rounds[BASELINE][0].answered]
        rows = []
        for name, results in rounds.items():
            ours = name in SCHEDULERS
            rows += rows_of(name, results, reference, tolerance, ours=ours)
            rows += clocks[name].rows(name) if ours else []
        if load.transformers and self._generate is not None:
            rows += self._generate(load.jobs(self._tokenizer), load.rounds, reference, tolerance)
        self._run.add(load.name, rows, baseline=BASELINE, params=self._params(load, about))

    def add_start(self, command: Sequence[str], rounds: int) -> None:
        """Measure from starting a server's process to the first token that its client gets."""
        job = Job("The capital of France is", 1)
        samples = []
        for _ in range(rounds):
            begin = time.perf_counter()
            with server(*command) as url:
                target = Target(url, self._targets[CONTINUOUS].model)
                asyncio.run(closed_loop(target, [job], 1))
                samples.append(time.perf_counter() - begin)
        row = infra_bench.Row(CONTINUOUS, "start to first token", "s", samples, better="lower")
        self._run.add("start", [row], baseline=CONTINUOUS)

    def _jobs(self, load: Load, name: str) -> list[Job]:
        """Return a load's requests: as token ids for our servers, as text for a peer's."""
        jobs = load.jobs(self._tokenizer)
        if name in SCHEDULERS:
            return jobs
        decode = self._tokenizer.decode
        return [Job(decode(list(job.prompt)), job.max_tokens) for job in jobs]  # type: ignore[arg-type]

    @staticmethod
    def _params(load: Load, about: dict[str, Any]) -> dict[str, Any]:
        params = {key: about[key] for key in ("model", "dtype", "device")}
        params["requests"] = load.requests
        if load.rate:
            params["requests/s"] = load.rate
        else:
            params["clients"] = load.clients
        return params


def main() -> int:
    """Parse the options, start the servers, run the loads, write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="about a minute on two cores")
    parser.add_argument("--out", type=Path, help="folder for the record (default: results/)")
    parser.add_argument("--model", choices=("smollm2", "dummy"), default="smollm2")
    parser.add_argument("--peer-url", help="an OpenAI-compatible server to ask the same")
    parser.add_argument("--peer-model", help="its model (default: the first that it lists)")
    parser.add_argument("--peer-name", default="peer", help="what the record calls it")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are ended
    device = "cuda" if torch.cuda.is_available() else "cpu"
    run = infra_bench.Run(
        "mini-llm-server", directory=PACKAGE, version=mini_llm_server.__version__, device=device
    )
    loads = loads_for(device, arguments.quick)
    try:
        tokenizer: Tokenizer = ByteTokenizer()
        generate = None
        if arguments.model == "smollm2":
            tokenizer = gguf_tokenizer(GGUFFile(find_smollm2()).metadata)
            if any(load.transformers for load in loads):
                generate = Generate(device, tokenizer)
        with ExitStack() as stack:
            print(f"starting {len(SCHEDULERS)} servers: {arguments.model} on {device}", flush=True)
            targets = {}
            for name in SCHEDULERS:
                options = serve_options(name, arguments.model, loads)
                targets[name] = Target(stack.enter_context(server(*options)), arguments.model)
            if arguments.peer_url:
                peer = Target.find(arguments.peer_url, arguments.peer_model)
                targets[arguments.peer_name] = peer
            comparison = Comparison(run, targets, tokenizer, generate)
            comparison.add_start(["--model", arguments.model], 1 if arguments.quick else 3)
            comparison.warm_up(loads)
            for load in loads:
                comparison.add(load)
    except (BenchmarkError, FileNotFoundError, httpx.HTTPError) as error:
        print(f"benchmark.py: {error or repr(error)}", file=sys.stderr)
        return 1
    run.finish(out=arguments.out)
    return run.exit_code


if __name__ == "__main__":
    sys.exit(main())
