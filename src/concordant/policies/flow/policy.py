"""Generators by denoising: sampled step by step, scored again by the same Gaussian, for any network and schedule."""

from collections.abc import Collection, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from concordant.core.errors import ConfigError, DataError
from concordant.core.recipe import TrainConfig
from concordant.core.seeds import Rng
from concordant.core.table import Table
from concordant.kernels.flow import gaussian_logp
from concordant.policies.fields import task_fields
from concordant.policies.flow.conditions import Condition, each, numbered, pick, with_null
from concordant.policies.flow.rows import Path, Rows, row_columns, step_columns
from concordant.policies.flow.schedules import FlowPlan, FlowSchedule, Schedule, Steps, step_mean
from concordant.policies.weights import ModelPolicy, trained_names

OWN_FIELDS = ("prompt", "image")


class FlowPolicy(ModelPolicy):
    """A denoising network that samples tables of images and scores their steps again.

    The network runs in evaluation mode, and all arithmetic outside it is float32, so that a freshly sampled row has
    ratio 1 up to float tolerance. Rows are addressed by id: noise does not depend on the batch.

    Args:
        network: module `network(x [n d], time [n], condition) -> out [n d]` with `encode(prompts)`, `null`, `shape`
            (H, W, C of an image; d is that of the latent) and `decode(x)`; see `policies.networks`.
        schedule: `FlowSchedule` or `DDIMSchedule`.
        guidance: classifier-free guidance `u + w (c - u)` in sampling and scoring; 1 is none and costs one evaluation.
        reduce: log-probabilities are the mean (clip ranges of 1e-4) or the sum (of 0.1) over latent dimensions.
        eval_steps: ODE steps of an evaluation.
        recompute: network evaluations whose activations are kept at a time; the others are computed again in the
            backward pass, so that memory does not grow with the steps. 0 keeps all.
    """

    evaluations: int
    """Network evaluations so far, of images; guidance takes two a step."""

    def __init__(
        self,
        network: Any,
        *,
        schedule: Schedule | None = None,
        guidance: float = 1.0,
        reduce: Literal["mean", "sum"] = "mean",
        eval_steps: int = 40,
        recompute: int = 0,
    ) -> None:
        if reduce not in ("mean", "sum"):
            raise ConfigError(f"reduce must be 'mean' or 'sum', got {reduce!r}")
        if not 0 <= guidance < float("inf"):
            raise ConfigError(f"guidance must be finite and not negative, got {guidance}")
        self.model = network.eval()
        self.schedule: Schedule = schedule if schedule is not None else FlowSchedule()
        self.guidance, self.reduce, self.eval_steps, self.recompute = guidance, reduce, eval_steps, recompute
        self.names = trained_names(network)
        self.evaluations = 0

    @property
    def settings(self) -> dict[str, float]:
        """What must be equal when rows are sampled and when they are scored again."""
        own: dict[str, float] = getattr(self.model, "settings", {})
        return {"guidance": float(self.guidance), **self.schedule.settings, **own}

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns and fields that scoring rows again takes."""
        steps = ("mask", "latent", "next_latent", "sigma", "coef_x", "coef_v", "std")
        return (*steps, *self.settings, "prompt")

    def around(self, model: Any) -> Self:
        """Return a policy with the same settings and another network."""
        return type(self)(
            model, schedule=self.schedule, guidance=self.guidance, reduce=self.reduce,
            eval_steps=self.eval_steps, recompute=self.recompute,
        )  # fmt: skip

    # ---- the network -------------------------------------------------------------------------------------------

    def encode(self, prompts: Sequence[Any]) -> Condition:
        """Conditions of prompts, one entry each, on the policy's device."""
        with torch.no_grad():
            made = self.model.encode(list(prompts))
        return each(made, lambda c: c.to(self.device))

    def predict(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """Ask the network once for each row, guided; counts the evaluations.

        Args:
            x: latents, float32, shape (n, d).
            time: as the schedule gives it, shape (n).
            condition: what `encode` made, n entries.
        """
        if self.guidance == 1.0:
            self.evaluations += len(x)
            return self.model(x, time, condition).float()
        self.evaluations += 2 * len(x)
        both = with_null(condition, self.model.null)
        out = self.model(torch.cat([x, x]), torch.cat([time, time]), both).float()
        given, free = out.chunk(2)
        return free + self.guidance * (given - free)

    def integrate(
        self,
        x: Tensor,
        condition: Condition,
        steps: Steps,
        *,
        rng: Rng | None = None,
        ids: Tensor | None = None,
        on: Tensor | None = None,
        trace: bool = True,
        first: int = 0,
    ) -> Path:
        """Walk rows through steps, with noise where a step has a standard deviation.

        Args:
            x: states before the first step, shape (n, d).
            condition: n entries.
            steps: coefficients, of one row (shared) or n rows.
            rng: noise of row i at step k is addressed by (stream, k, `ids[i]`); needed where a std is above 0.
            ids: row ids, shape (n).
            on: bool, shape (n, s): which steps a row takes; at the others its state stays. None: all.
            trace: False keeps the last state only: `states` is (n, 1, d), `outs` empty.
            first: number of the first step in the address of the noise.
        """
        steps = Steps(*(values.to(x.device) for values in steps))
        count = steps.std.shape[1]
        states, outs = [x], []
        for k in range(count):
            rows = None if on is None or bool(on[:, k].all()) else on[:, k].nonzero()[:, 0]
            here = x if rows is None else x[rows]
            at = [values[:, k] if len(values) == 1 or rows is None else values[rows, k] for values in steps]
            cond = condition if rows is None else pick(condition, rows)
            out = self.predict(here, at[0].expand(len(here)), cond)
            moved = step_mean(here, out, at[2], at[3])
            if bool((at[4] > 0).any()):
                if rng is None or ids is None:
                    raise ConfigError("steps with noise need a random stream and row ids")
                whose = ids if rows is None else ids[rows.to(ids.device)]
                noise = rng.child(f"step{first + k}").normal(whose, x.shape[1]).to(x.device)
                moved = moved + at[4][:, None] * noise
            x = moved if rows is None else x.index_copy(0, rows, moved)
            if trace:
                states.append(x)
                outs.append(out if rows is None else torch.zeros_like(x).index_copy(0, rows, out))
        if not trace:
            return Path(x[:, None], x.new_zeros(len(x), 0, x.shape[1]))
        return Path(torch.stack(states, 1), torch.stack(outs, 1) if outs else x[:, None][:, :0])

    # ---- sampling ----------------------------------------------------------------------------------------------

    def plan(self, config: TrainConfig) -> FlowPlan:
        """Return how training samples where no sampler says otherwise."""
        return FlowPlan(config.group_size)

    def evaluation_plan(self, config: TrainConfig, samples: int) -> FlowPlan:
        """Return how held-out prompts are sampled: by the ODE."""
        return FlowPlan(samples, self.eval_steps, noise=0.0)

    def start(self, seeds: Tensor, rng: Rng) -> Tensor:
        """Initial noise addressed by seed id, float32, shape (n, d)."""
        return rng.child("start").normal(seeds, self.latent_dims).to(self.device)

    @property
    def latent_dims(self) -> int:
        """Number of latent dimensions d."""
        return int(getattr(self.model, "latent_dims", int(np.prod(self.model.shape))))

    @torch.no_grad()
    def sample(self, tasks: Sequence[Any], plan: FlowPlan, rng: Rng, *, first_id: int = 0) -> Table:
        """Sample `plan.group_size` images of each task.

        Args:
            tasks: objects with `id`, `prompt` and `fields`.
            plan: how many and how.
            rng: random stream; row i uses the numbers addressed by `first_id + i`.
            first_id: id of the first row; groups count on from `first_id / group_size`.

        Returns:
            Rows in task order, each task's group together, with the columns of generations (see `assemble`).
        """
        if not tasks:
            raise DataError("sample needs at least one task")
        of_task = torch.arange(len(tasks)).repeat_interleave(plan.group_size)
        ids = first_id + torch.arange(len(of_task))
        group = first_id // plan.group_size + of_task
        rows = Rows(tasks, of_task, ids, group, group if plan.same_noise else ids)
        steps = self.schedule.steps(plan)
        noisy = steps.std[0] > 0
        trainable = noisy.clone()
        if plan.last != "train":
            trainable[-1] = False
        walked = self._walk(rows, steps, rng, trace=bool(noisy.any()))
        return self.assemble(
            rows, steps, walked, trainable[None], trainable[None], record_mean=plan.record_mean
        )

    def _walk(self, rows: Rows, steps: Steps, rng: Rng, *, trace: bool) -> Path:
        """Walk all rows; those that start from the same noise are one until the first step with noise."""
        condition = self.encode([task.prompt for task in rows.tasks])
        place = rows.of_task.to(self.device)
        seeds, first = rows.seeds.unique(return_inverse=True)
        noisy = (steps.std[0] > 0).tolist()
        shared = noisy.index(True) if True in noisy else len(noisy)
        if not shared or len(seeds) == len(rows.ids):
            x = self.start(rows.seeds, rng)
            return self.integrate(x, pick(condition, place), steps, rng=rng, ids=rows.ids, trace=trace)
        of_seed = place.new_zeros(len(seeds)).index_put((first.to(self.device),), place)
        head, rest = (Steps(*(v[:, part] for v in steps)) for part in (slice(shared), slice(shared, None)))
        begun = self.integrate(self.start(seeds, rng), pick(condition, of_seed), head, trace=trace)
        states, outs = begun.states[first], begun.outs[first]
        walked = self.integrate(
            states[:, -1], pick(condition, place), rest, rng=rng, ids=rows.ids, trace=trace, first=shared
        )
        if not trace:
            return walked
        return Path(torch.cat([states[:, :-1], walked.states], 1), torch.cat([outs, walked.outs], 1))

    @torch.no_grad()
    def assemble(
        self,
        rows: Rows,
        steps: Steps,
        path: Path,
        mask: Tensor,
        trainable: Tensor,
        *,
        record_mean: bool = False,
    ) -> Table:
        """Make the table of sampled rows.

        Args:
            rows: who they are.
            steps: coefficients of their steps.
            path: as walked; without a trace (deterministic rows) the step columns are left out.
            mask: steps that train, shape (1 or b, s).
            trainable: steps that this way of sampling may train, shape (1 or b, s).
            record_mean: add the column `mean`.

        Returns:
            Columns id, task, group, episode, seed, keep and the settings (b); mask, trainable, logp, sigma,
            sigma_next, coef_x, coef_v, std (b s); latent, next_latent and on demand mean (b s d); sample (b d).
            `logp` is 0 outside the mask.
            Fields prompt, image (float32 numpy, H W C in [0, 1]), and those of the task.
        """
        columns = row_columns(rows, path, self.settings)
        if path.outs.shape[1]:
            columns |= step_columns(steps, path, mask, trainable, self.reduce, record_mean=record_mean)
        order = rows.of_task.tolist()
        fields = {
            **task_fields(rows.tasks, order, OWN_FIELDS),
            "prompt": [rows.tasks[i].prompt for i in order],
            "image": self.images(columns["sample"][1]),
        }
        return Table.of(columns, fields)

    @torch.no_grad()
    def images(self, latents: Tensor) -> list[np.ndarray]:
        """Decode final latents (n, d) into float32 arrays (H, W, C) in [0, 1]; not finite where the latent is not."""
        parts = [self.model.decode(part.to(self.device)).float().cpu() for part in latents.split(256)]
        return list(torch.cat(parts).numpy()) if parts else []

    # ---- scoring -----------------------------------------------------------------------------------------------

    def rescore(self, table: Table, wants: Collection[str] = ("logp",)) -> dict[str, Tensor]:
        """Return `logp` (b s) and, if wanted, `mean` (b s d) of the masked steps under these weights, with graph.

        0 outside the mask. Rows that were sampled with other settings (guidance, shift) are refused.
        """
        odd = set(wants) - {"logp", "mean"}
        if odd:
            raise ConfigError(
                f"a generator gives {', '.join(sorted(odd))} to no loss; it gives logp and mean"
            )
        self._same_settings(table)
        device = self.device
        mask = table["mask"].to(device)
        cells = mask.nonzero(as_tuple=True)
        prompts, of_row = numbered(table.fields["prompt"])
        whose, condition = of_row.to(device), self.encode(prompts)
        of = {name: table[name].to(device)[cells] for name in ("latent", "sigma", "coef_x", "coef_v", "std")}
        out = self._network(of["latent"], of["sigma"], condition, whose[cells[0]])
        mean = step_mean(of["latent"], out, of["coef_x"], of["coef_v"])
        drawn = table["next_latent"].to(device)[cells]
        logp = gaussian_logp(drawn[:, None], mean[:, None], of["std"][:, None], reduce=self.reduce)[:, 0]
        found = {"logp": logp.new_zeros(mask.shape).index_put(cells, logp)}
        if "mean" in wants:
            found["mean"] = mean.new_zeros(*mask.shape, mean.shape[-1]).index_put(cells, mean)
        return {name: values.to(table["mask"].device) for name, values in found.items()}

    def errors(self, sample: Tensor, prompts: Sequence[Any], time: Tensor, noise: Tensor) -> Tensor:
        """Denoising errors of clean latents, with graph: mean over d of (network - target)^2.

        Args:
            sample: shape (n, d).
            prompts: n of them.
            time: in [0, 1), shape (n, m).
            noise: shape (n, m, d).

        Returns:
            Shape (n, m).
        """
        device, draws = self.device, time.shape[1]
        x0 = sample.to(device).repeat_interleave(draws, 0)
        x, target, at = self.schedule.noised(x0, time.flatten().to(device), noise.flatten(0, 1).to(device))
        known, of_row = numbered(prompts)
        whose = of_row.to(device).repeat_interleave(draws)
        out = self._network(x, at, self.encode(known), whose)
        return (out - target).pow(2).mean(1).reshape(time.shape)

    def _network(self, x: Tensor, time: Tensor, condition: Condition, whose: Tensor) -> Tensor:
        """Network outputs of cells, in pieces whose activations are computed again where `recompute` asks for it."""
        if not self.recompute or not torch.is_grad_enabled() or not len(x):
            return self.predict(x, time, pick(condition, whose))

        def piece(x: Tensor, time: Tensor, whose: Tensor) -> Tensor:
            return self.predict(x, time, pick(condition, whose))

        size = self.recompute
        parts = zip(x.split(size), time.split(size), whose.split(size), strict=True)
        return torch.cat([checkpoint(piece, *part, use_reentrant=False) for part in parts])

    def _same_settings(self, table: Table) -> None:
        """Refuse rows that were sampled with other settings."""
        for name, value in self.settings.items():
            if name in table and table.rows and bool((table[name] != value).any()):
                given = float(table[name][table[name] != value][0])
                raise DataError(
                    f"rows were sampled with {name} {given:g}, the policy scores with {name} {value:g}; "
                    "log-ratios of the two mean nothing: sample and score with the same settings"
                )

    @torch.no_grad()
    def scores(
        self, table: Table, wants: Collection[str] = ("logp",), *, cells: int = 8192
    ) -> dict[str, Tensor]:
        """Return what `rescore` gives, without graph, in batches of that many network evaluations."""
        if not wants or not table.rows:
            return self.rescore(table, wants) if wants else {}
        rows = max(cells // max(int(table["mask"].sum(1).max()), 1), 1)
        parts = [self.rescore(table.take(part), wants) for part in torch.arange(table.rows).split(rows)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def score(self, table: Table) -> Tensor:
        """Log-probabilities (b s) without graph."""
        return self.scores(table)["logp"]
