"""Every parallel run equals one process on the same global batch: losses, gradients, weights.

The reference is a loop of its own, below: no wrapper, no process group, AdamW unfused, the
clipping by hand. It shares with the scripts only the model and the batches.

Tolerances, float32 (eps = 2^-24 = 6e-8). The two sides do the same sums in another order.
- A loss is a mean of B x T terms near 5; each comes out of some 4 x 9 = 36 operations in a row,
  whose rounding errors add up like a random walk: sqrt(36) x eps = 4e-7, less after the mean.
  What the weights differ by enters through the gradient and is smaller still. 1e-5: 25 times it.
- The gradient's norm is a sum of squares with positive and negative terms before it: some of its
  digits cancel, seen up to 1.1e-5. 1e-4.
- AdamW divides by the gradient's own size, so an element whose gradient is nearly nothing moves by
  its rounding noise; the difference of all weights is measured against the way that they went from
  their start (||w - w_ref|| / ||w_ref - w_0||), seen up to 6e-6. 1e-4.
What a mistake costs, from the last test: without the all-reduce 1e-2, 2e-1 and 7e-1.
The norm is there because AdamW hides a gradient that is, say, twice too large from the losses.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from dist_playground.data import Batches, read_standard_library
from dist_playground.settings import Settings, parse_settings
from dist_playground.train import build_model

LOSS, NORM, WEIGHTS = 1e-5, 1e-4, 1e-4
OPTIONS = ("--steps", "8", "--batch-size", "8", "--sequence-length", "32", "--timeout", "20")
# Four steps: in bfloat16 rounding is amplified fast, and a step whose gradient is a spike (on one
# text in eight steps) multiplies its norm's difference by a hundred, in any two correct runs.
BFLOAT16 = (*OPTIONS, "--steps", "4", "--dtype", "bfloat16")
UNEVEN = ("--steps", "5", "--batch-size", "6", "--sequence-length", "30", "--timeout", "20")
SCRIPTS = ("ddp.py", "fsdp.py", "tensor_parallel.py")


@dataclass(frozen=True)
class Trained:
    losses: torch.Tensor
    norms: torch.Tensor
    weights: dict[str, torch.Tensor]


@cache
def train_alone(settings: Settings, device: torch.device) -> Trained:
    model = build_model(settings, device)
    batches = Batches(
        read_standard_library(), settings.batch_size, settings.sequence_length, settings.seed
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.1
    )
    losses, norms = [], []
    for step in range(settings.steps):
        inputs, targets = batches.draw(step, slice(None))
        optimizer.zero_grad()
        bf16 = settings.dtype == "bfloat16"
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            loss = model(inputs.to(device), targets.to(device))
        loss.backward()
        gradients = [p.grad for p in model.parameters()]
        norm = torch.cat([g.flatten().double() for g in gradients]).norm().item()
        for gradient in gradients:
            gradient *= min(1.0, 1.0 / (norm + 1e-6))
        optimizer.step()
        losses.append(loss.item())
        norms.append(norm)
    weights = {name: value.cpu() for name, value in model.state_dict().items()}
    return Trained(torch.tensor(losses), torch.tensor(norms), weights)


def start_weights(settings: Settings) -> dict[str, torch.Tensor]:
    return build_model(settings, torch.device("cpu")).state_dict()


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([weights[name].flatten().double() for name in sorted(weights)])


def worst(ours: torch.Tensor, reference: torch.Tensor) -> float:
    assert ours.shape == reference.shape
    return ((ours - reference).abs() / reference.abs()).max().item()


def differences(
    launch: Callable, folder: Path, script: str, ranks: int, options: tuple[str, ...]
) -> tuple[float, float, float]:
    """Worst loss, worst gradient norm, and weights, each relative to one plain process."""
    settings = parse_settings("", options)
    json_file, weights_file = folder / "run.json", folder / "weights.pt"
    files = ("--json", str(json_file), "--save", str(weights_file))
    done = launch(script, *options, *files, ranks=ranks, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(json_file.read_text())
    assert record["world_size"] == max(1, ranks)
    assert len(record["ranks"]) == max(1, ranks)
    weights = torch.load(weights_file, weights_only=True)

    device = torch.device("cuda" if record["backend"] == "nccl" else "cpu")
    reference = train_alone(settings, device)
    assert {n: w.shape for n, w in weights.items()} == {
        n: w.shape for n, w in reference.weights.items()
    }
    way = flat(reference.weights) - flat(start_weights(settings))
    apart = flat(weights) - flat(reference.weights)
    return (
        worst(torch.tensor(record["losses"]), reference.losses),
        worst(torch.tensor(record["gradient_norms"]), reference.norms),
        (apart.norm() / way.norm()).item(),
    )


def assert_equal(found: tuple[float, float, float]) -> None:
    loss, norm, weights = found
    # Each as `a <= b` that must be true: NaN fails it.
    assert loss <= LOSS
    assert norm <= NORM
    assert weights <= WEIGHTS


@pytest.mark.parametrize(
    "ranks", [pytest.param(0, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("script", SCRIPTS)
def test_equals_one_process(launch, tmp_path, script, ranks):
    assert_equal(differences(launch, tmp_path, script, ranks, (*OPTIONS, "--device", "cpu")))


@pytest.mark.slow
@pytest.mark.parametrize("script", ["ddp.py", "fsdp.py"])
def test_three_ranks_whose_shards_are_uneven(launch, tmp_path, script):
    # 256 and 128 rows of weights over 3 ranks: FSDP pads, and must not train the padding.
    assert_equal(differences(launch, tmp_path, script, 3, (*UNEVEN, "--device", "cpu")))


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_bfloat16_stays_within_its_rounding(launch, tmp_path, script):
    # eps = 2^-9 = 2e-3 a rounding. Losses average B x T = 256 of them: 36 operations in a row
    # give sqrt(36) x 2e-3 = 1e-2 of noise a term, 1e-3 of it in the mean: 5e-3 (seen: 6e-4).
    # The gradient's norm is one such number without a mean over many: 5e-2 (seen: 9e-3).
    loss, norm, _ = differences(launch, tmp_path, script, 2, (*BFLOAT16, "--device", "cpu"))
    assert loss <= 5e-3
    assert norm <= 5e-2


def test_the_comparison_finds_a_missing_all_reduce(launch, tmp_path):
    # single.py in two ranks trains two models that never talk: everything must be far off.
    loss, norm, weights = differences(
        launch, tmp_path, "single.py", 2, (*OPTIONS, "--device", "cpu")
    )
    assert loss > 100 * LOSS
    assert norm > 100 * NORM
    assert weights > 100 * WEIGHTS


@pytest.mark.gpu
@pytest.mark.parametrize("script", SCRIPTS)
def test_one_gpu_equals_one_process(launch, tmp_path, script):
    assert_equal(differences(launch, tmp_path, script, 0, (*OPTIONS, "--device", "cuda")))


@pytest.mark.multigpu
@pytest.mark.parametrize("script", SCRIPTS)
def test_two_gpus_equal_one(launch, tmp_path, script):
    assert_equal(differences(launch, tmp_path, script, 2, (*OPTIONS, "--device", "cuda")))


@pytest.mark.multigpu
@pytest.mark.parametrize("script", SCRIPTS)
def test_two_gpus_in_bfloat16_stay_within_its_rounding(launch, tmp_path, script):
    loss, norm, _ = differences(launch, tmp_path, script, 2, (*BFLOAT16, "--device", "cuda"))
    assert loss <= 5e-3
    assert norm <= 5e-2
