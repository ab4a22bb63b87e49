"""One process on the whole batch: the loop that every parallel run is compared with.

No wrapper, no process group, AdamW unfused, the clipping by hand. It shares with the scripts only
the model and the batches.
"""

from dataclasses import dataclass
from functools import cache

import torch
from dist_playground.data import Batches, read_standard_library, share_of
from dist_playground.settings import Settings
from dist_playground.train import build_model


@dataclass(frozen=True)
class Trained:
    losses: torch.Tensor
    norms: torch.Tensor
    weights: dict[str, torch.Tensor]
    start: dict[str, torch.Tensor]


@cache
def train_alone(settings: Settings, device: torch.device) -> Trained:
    model = build_model(settings, device)
    start = {name: value.cpu().clone() for name, value in model.state_dict().items()}
    text = read_standard_library(most=settings.text_bytes)
    batches = Batches(text, settings.batch_size, settings.sequence_length, settings.seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.1
    )
    losses, norms = [], []
    for step in range(settings.steps):
        inputs, targets = (t.to(device) for t in batches.draw(step))
        optimizer.zero_grad()
        loss = torch.zeros((), device=device)
        for number in range(settings.accumulate):
            rows = share_of(len(inputs), number, settings.accumulate)
            part = model(inputs[rows], targets[rows]) * (rows.stop - rows.start) / len(inputs)
            part.backward()
            loss += part.detach()
        gradients = [p.grad for p in trained]
        norm = torch.cat([g.flatten().double() for g in gradients]).norm().item()
        for gradient in gradients:
            gradient *= min(1.0, 1.0 / (norm + 1e-6))
        optimizer.step()
        losses.append(loss.item())
        norms.append(norm)
    weights = {name: value.cpu() for name, value in model.state_dict().items()}
    return Trained(torch.tensor(losses), torch.tensor(norms), weights, start)


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([weights[name].flatten().double() for name in sorted(weights)])


def worst(ours: torch.Tensor, reference: torch.Tensor) -> float:
    assert ours.shape == reference.shape
    return ((ours - reference).abs() / reference.abs()).max().item()


def differences(settings: Settings, record: dict, weights: dict) -> tuple[float, float, float]:
    """Worst loss, worst gradient norm, and weights, each relative to one plain process."""
    device = torch.device("cuda" if record["backend"] == "nccl" else "cpu")
    reference = train_alone(settings, device)
    names = set(reference.weights)
    if set(weights) != names:  # a tied table has one name among the pieces, and two in a module
        assert names - set(weights) == {"head.weight"}
        weights = {**weights, "head.weight": weights["embedding.weight"]}
    assert {n: w.shape for n, w in weights.items()} == {
        n: w.shape for n, w in reference.weights.items()
    }
    way = flat(reference.weights) - flat(reference.start)
    apart = flat(weights) - flat(reference.weights)
    return (
        worst(torch.tensor(record["losses"]), reference.losses),
        worst(torch.tensor(record["gradient_norms"]), reference.norms),
        (apart.norm() / way.norm()).item(),
    )
