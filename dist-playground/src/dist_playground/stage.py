"""The layers of a GPT that one rank of a pipeline has."""

from torch import Tensor, nn

from dist_playground.data import share_of
from dist_playground.layout import Placement
from dist_playground.model import GPT

__all__ = ["Stage"]


class Stage(nn.Module):
    """Stage `index` of `size`; parameters keep the whole model's names.

    The first stage has the embedding, the last the head and the loss. A tied table is on both,
    and its gradient is the sum of theirs.
    """

    def __init__(self, model: GPT, index: int, size: int) -> None:
        super().__init__()
        self.first, self.last = index == 0, index == size - 1
        self.width = model.config.width
        mine = share_of(len(model.blocks), index, size)
        self.blocks = nn.ModuleDict(
            {str(number): model.blocks[number] for number in range(mine.start, mine.stop)}
        )
        self.rotation = model.rotation
        if self.first:
            self.embedding = model.embedding
        if self.last:
            self.norm, self.head, self.criterion = model.norm, model.head, model.criterion

    def forward(self, x: Tensor, position_T: Tensor | None = None) -> Tensor:
        """Tokens [B, T], or the stream [B, T, D] of the stage before -> the stream, or logits."""
        rotation_2TF = self.rotation(x, position_T)  # needs only x's T and device
        if self.first:
            x = self.embedding(x).float()
        for block in self.blocks.values():
            x = block(x, rotation_2TF)
        return self.head(self.norm(x)) if self.last else x

    def placements(self, whole: dict[str, Placement], tied: bool) -> dict[str, Placement]:
        """Of this stage's parameters; a tied table lies on two stages."""
        found = {}
        for name, _ in self.named_parameters():
            placement = whole["embedding.weight" if tied and name == "head.weight" else name]
            copies = 2 if tied and name in ("embedding.weight", "head.weight") else 1
            found[name] = Placement(
                placement.name, placement.shape, placement.offset, placement.holders * copies
            )
        return found
