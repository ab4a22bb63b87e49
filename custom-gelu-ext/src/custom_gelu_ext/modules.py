"""The modules: a stand-in for ``torch.nn.GELU``, one for a whole MLP, and the swap of the first."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from custom_gelu_ext.checks import check_approximate
from custom_gelu_ext.functional import gelu
from custom_gelu_ext.mlp import check_save, mlp


class GELU(nn.Module):
    """Applies ``custom_gelu_ext.gelu``; same arguments and shapes as ``torch.nn.GELU``.

    Raises:
        ValueError: ``approximate`` is neither "none" nor "tanh".
    """

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        check_approximate(approximate)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        """Return GELU of each element of ``x``."""
        return gelu(x, self.approximate)

    def extra_repr(self) -> str:
        """Show the argument in ``print(model)``."""
        return f"approximate={self.approximate!r}"


class MLP(nn.Module):
    """Linear, GELU, Linear with less kept for backward; see ``custom_gelu_ext.mlp``.

    Args:
        dim: D, of input and output.
        hidden: H, between the two.
        approximate, save: as for ``mlp``.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        approximate: str = "none",
        save: str = "recompute",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_approximate(approximate)
        check_save(save)
        self.approximate, self.save = approximate, save
        self.up = nn.Linear(dim, hidden, device=device, dtype=dtype)
        self.down = nn.Linear(hidden, dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., D] for [..., D]."""
        up, down = self.up, self.down
        return mlp(x, up.weight, up.bias, down.weight, down.bias, self.approximate, save=self.save)

    def extra_repr(self) -> str:
        """Show the arguments in ``print(model)``."""
        return f"approximate={self.approximate!r}, save={self.save!r}"


def replace_gelu(model: nn.Module) -> int:
    """Put our ``GELU`` in every place of ``model`` where a GELU module is; return how many.

    Recognised are ``torch.nn.GELU`` and the activation modules of transformers that compute the
    same two functions (``GELUActivation``, ``NewGELUActivation``, ``GELUTanh`` and
    three more), by name, so that transformers need not be installed. Not recognised are
    calls of ``F.gelu`` in a model's own forward, ``quick_gelu`` (another function), and a ``model``
    that itself is a GELU: there is nothing to put the new one into. Parameters, hooks on other
    modules and the training mode stay, and a module in several places is one afterwards too.
    """
    swapped = 0
    ours: dict[nn.Module, GELU] = {}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() leaves repeats out
            approximate = _approximation_of(child)
            if child is not None and approximate is not None:
                if child not in ours:
                    ours[child] = GELU(approximate).train(child.training)
                setattr(parent, name, ours[child])
                swapped += 1
    return swapped


_TANH_NAMES = (
    "NewGELUActivation",
    "PytorchGELUTanh",
    "GELUTanh",
    "FastGELUActivation",
    "AccurateGELUActivation",
)


def _approximation_of(module: nn.Module | None) -> str | None:
    if type(module) is nn.GELU:
        return module.approximate
    if type(module).__module__ != "transformers.activations":
        return None
    name = type(module).__name__
    if name == "GELUActivation":
        return "none"
    return "tanh" if name in _TANH_NAMES else None
