"""Language-model policies: any causal model of transformers, sampled and scored by the same log-probability kernel."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from concordant.core.errors import ConfigError, DataError
from concordant.core.recipe import TrainConfig
from concordant.core.seeds import Rng
from concordant.core.table import Table
from concordant.policies.decode import Decoded, decode
from concordant.policies.fields import task_fields
from concordant.policies.forward import Forward
from concordant.policies.load import LoraOptions, add_lora, find_device, find_dtype, load_pretrained
from concordant.policies.logprob import completion_logp
from concordant.policies.prompts import Prompts, encode, pad_id
from concordant.policies.weights import ModelPolicy, trained_names

OWN_FIELDS = ("prompt", "completion")


@dataclass(frozen=True)
class SamplePlan:
    """How many completions a task gets, and how they are drawn."""

    group_size: int = 8
    """Rows a task."""
    max_new_tokens: int = 64
    """Longest completion, in tokens; a row that reaches it without an end token is truncated."""
    temperature: float = 1.0
    """Above 0; 0 takes the most likely token (for evaluation) and records log-probabilities at temperature 1."""
    batch_rows: int = 512
    """Rows decoded together: a limit on memory that does not change what is sampled."""

    def __post_init__(self) -> None:
        for name in ("group_size", "max_new_tokens", "batch_rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.temperature >= 0:
            raise ConfigError(
                f"temperature must be above 0 (or 0 for greedy decoding), got {self.temperature}"
            )


class LMPolicy(ModelPolicy):
    """A causal language model that samples tables and scores them again.

    The model always runs in evaluation mode (no dropout), so a freshly sampled row has ratio 1 up to float tolerance. A
    model on `sdpa` is switched to an attention function of ours that computes the same (see `attention`).
    Rows are addressed by id: what a row samples depends on the random stream, its id and its prompt, not on the batch.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.forward = Forward(model)
        self.names = trained_names(model)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        lora: LoraOptions | None = None,
    ) -> Self:
        """Load a folder or hub id (safetensors, no remote code).

        Args:
            source: folder that `save_pretrained` wrote, or hub id.
            device: torch device name.
            dtype: "float32", "bfloat16" or "float16"; adapters are float32 in any case.
            lora: train low-rank adapters instead of all weights.
        """
        model, tokenizer = load_pretrained(source, find_device(device), find_dtype(dtype))
        return cls(add_lora(model, lora) if lora is not None else model, tokenizer)

    @property
    def window(self) -> int | None:
        """Positions the model has; None if it has no limit."""
        size = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return int(size) if size else None

    @property
    def stops(self) -> tuple[int, ...]:
        """Ids that end a completion: those of the generation settings and of the tokenizer."""
        own = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        listed = own if isinstance(own, list | tuple) else [own]
        return tuple(sorted({int(i) for i in (*listed, self.tokenizer.eos_token_id) if i is not None}))

    # ---- sampling ----------------------------------------------------------------------------------------------

    def plan(self, config: TrainConfig) -> SamplePlan:
        """Return how training samples."""
        return SamplePlan(config.group_size, config.max_new_tokens, config.temperature)

    def evaluation_plan(self, config: TrainConfig, samples: int) -> SamplePlan:
        """Return how held-out prompts are sampled: at temperature 1."""
        return SamplePlan(samples, config.max_new_tokens, 1.0)

    def sample(self, tasks: Sequence[Any], plan: SamplePlan, rng: Rng, *, first_id: int = 0) -> Table:
        """Sample `plan.group_size` completions of each task.

        Args:
            tasks: objects with `id`, `prompt` (text or chat messages) and `fields`.
            plan: how many and how.
            rng: random stream; row `i` uses the numbers addressed by `first_id + i`.
            first_id: id of the first row and of the first group.

        Returns:
            Rows in task order, each task's group together: columns id, task, group, episode, keep, truncated and
            temperature (b), prompt_tokens and prompt_mask (b q, padded on the left), tokens, mask (the end token
            included) and logp (b s); fields prompt (as the model was given it), completion (text without the end
            token), and those of the task.
        """
        if not tasks:
            raise DataError("sample needs at least one task")
        prompts = encode(self.tokenizer, [task.prompt for task in tasks], self.window, plan.max_new_tokens)
        group = torch.arange(len(tasks)).repeat_interleave(plan.group_size)
        ids = first_id + torch.arange(len(group))
        drawn = self._decode(prompts, prompts.of_task[group], rng.uniform(ids, plan.max_new_tokens), plan)
        task_ids = torch.tensor([task.id for task in tasks])
        columns = {
            "id": ("b", ids),
            "task": ("b", task_ids[group]),
            "group": ("b", first_id + group),
            "episode": ("b", ids.clone()),
            "prompt_tokens": ("b q", prompts.tokens[prompts.of_task[group]]),
            "prompt_mask": ("b q", prompts.mask[prompts.of_task[group]]),
            "tokens": ("b s", drawn.tokens),
            "mask": ("b s", drawn.mask),
            "logp": ("b s", drawn.logp),
            "temperature": ("b", torch.full((len(ids),), plan.temperature or 1.0)),
            "keep": ("b", torch.ones(len(ids), dtype=torch.bool)),
            "truncated": ("b", ~self._ended(drawn)),
        }
        return Table.of(columns, self._fields(tasks, prompts, group, drawn))

    def _decode(self, prompts: Prompts, source: Tensor, uniform: Tensor, plan: SamplePlan) -> Decoded:
        """Decode in batches of whole rows; results come back to the host, padded."""
        device, parts = self.device, []
        stops = torch.tensor(self.stops, dtype=torch.int64, device=device)
        for rows in torch.arange(len(source)).split(plan.batch_rows):
            used, local = source[rows].unique(return_inverse=True)
            batch = (prompts.tokens[used].to(device), prompts.mask[used].to(device))
            numbers = uniform[rows].to(device)
            parts.append(decode(self.forward, batch, local.to(device), numbers, plan.temperature, stops))
        width = max(part.mask.shape[1] for part in parts)

        def join(name: str) -> Tensor:
            pieces = [getattr(part, name).cpu() for part in parts]
            return torch.cat([pad(piece, (0, width - piece.shape[1])) for piece in pieces])

        mask = join("mask")
        return Decoded(join("tokens").masked_fill(~mask, pad_id(self.tokenizer)), mask, join("logp"))

    def _ended(self, drawn: Decoded) -> Tensor:
        """Which rows hold an end token."""
        stops = torch.tensor(self.stops, dtype=torch.int64)
        return (torch.isin(drawn.tokens, stops) & drawn.mask).any(1)

    def _fields(
        self, tasks: Sequence[Any], prompts: Prompts, group: Tensor, drawn: Decoded
    ) -> dict[str, list[Any]]:
        stops = set(self.stops)
        lengths, rows = drawn.mask.sum(1).tolist(), drawn.tokens.tolist()
        kept = [row[: n - (row[n - 1] in stops)] for row, n in zip(rows, lengths, strict=True)]
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        order = group.tolist()
        return {
            **task_fields(tasks, order, OWN_FIELDS),
            "prompt": [prompts.texts[i] for i in order],
            "completion": self.tokenizer.batch_decode(kept, **options),
        }

    # ---- scoring -----------------------------------------------------------------------------------------------

    reads = ("prompt_tokens", "prompt_mask", "tokens", "mask", "temperature")
    """Columns that scoring rows again takes."""

    def rescore(self, table: Table, wants: Collection[str] = ("logp",)) -> dict[str, Tensor]:
        """Return what a loss reads of the policy, with graph: here only `logp`; see `logp`."""
        odd = set(wants) - {"logp"}
        if odd:
            raise ConfigError(f"a language model gives {', '.join(sorted(odd))} to no loss; it gives logp")
        return {"logp": self.logp(table)}

    def scores(self, table: Table, wants: Collection[str] = ("logp",)) -> dict[str, Tensor]:
        """Return what `rescore` gives, without graph and in batches."""
        return {"logp": self.score(table)} if wants else {}

    def logp(self, table: Table) -> Tensor:
        """Return the log-probability of every sampled token, 0 outside `mask`, with graph.

        Args:
            table: columns prompt_tokens, prompt_mask (b q), tokens, mask (b s), temperature (b), as `sample` made them.

        Returns:
            float32, natural logarithm, shape (b s), on the device of the table.
        """
        device, home = self.device, table["mask"].device
        return completion_logp(self.forward, *(table[name].to(device) for name in self.reads)).to(home)

    def score(self, table: Table, *, tokens: int = 16384) -> Tensor:
        """Return `logp` without graph, in batches of similar length.

        Args:
            table: as for `logp`.
            tokens: padded tokens of one forward pass.

        Returns:
            float32, shape (b s), on the device of the table.
        """
        lengths = table["prompt_mask"].sum(1) + table["mask"].sum(1)
        order = lengths.argsort(descending=True, stable=True)
        result = torch.zeros(table["mask"].shape, dtype=torch.float32, device=table["mask"].device)
        start = 0
        with torch.inference_mode():
            while start < len(order):
                rows = order[start : start + max(tokens // max(int(lengths[order[start]]), 1), 1)]
                result[rows] = self.logp(table.take(rows))
                start += len(rows)
        return result

    # ---- weights -----------------------------------------------------------------------------------------------

    def around(self, model: Any) -> Self:
        """Return a policy with the same tokenizer and another model."""
        return type(self)(model, self.tokenizer)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights (safetensors; under LoRA the adapter only), configuration and tokenizer."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
