"""What torch.compile sees of a block: one graph, the same for all layers."""

from pathlib import Path

import pytest
import torch
from dist_playground.grid import Axis
from dist_playground.model import Linear
from dist_playground.scratch.ddp import DDP, placements_of
from launching import running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_all_blocks_share_one_graph_that_nothing_breaks(tmp_path):
    script = Path(__file__).with_name("compile_checks.py")
    with running(script, (), 2, tmp_path) as process:
        output, errors = process.communicate(timeout=280)
    assert process.returncode == 0, output + errors
    assert output.count("one graph") == 2 * 3


@pytest.mark.parametrize("needs_gradient", [True, False])
def test_a_weight_has_its_gradient_whether_or_not_its_input_needs_one(needs_gradient):
    torch.manual_seed(0)
    model, plain = Linear(4, 3), Linear(4, 3)
    plain.load_state_dict(model.state_dict())
    parallel = DDP(model, Axis(1, 0, None, (0,)), placements_of(model))
    compiled = torch.compile(model.forward)
    for seed in range(2):
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
        x, y = x.clone().requires_grad_(needs_gradient), x.clone().requires_grad_()
        parallel.before_step()
        compiled(x).square().sum().backward()
        parallel.after_backward()
        parallel.finish()
        plain.weight.grad = None
        plain(y).square().sum().backward()
        torch.testing.assert_close(parallel.parameters()[0].grad, plain.weight.grad)
        if needs_gradient:
            torch.testing.assert_close(x.grad, y.grad)
