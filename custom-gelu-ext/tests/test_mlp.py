"""The MLP that keeps less for backward, the codes it keeps, and the swap of GELU modules."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
import torch.nn.functional as F
from custom_gelu_ext import GELU, MLP, build_info, gelu, mlp, replace_gelu
from custom_gelu_ext.mlp import SAVE
from torch import Tensor, nn
from torch.autograd import gradgradcheck

needs_extension = pytest.mark.skipif(build_info.module is None, reason=build_info.missing)
OPS = torch.ops.custom_gelu_ext

# Largest relative error of a gradient against float64, in float32: what each code leaves.
GRADIENT_ERROR = {"input": 1e-6, "recompute": 1e-6, "8bit": 4e-3, "1bit": 1.5e-3}


def block(dim: int, hidden: int, device: torch.device, dtype=torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 7, dim), (hidden, dim), (hidden,), (dim, hidden), (dim,)]
    scales = [1.0, dim**-0.5, 0.1, hidden**-0.5, 0.1]
    return [
        (torch.randn(shape, generator=generator) * scale).to(device, dtype).requires_grad_()
        for shape, scale in zip(shapes, scales, strict=True)
    ]


def reference(x, weight1, bias1, weight2, bias2, approximate):
    hidden = F.gelu(F.linear(x, weight1, bias1), approximate=approximate)
    return F.linear(hidden, weight2, bias2)


@needs_extension
@pytest.mark.parametrize("save", SAVE)
def test_gradients(device, approximate, save):
    inputs = block(24, 61, device)  # 61 hidden: bytes of bits are shared by rows
    wide = [x.detach().double().requires_grad_() for x in inputs]
    y, expected = mlp(*inputs, approximate, save), reference(*wide, approximate)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(device)
    got = torch.autograd.grad(y, inputs, grad)
    right = torch.autograd.grad(expected, wide, grad.double())
    for ours, theirs in zip(got, right, strict=True):
        assert (ours - theirs).norm() / theirs.norm() < GRADIENT_ERROR[save]


@needs_extension
@pytest.mark.parametrize("save", ["input", "recompute"])
def test_second_derivatives(device, approximate, save):
    inputs = block(3, 5, device, torch.float64)
    assert gradgradcheck(lambda *xs: mlp(*xs, approximate, save), inputs)
    without = [x for x in inputs if x.dim() > 1]
    assert gradgradcheck(lambda x, w1, w2: mlp(x, w1, None, w2, None, approximate, save), without)


@needs_extension
def test_a_gradient_penalty_is_torchs(device):
    inputs = block(6, 9, device, torch.float64)

    def gradients(function) -> tuple[Tensor, ...]:
        y = function(*inputs)
        (slope,) = torch.autograd.grad(y.sum(), inputs[0], create_graph=True)
        loss = y.square().mean() + 10 * (slope.norm(dim=-1) - 1).square().mean()
        return torch.autograd.grad(loss, inputs)

    right = gradients(lambda *xs: reference(*xs, "none"))
    for save in ("input", "recompute"):
        got = gradients(lambda *xs, save=save: mlp(*xs, "none", save))
        torch.testing.assert_close(got, right, rtol=1e-9, atol=1e-9)


@needs_extension
@pytest.mark.parametrize("save", ["8bit", "1bit"])
def test_second_derivatives_of_a_code_are_refused(device, save):
    y = mlp(*(inputs := block(6, 9, device)), "none", save)
    with pytest.raises(RuntimeError, match=f"save='{save}'.*differentiated once.*'recompute'"):
        torch.autograd.grad(y.sum(), inputs[0], create_graph=True)


@needs_extension
@pytest.mark.parametrize("save", SAVE)
def test_without_biases(device, save):
    x, weight1, _, weight2, _ = block(24, 61, device)
    y = mlp(x, weight1, None, weight2, None, "none", save)
    expected = reference(x, weight1, None, weight2, None, "none")
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    got = torch.autograd.grad(y.square().sum(), (x, weight1, weight2))
    right = torch.autograd.grad(expected.square().sum(), (x, weight1, weight2))
    for ours, theirs in zip(got, right, strict=True):
        assert (ours - theirs).norm() / theirs.norm() < GRADIENT_ERROR[save]


@needs_extension
@pytest.mark.parametrize("save", SAVE)
def test_where_only_the_last_layer_learns_nothing_goes_back_through_gelu(device, save):
    x, weight1, bias1, weight2, bias2 = block(24, 61, device)
    frozen = (x.detach(), weight1.detach(), bias1.detach())
    y = mlp(*frozen, weight2, bias2, "none", save)
    with torch.profiler.profile() as profile:
        got = torch.autograd.grad(y.sum(), (weight2, bias2))
    assert not [e for e in profile.events() if re.search(r"gelu\w*_backward", e.name)]
    expected = reference(*frozen, weight2, bias2, "none").sum()
    right = torch.autograd.grad(expected, (weight2, bias2))
    torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-4)


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    """What a forward keeps for backward, parameters not counted."""
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = model(x)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert y.requires_grad
    return sum(storage.nbytes() for at, storage in kept.items() if at not in own)


@needs_extension
def test_memory_kept_for_backward():
    dim, hidden, rows = 64, 256, 128
    x = torch.randn(rows, dim, dtype=torch.bfloat16).requires_grad_()
    plain = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)).bfloat16()
    eager = kept_bytes(plain, x)
    share = {s: kept_bytes(MLP(dim, hidden, save=s).bfloat16(), x) / eager for s in SAVE}
    assert share["input"] == pytest.approx(1.0, abs=0.01)
    assert share["recompute"] <= 0.56
    assert share["8bit"] <= 0.78
    assert share["1bit"] <= 0.60


def losses(make, steps: int = 120) -> list[float]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), make(), nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    found = []
    for _ in range(steps):
        x = torch.randn(128, 8)
        loss = (model(x) - (x[:, :1] * x[:, 1:2]).sin()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@needs_extension
@pytest.mark.parametrize("save", ["8bit", "1bit"])
def test_training_reaches_the_same_loss(save):
    exact = losses(lambda: MLP(32, 128, save="input"))
    coded = losses(lambda: MLP(32, 128, save=save))
    last = sum(exact[-20:]) / 20
    assert last < 0.7 * exact[0]
    assert abs(sum(coded[-20:]) / 20 - last) < 0.03 * last


@needs_extension
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 2049, 50_003])
def test_codes(device, dtype, approximate, n):
    data = (3 * torch.randn(n + 1, generator=torch.Generator().manual_seed(n))).to(device, dtype)
    one = torch.ones(n, dtype=dtype, device=device)
    for x in (data[:-1], data[1:]):  # 16-byte aligned, and not
        right = OPS.gelu_backward(one.double(), x.double(), approximate)
        y, code = OPS.gelu_8bit(x, approximate)
        same = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 0}
        torch.testing.assert_close(y, gelu(x, approximate), **same)
        assert code.shape == (n,)
        rounding = torch.finfo(dtype).eps
        error = (OPS.gelu_8bit_backward(one, code).double() - right).abs()
        assert n == 0 or error.max() < 0.0026 + rounding
        y, code = OPS.gelu_1bit(x, approximate)
        torch.testing.assert_close(y, gelu(x, approximate), **same)
        assert code.shape == ((n + 7) // 8,)
        error = (OPS.gelu_1bit_backward(one, y, code, approximate).double() - right).abs()
        # At the minimum, -0.17, an error of half a unit in y is a change of the derivative by
        # sqrt(2 * 0.43 * error), for gelu'' = 0.43 there.
        uncertain = (2 * 0.44 * rounding / 16) ** 0.5
        assert n == 0 or error.max() < 1e-3 + uncertain + rounding


@needs_extension
def test_codes_of_inputs_far_out(device, approximate):
    x = torch.tensor([float("inf"), -float("inf"), 50.0, -50.0, 0.0], device=device)
    one = torch.ones_like(x)
    got = OPS.gelu_8bit_backward(one, OPS.gelu_8bit(x, approximate)[1])
    assert got[:4].tolist() == pytest.approx([1.0, 0.0, 1.0, 0.0])
    y, code = OPS.gelu_1bit(x, approximate)
    got = OPS.gelu_1bit_backward(one, y, code, approximate)
    assert got.tolist() == pytest.approx([1.0, 0.0, 1.0, 0.0, 0.5], abs=1e-3)


@needs_extension
def test_8_bits_have_a_code_for_nan(device, dtype, approximate):
    numbers = torch.linspace(-40, 40, 100_001, dtype=torch.float64).to(device, dtype)
    assert OPS.gelu_8bit(numbers, approximate)[1].max() == 254
    nan = torch.tensor([math.nan, -math.nan] * 20, dtype=dtype, device=device)
    nan[2:4] = torch.tensor([0x7F80_0001, 0x7FFF_FF00]).int().view(torch.float32).to(dtype)
    code = OPS.gelu_8bit(nan, approximate)[1]
    assert code.eq(255).all()
    assert OPS.gelu_8bit_backward(torch.ones_like(nan), code).isnan().all()
    y, code = OPS.gelu_1bit(nan, approximate)
    assert OPS.gelu_1bit_backward(torch.ones_like(nan), y, code, approximate).isnan().all()


@needs_extension
def test_codes_that_do_not_fit_are_refused(device):
    x = torch.randn(9, device=device)
    y, code = OPS.gelu_1bit(x)
    with pytest.raises(ValueError, match=r"uint8 \[9\] on grad's device.*got torch\.uint8 \[2\]"):
        OPS.gelu_8bit_backward(x, code)
    with pytest.raises(ValueError, match=r"\[8\] must be value's, \[9\]"):
        OPS.gelu_1bit_backward(x[1:], y, code)
    for operator, arguments in (
        (OPS.gelu_8bit, (x,)),
        (OPS.gelu_1bit, (x, "tanh")),
        (OPS.gelu_1bit_backward, (x, y, code)),
        (OPS.gelu_8bit_backward, (x, OPS.gelu_8bit(x)[1])),
    ):
        torch.library.opcheck(operator.default, arguments)


@pytest.mark.parametrize("save", SAVE)
def test_the_module(device, save):
    model = MLP(16, 32, save=save).to(device)
    assert "save=" + repr(save) in repr(model)
    x = torch.randn(3, 16, device=device)
    expected = model.down(F.gelu(model.up(x)))
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    with pytest.raises(ValueError, match="save must be one of input, recompute, 8bit, 1bit, got"):
        MLP(16, 32, save="2bit")


@pytest.mark.parametrize("save", SAVE)
def test_the_module_on_the_meta_device(save):
    model = MLP(16, 32, save=save, device="meta")
    x = torch.ones(3, 16, device="meta")
    model(x).sum().backward()
    assert model.up.weight.grad.shape == (32, 16)
    with torch.autocast("cpu"):
        assert model(x).dtype == torch.float32


@pytest.mark.parametrize("save", SAVE)
def test_autocast_leaves_float64_alone(device, save):
    model = MLP(16, 32, save=save, device=device, dtype=torch.float64)
    x = torch.randn(3, 16, device=device, dtype=torch.float64)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert model.up(x).dtype == torch.float64
        right = model.down(gelu(model.up(x)))
        torch.testing.assert_close(model(x), right, rtol=1e-12, atol=1e-12)


@needs_extension
@pytest.mark.parametrize("save", SAVE)
def test_compile_and_torch_func(device, save):
    inputs = block(8, 16, device)

    def loss(*xs: Tensor) -> Tensor:
        return mlp(*xs, "none", save).square().sum()

    expected = torch.autograd.grad(loss(*inputs), inputs)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(*inputs), inputs)
    for ours, right in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, right)
    (got,) = torch.func.grad(loss, argnums=(0,))(*(x.detach() for x in inputs))
    torch.testing.assert_close(got, expected[0], rtol=2e-2, atol=2e-2)


def test_replace_gelu():
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU("tanh"), nn.ModuleDict({"act": nn.GELU()}))
    model.eval()
    assert replace_gelu(model) == 2
    assert isinstance(model[1], GELU)
    assert (model[1].approximate, model[2]["act"].approximate) == ("tanh", "none")
    assert not model[1].training
    assert replace_gelu(model) == 0
    assert replace_gelu(nn.GELU()) == 0


def test_replace_gelu_where_one_module_stands_in_several_places():
    shared = nn.GELU()
    model = nn.Sequential(nn.Linear(4, 4), shared, nn.Linear(4, 4), shared)
    assert replace_gelu(model) == 2
    assert isinstance(model[1], GELU)
    assert model[3] is model[1]


@pytest.mark.parametrize("name", ["gelu", "mlp"])
def test_a_model_can_be_traced_by_fx(name):
    model = nn.Sequential(nn.Linear(4, 4), GELU()) if name == "gelu" else MLP(4, 8)
    traced = torch.fx.symbolic_trace(model)
    assert name in {node.name for node in traced.graph.nodes if node.op == "call_function"}
    x = torch.randn(3, 4)
    assert torch.equal(traced(x), model(x))


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_replace_gelu_in_a_transformers_model(family):
    import transformers

    torch.manual_seed(0)
    if family == "gpt2":
        config = transformers.GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=50)
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.BertConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
        )
        model = transformers.BertModel(config)
    model.eval()
    ours = copy.deepcopy(model)
    assert replace_gelu(ours) == 2  # one a layer
    tokens = torch.arange(12).reshape(2, 6)
    expected, got = model(input_ids=tokens)[0], ours(input_ids=tokens)[0]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    got.sum().backward()
    assert all(p.grad is not None for p in ours.parameters() if p.requires_grad) or family == "bert"
