"""python benchmark.py

Starts the real server twice, with continuous batching and with FIFO, sends both the same concurrent
streaming requests over HTTP, and compares output tokens a second, time to first token (TTFT), time
between tokens (ITL) and whole latency, each as a client sees them.

Both servers live all the time and take turns, one round each, so that noise of the machine meets
both. Each of N clients sends its next request when its last answer is complete. Prompts are pieces
of this folder's LICENSE, cut to an exact number of tokens; every answer has the same length
(ignore_eos), is greedy, and is compared with what FIFO gave. Tokens are counted by the server's
`usage`, not by chunks. A percentile is of one round's requests; its samples are the rounds.
"""

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
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
    from benchmark_client import Answer, BenchmarkError, Load, play, server
    from mini_llm_server.model.gguf import GGUFFile
    from mini_llm_server.model.gguf_tokenizer import gguf_tokenizer
    from mini_llm_server.model.loader import find_smollm2
    from mini_llm_server.model.tokenizer import ByteTokenizer, Tokenizer
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: run `pip install ./mini-llm-server` first") from None

BASELINE = "fifo"
SCHEDULERS = (BASELINE, "continuous")
# Largest error of the answers: 1 - the mean share of an answer's text that is the same as FIFO's
# from its start on. A batch multiplies in another order than one request alone, so two tokens that
# are almost equally likely can change places, rarely in float32, often in bfloat16; from there on
# the texts differ. Answers that are wrong share next to nothing.
TOLERANCE = {"float32": 0.1, "bfloat16": 0.6}


def loads_for(device: str, quick: bool) -> list[Load]:
    """What a machine can do in a minute (quick) or in some."""
    if device == "cuda":
        if quick:
            return [Load(16, 16, 128, 32, 3)]
        return [Load(1, 4, 128, 64, 3), Load(32, 32, 128, 64, 3)]
    if quick:
        return [Load(8, 8, 32, 32, 2)]
    return [Load(1, 2, 64, 64, 3), Load(8, 8, 64, 64, 3), Load(32, 32, 64, 64, 2)]


def cut_prompts(tokenizer: Tokenizer, load: Load) -> list[list[int]]:
    """Return `load.requests` different pieces of real text of `load.prompt` tokens."""
    ids = tokenizer.encode((PACKAGE / "LICENSE").read_text())
    last = len(ids) - load.prompt
    return [
        ids[at : at + load.prompt]
        for at in (last * i // load.requests for i in range(load.requests))
    ]


def shared_share(text: str, reference: str) -> float:
    """Return how much of a text is the same as the reference's from the start on, 0 to 1."""
    longest = max(len(text), len(reference))
    pairs = zip(text, reference, strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(text), len(reference)))
    return same / longest if longest else 1.0


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the nearest-rank percentile: always one of the values."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def rows_of(
    scheduler: str,
    rounds: Sequence[tuple[list[Answer], float]],
    reference: Sequence[str],
    tolerance: float,
) -> list[infra_bench.Row]:
    """Return one scheduler's metrics, a sample a round; refused if its answers are not FIFO's."""
    pairs = [
        (answer.text, text)
        for answers, _ in rounds
        for answer, text in zip(answers, reference, strict=True)
    ]
    error = 1 - sum(shared_share(*pair) for pair in pairs) / len(pairs)
    wrong = not error <= tolerance
    why = f"its answers differ from FIFO's by {error:.2g}, more than {tolerance:g}" if wrong else ""

    def row(metric: str, unit: str, samples: list[float], better: Any = "lower") -> infra_bench.Row:
        status = "refused" if wrong else "ok"
        own = error if metric == "output tokens" else None
        return infra_bench.Row(
            scheduler, metric, unit, samples, better=better, error=own, status=status, reason=why
        )

    rates = [sum(a.tokens for a in answers) / seconds for answers, seconds in rounds]
    rows = [row("output tokens", "tok/s", rates, "higher")]
    for metric, values in (
        ("TTFT", [[a.times[0] for a in answers] for answers, _ in rounds]),
        ("ITL", [[gap for a in answers for gap in a.gaps] for answers, _ in rounds]),
        ("latency", [[a.latency for a in answers] for answers, _ in rounds]),
    ):
        for percent in (50, 99):
            samples = [percentile(each, percent) for each in values]
            rows.append(row(f"{metric} p{percent}", "s", samples))
    equal = [100 * sum(t == u for t, u in pairs) / len(pairs)]
    rows.append(row("answers equal to FIFO's", "%", equal, "higher"))
    return rows


def compare(
    run: infra_bench.Run, urls: dict[str, str], model: str, load: Load, tokenizer: Tokenizer
) -> None:
    """Play one load in turns on both servers, and add its rows to the run."""
    prompts = cut_prompts(tokenizer, load)
    rounds: dict[str, list[tuple[list[Answer], float]]] = {name: [] for name in SCHEDULERS}
    for number in range(load.rounds):
        for name in SCHEDULERS:
            answers, seconds = asyncio.run(play(urls[name], model, prompts, load))
            rounds[name].append((answers, seconds))
            rate = sum(answer.tokens for answer in answers) / seconds
            print(
                f"{load.name}, round {number + 1} of {load.rounds}: {name} {rate:.1f} tok/s",
                flush=True,
            )
    reports = {
        name: httpx.get(f"{url}/health", trust_env=False).json() for name, url in urls.items()
    }
    for name, report in reports.items():
        if report["engine"]["blocks_used"]:
            raise BenchmarkError(f"{name} holds {report['engine']['blocks_used']} blocks when idle")
    about = reports[BASELINE]
    reference = [answer.text for answer in rounds[BASELINE][0][0]]
    tolerance = TOLERANCE[about["dtype"]]
    run.add(
        load.name,
        [row for name in SCHEDULERS for row in rows_of(name, rounds[name], reference, tolerance)],
        baseline=BASELINE,
        params={
            "model": model,
            "clients": load.clients,
            "requests": load.requests,
            "prompt tokens": load.prompt,
            "output tokens": load.output,
            "dtype": about["dtype"],
            "device": about["device"],
        },
    )


def main() -> int:
    """Parse the options, start the servers, run the loads, write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="about a minute on two cores")
    parser.add_argument("--out", type=Path, help="folder for the record (default: results/)")
    parser.add_argument("--model", choices=("smollm2", "dummy"), default="smollm2")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are ended
    device = "cuda" if torch.cuda.is_available() else "cpu"
    run = infra_bench.Run(
        "mini-llm-server", directory=PACKAGE, version=mini_llm_server.__version__, device=device
    )
    loads = loads_for(device, arguments.quick)
    try:
        tokenizer: Tokenizer = ByteTokenizer()
        if arguments.model == "smollm2":
            tokenizer = gguf_tokenizer(GGUFFile(find_smollm2()).metadata)
        with ExitStack() as stack:
            print(f"starting two servers with {arguments.model} on {device}", flush=True)
            urls = {
                name: stack.enter_context(server(name, arguments.model, loads))
                for name in SCHEDULERS
            }
            # A process's first steps are slower, on a GPU by seconds.
            most = loads[-1].clients
            warm_up = Load(most, most, loads[-1].prompt, 2, 1)
            for url in urls.values():
                asyncio.run(play(url, arguments.model, cut_prompts(tokenizer, warm_up), warm_up))
            for load in loads:
                compare(run, urls, arguments.model, load, tokenizer)
    except (BenchmarkError, FileNotFoundError, httpx.HTTPError) as error:
        print(f"benchmark.py: {error or repr(error)}", file=sys.stderr)
        return 1
    run.finish(out=arguments.out)
    return run.exit_code


if __name__ == "__main__":
    sys.exit(main())
