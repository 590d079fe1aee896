"""The step scorer: a small frozen process reward model that ships with the world, and is noisy by nature."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from concordant.core.errors import DataError
from concordant.core.table import Table


@dataclass(frozen=True)
class ScorerConfig:
    """Sizes of the scorer."""

    vocabulary: int
    width: int = 80
    layers: int = 2
    heads: int = 4
    length: int = 160


class ScorerNet(nn.Module):
    """A causal transformer that reads prompt and completion and says at every token whether the step so far
    is right.
    """

    def __init__(self, config: ScorerConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.places = nn.Embedding(config.length, config.width)
        layer = nn.TransformerEncoderLayer(
            config.width,
            config.heads,
            3 * config.width,
            dropout=0.1,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.body = nn.TransformerEncoder(
            layer, config.layers, norm=nn.LayerNorm(config.width), enable_nested_tensor=False
        )
        self.head = nn.Linear(config.width, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return one logit a token, shape (b, s), from right-padded token ids of shape (b, s)."""
        logits: Tensor = self.head(self.read(tokens))
        return logits[..., 0]

    def read(self, tokens: Tensor) -> Tensor:
        """Return hidden states, shape (b, s, width)."""
        size = tokens.shape[1]
        if size > self.config.length:
            raise DataError(f"the step scorer reads at most {self.config.length} tokens a row, got {size}")
        blocked = torch.full((size, size), True, device=tokens.device).triu(1)
        x = self.tokens(tokens) + self.places(torch.arange(size, device=tokens.device))
        hidden: Tensor = self.body(x, mask=blocked)
        return hidden


def join(table: Table) -> tuple[Tensor, Tensor]:
    """Join prompt and completion without the padding between them.

    Returns:
        Token ids, shape (b, longest row), padded on the right with 0; for each completion token its column
        there, (b, s).
    """
    prompt, body = table["prompt_mask"], table["mask"]
    tokens = torch.cat([table["prompt_tokens"], table["tokens"]], 1)
    used = torch.cat([prompt, body], 1)
    order = (~used).to(torch.int8).sort(dim=1, stable=True).indices
    joined = tokens.gather(1, order).masked_fill(~used.gather(1, order), 0)
    width = int(used.sum(1).max()) if used.numel() else 0
    place = prompt.sum(1, keepdim=True) + body.long().cumsum(1) - 1
    return joined[:, :width], place


def step_ends(table: Table) -> tuple[Tensor, Tensor]:
    """Return the position along `s` of each step's last token, (b, n), and whether the step exists, (b,
    n).
    """
    segment, turn = table["segment"], table["turn"]
    steps = torch.arange(segment.shape[1]).expand_as(segment)
    ends = torch.zeros(turn.shape, dtype=torch.long)
    hit = segment[:, :, None] == torch.arange(turn.shape[1])
    if segment.shape[1] and turn.shape[1]:
        ends = steps[:, :, None].masked_fill(~hit, 0).amax(1)
    return ends, turn


class StepScorer:
    """Scores the steps of a trace in [0, 1]; frozen.

    The label it was trained on is true validity by recomputation, on a few thousand steps of the base
    policy, so that it is right more often than not and drifts once the policy moves away from its training
    data.
    """

    def __init__(self, net: ScorerNet) -> None:
        self.net = net.eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: Path) -> "StepScorer":
        """Load `scorer.safetensors` and `scorer.json` from a folder."""
        from safetensors.torch import load_file

        net = ScorerNet(ScorerConfig(**json.loads((folder / "scorer.json").read_text())["config"]))
        net.load_state_dict(
            {name: value.float() for name, value in load_file(folder / "scorer.safetensors").items()}
        )
        return cls(net)

    def save(self, folder: Path, **facts: float) -> None:
        """Write weights in float16 and the configuration, with facts about its quality."""
        from safetensors.torch import save_file

        state = {name: value.half().contiguous() for name, value in self.net.state_dict().items()}
        save_file(state, folder / "scorer.safetensors")
        text = json.dumps({"config": asdict(self.net.config), **facts}, indent=2)
        (folder / "scorer.json").write_text(text + "\n")

    @torch.no_grad()
    def score(self, table: Table) -> Tensor:
        """Score every step of every row.

        Args:
            table: with prompt_tokens, prompt_mask, tokens, mask, segment and turn (see the world's
                `annotate`).

        Returns:
            float32, shape (b, n): the estimated chance that the step is right given what stands before it;
            NaN where there is no step.
        """
        joined, place = join(table)
        ends, exists = step_ends(table)
        if not exists.any():
            return torch.full(exists.shape, float("nan"))
        logits = torch.cat([self.net(part) for part in torch.split(joined, 256)])
        chosen = logits.gather(1, place.gather(1, ends).clamp(min=0))
        return chosen.sigmoid().masked_fill(~exists, float("nan"))
