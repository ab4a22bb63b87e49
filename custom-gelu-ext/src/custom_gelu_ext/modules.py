"""``GELU``, the module: a stand-in for ``torch.nn.GELU``."""

from __future__ import annotations

from torch import Tensor, nn

from custom_gelu_ext.functional import check_approximate, gelu


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
