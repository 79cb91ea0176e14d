"""The Sparsifier: binds a recipe to a model and an optimiser. The only stateful object of the algebra."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import ConfigError, GossamerError, MaskError
from ..kernels.masking import apply_masks_
from . import estimators as est
from . import saving
from .checks import check_binding
from .context import Context, Loss, classification_loss
from .groups import Group, entry_masks, select
from .patterns import Pattern
from .recipe import Recipe
from .statistics import FORWARD, Statistics
from .stores import Store
from .updates import Change, GrowTo, PruneGrow, SetTo, Update

log = logging.getLogger(__name__)
HISTORY_ROWS = 200  # methods that update every step log about this many rows a run


class Sparsifier:
    """Runs a recipe inside any training loop, through hooks on the optimiser.

    >>> sp = Sparsifier(model, optimizer, recipe, steps=1000)     # doctest: +SKIP
    >>> for x, y in loader:                                       # doctest: +SKIP
    ...     loss_fn(model(x), y).backward()
    ...     optimizer.step(); optimizer.zero_grad()
    >>> sp.finalize()                                             # doctest: +SKIP

    Args:
        model: any module; DistributedDataParallel and torch.compile wrappers are looked through.
        optimizer: a torch optimiser (SGD, Adam, AdamW, RMSprop, ..., foreach or fused); no closures.
        recipe: the method, a value.
        steps: optimiser steps of the whole run; the recipe's times are fractions of it.
        data: iterable of batches, for scores that need some (SNIP, GraSP, SynFlow).
        loss: callable (model, batch) -> scalar; default cross entropy of (inputs, labels).
        seed: of random masks and random growth.
        groups: act on these units instead of the weights that `recipe.select` chooses, for instance the coupled
            channels of `channel_groups(model, example)`.

    A loop that clips gradients, or a fused optimiser under GradScaler, calls `after_backward()` between
    backward (and unscale_) and the clip. Order of operations: 00-sparse-training-algebra, section 3.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        steps: int,
        *,
        data: Iterable[Any] | None = None,
        loss: Loss = classification_loss,
        seed: int = 0,
        groups: list[Group] | None = None,
    ) -> None:
        if steps < 1:
            raise ConfigError(f"steps must be at least 1, got {steps}")
        effective = not isinstance(recipe.family, est.Projected)
        if effective and isinstance(model, DistributedDataParallel):
            raise ConfigError(
                f"create the Sparsifier of {recipe.name!r} before wrapping the model in DDP: it changes the model"
            )
        self.model = _unwrap(model)
        self.optimizer = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps it
        self.recipe, self.steps, self.seed = recipe, steps, seed
        self.data, self.loss = data, loss
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.dense_gradient_steps = 0
        self.groups: list[Group] = []
        if recipe.updates or effective:
            self.groups = select(self.model, recipe.select) if groups is None else list(groups)
        self._rules = {g.name: recipe.patterns_of(g.name) for g in self.groups}
        self._parameters = self._find_parameters()
        device = next(iter(self._parameters.values())).device if self._parameters else torch.device("cpu")
        self.masks = {g.name: torch.ones(g.shape, dtype=torch.bool, device=device) for g in self.groups}
        self.ever = {name: mask.clone() for name, mask in self.masks.items()}
        self._entry = entry_masks(self.groups, self.masks, self._parameters)
        check_binding(self.model, self.optimizer, recipe, steps, self.groups, self._parameters)
        self.statistics = Statistics(list(self._parameters), recipe.needs)
        self._graded = False
        self._flips = 0
        self._install()
        self._initialise()
        self._stores: list[Store] = []
        self._hooks = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
        ]
        self._prepare_next()

    # ------------------------------------------------------------------ binding

    def _find_parameters(self) -> dict[str, nn.Parameter]:
        everything = dict(self.model.named_parameters())
        names = dict.fromkeys(m.name for g in self.groups for m in g.members)
        return {name: everything[name] for name in names}

    def _install(self) -> None:
        """Put the parametrisations of the effective and scored families in place."""
        family = self.recipe.family
        if isinstance(family, est.Projected):
            return
        for name in self._entry:
            forward: est.MaskedForward
            if isinstance(family, est.SoftMask):
                forward = est.SoftForward(self._entry[name], float(family.soft(0.0)), family.exact_grad)
            elif isinstance(family, est.Scored):
                rng = self._context().rng(name)
                score = est.initial_score(family, self._parameters[name], rng)
                forward = est.ScoredForward(self._entry[name], score, family.train != "weights")
                self._parameters[name].requires_grad_(family.train != "scores")
                if family.train != "weights":
                    self.optimizer.add_param_group({"params": [forward.score]})
            else:
                forward = est.MaskedForward(self._entry[name])
            est.install(self.model, name, forward)
            if not any(p is self._parameters[name] for p in self.model.parameters()):
                raise GossamerError(f"{name}: parametrisation replaced the parameter of the optimiser")

    def _initialise(self) -> None:
        """Updates that run once before training, then scaled initial weights."""
        for update in self.recipe.updates:
            if update.when is None or not update.when.start:
                self._initial_mask(update)
        for name, mask in self.masks.items():
            self.ever[name].copy_(mask)
        self._recompute_forward()
        if self.recipe.scale_init:
            self._scale_weights()
        self._record(force=True)

    def _initial_mask(self, update: Update) -> None:
        """Run an update that has no window, or one of the effective family that ranks anew (masks exist at step 0)."""
        anew = isinstance(update, SetTo) or (update.when is not None and update.when.stride(self.steps) == 1)
        if update.when is None or (anew and not isinstance(self.recipe.family, est.Projected)):
            self._apply(update)

    @torch.no_grad()
    def _scale_weights(self) -> None:
        for name, mask in self._entry.items():
            self._parameters[name].mul_(float(mask.float().mean()) ** -0.5)

    def _context(self) -> Context:
        family = self.recipe.family
        return Context(
            model=self.model,
            groups=self.groups,
            patterns=self.patterns,
            masks=dict(self.masks),
            weights={name: p.detach() for name, p in self._parameters.items()},
            statistics=self.statistics.values if hasattr(self, "statistics") else {},
            step=self.step,
            steps=self.steps,
            seed=self.seed,
            data=self.data,
            loss=self.loss,
            within=isinstance(family, est.Projected) and family.mask_grad,
        )

    # ------------------------------------------------------------------ one optimiser step

    @property
    def time(self) -> float:
        """Fraction of the run that has passed."""
        return min(1.0, self.step / self.steps)

    @property
    def patterns(self) -> dict[str, Pattern]:
        """Group name -> where its zeros may lie now."""
        return {name: rule(self.time) for name, rule in self._rules.items()}

    def due(self, step: int) -> list[Update]:
        """Updates that follow optimiser step `step` (counted from 1)."""
        if step > self.steps:
            return []
        due = [u for u in self.recipe.updates if u.when is not None and u.when.due(step, self.steps)]
        # What grows at the very last step would never be trained.
        return [u for u in due if step < self.steps or not isinstance(u, (PruneGrow, GrowTo))]

    def wants_dense_gradient(self) -> bool:
        """Whether the coming step must produce gradients of weights that are 0."""
        due = self.due(self.step + 1)
        wanting = any("grad" in u.needs for u in due)
        return self.statistics.wants_gradient(wanting)

    def after_backward(self) -> None:
        """Collect dense gradients, add regularisers and mask gradients. Call it before clipping; else the hook does."""
        self._edit_gradients()
        self._graded = True

    def _follow_model(self) -> None:
        """`model.to(...)` replaces buffers and moves weights: hold on to the buffers that the model now uses."""
        effective = not isinstance(self.recipe.family, est.Projected)
        for name, old in self._entry.items():
            live = self._forward_of(name).mask if effective else old.to(self._parameters[name].device)
            if live is not old:
                self._entry[name] = live
                for group in self.groups:
                    if self.masks[group.name] is old:
                        self.masks[group.name] = live
                    self.ever[group.name] = self.ever[group.name].to(live.device)
                    self.masks[group.name] = self.masks[group.name].to(live.device)

    @torch.no_grad()
    def _edit_gradients(self) -> None:
        self._follow_model()
        if not self.groups and not self.recipe.regularizers:
            return
        if self.wants_dense_gradient():
            gradients = {name: p.grad for name, p in self._parameters.items()}
            for store in self._stores:
                gradients |= store.gradients()
            self.statistics.observe(gradients)
        for regularizer in self.recipe.regularizers:
            regularizer.add(self.model, self._entry, self.time)
        family = self.recipe.family
        if isinstance(family, est.Projected) and family.masks_gradient(self.time):
            pairs = [
                (p.grad, self._entry[n]) for n, p in self._parameters.items() if p.grad is not None and n in self._entry
            ]
            apply_masks_([g for g, _ in pairs], [m for _, m in pairs])
        elif isinstance(family, est.SRSTE) and not family.decoupled:
            for name, p in self._parameters.items():
                if p.grad is not None:
                    p.grad.add_(p * ~self._entry[name], alpha=family.lam)

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if any(a is not None for a in args[1:]) or kwargs.get("closure") is not None:  # args[0]: the optimiser
            raise ConfigError(
                "optimisers with a closure evaluate gradients inside step(); "
                "call backward first and step() without a closure"
            )
        if getattr(optimizer, "grad_scale", None) is not None:
            raise ConfigError(
                "a fused optimiser under GradScaler shows scaled gradients to hooks: call "
                "scaler.unscale_(optimizer) and sparsifier.after_backward() before scaler.step(optimizer)"
            )
        if not self._graded:
            self._edit_gradients()

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._graded = False
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and float(found_inf) > 0:
            return  # the scaler skipped this step: nothing happened
        if self.wants_dense_gradient():
            self.dense_gradient_steps += 1
        self.step += 1
        self.statistics.commit()
        self.statistics.disarm()
        updates = [] if self._frozen() else self.due(self.step)
        for store in self._stores if updates else ():
            store.write_back()
        for update in updates:
            self._apply(update)
        self._weight_operations()
        if self._frozen_now():
            self._enforce(self._entry)
        self._recompute_forward()
        if updates:
            self._record()
            self.statistics.release()
            for store in self._stores:
                store.read(updated=True)
        self._prepare_next()

    def _prepare_next(self) -> None:
        """Arm forward collectors if the coming step ends with an update that reads them."""
        if any(u.needs & FORWARD for u in self.due(self.step + 1)):
            self.statistics.arm(self.model)
        for store in self._stores:
            store.expect(self.wants_dense_gradient())

    def attach(self, store: Store) -> None:
        """Let `store` hold the entries of some weights from now on; `remove` and `finalize` release it."""
        self._stores.append(store)
        store.expect(self.wants_dense_gradient())

    def _frozen(self) -> bool:
        """Whether a family with a freeze time has its final mask."""
        freeze = getattr(self.recipe.family, "freeze", None)
        return freeze is not None and (self.step - 1) / self.steps >= freeze

    def _frozen_now(self) -> bool:
        freeze = getattr(self.recipe.family, "freeze", None)
        return freeze is not None and not self._frozen() and self.time >= freeze

    def _weight_operations(self) -> None:
        for regularizer in self.recipe.regularizers:
            if hasattr(regularizer, "after_step"):
                rate = lambda p: self._group_of(p)["lr"]  # noqa: E731
                regularizer.after_step(self.model, self._entry, self.time, rate)
        if not self._frozen():
            for operation in self.recipe.weight_ops:
                for name, mask in self._entry.items():
                    operation(self._parameters[name], mask)
        family = self.recipe.family
        if isinstance(family, est.SRSTE) and family.decoupled:
            for name, p in self._parameters.items():
                decay = 1.0 - self._group_of(p)["lr"] * family.lam
                p.copy_(torch.where(self._entry[name], p, p * decay))

    def _recompute_forward(self) -> None:
        """Refresh what the effective and scored families derive from masters, scores and schedules."""
        family = self.recipe.family
        if isinstance(family, est.SoftMask):
            for name in self._entry:
                self._forward_of(name).soft.fill_(float(family.soft(self.time)))
        if isinstance(family, est.Scored):
            patterns = self.patterns
            density = family.density if isinstance(family.density, (int, float)) else family.density(self.time)
            for group in self.groups:
                score = self._forward_of(group.members[0].name).score.detach()
                self.masks[group.name].copy_(est.score_mask(score, float(density), patterns[group.name]))

    def _forward_of(self, name: str) -> Any:
        path, _, attr = name.rpartition(".")
        return self.model.get_submodule(path).parametrizations[attr][0]  # type: ignore[index]

    def _group_of(self, parameter: Tensor) -> dict[str, Any]:
        for group in self.optimizer.param_groups:
            if any(p is parameter for p in group["params"]):
                return group
        raise ConfigError("a masked parameter is not in the optimiser; pass model.parameters() to the optimiser")

    # ------------------------------------------------------------------ masks

    def _apply(self, update: Update) -> None:
        context = self._context()
        change = update.apply(context)
        self._synchronise(change)
        for group in self.groups:
            mask = change.masks[group.name]
            if not mask.count_nonzero() and not getattr(getattr(update, "allocation", None), "allow_empty", False):
                raise MaskError(f"{group.name} would be emptied by {type(update).__name__} at step {self.step}")
        if isinstance(self.recipe.family, est.Projected) and self.recipe.family.mask_grad:
            self._enforce(entry_masks(self.groups, change.survivors, self._parameters))
            self._start_grown(getattr(update, "init", "zero"), change)
        for name, mask in change.masks.items():
            self._flips += int((mask ^ self.masks[name]).count_nonzero())
            self.masks[name].copy_(mask)
            self.ever[name].logical_or_(mask)
        self._refresh_entries()

    def _refresh_entries(self) -> None:
        """Write tensor masks anew, in place: compiled graphs and parametrisations hold on to them."""
        for name, fresh in entry_masks(self.groups, self.masks, self._parameters).items():
            if self._entry[name] is not fresh:
                self._entry[name].copy_(fresh)

    def _start_grown(self, init: str, change: Change) -> None:
        """Give grown weights their starting values where these are not zero."""
        if init == "zero":
            return
        new = {name: mask & ~change.survivors[name] for name, mask in change.masks.items()}
        for name, positions in entry_masks(self.groups, new, self._parameters).items():
            p = self._parameters[name]
            if init == "grad_step":
                value = -self._group_of(p)["lr"] * self.statistics.values["grad"][name]
            else:
                value = kaiming(p, self._context().rng(f"{name}/grown"))
            p.copy_(torch.where(positions, value, p))

    def _synchronise(self, change: Change) -> None:
        """All ranks take rank 0's masks, so that they are equal bit for bit."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return
        for masks in (change.masks, change.survivors):
            for mask in masks.values():
                dist.broadcast(mask.contiguous().view(torch.uint8), src=0)

    @torch.no_grad()
    def _enforce(self, entries: dict[str, Tensor]) -> None:
        """Weights and optimiser buffers become exactly 0 outside `entries`."""
        for name, mask in entries.items():
            p = self._parameters[name]
            state = self.optimizer.state.get(p, {})
            buffers = [v for v in state.values() if torch.is_tensor(v) and v.shape == p.shape and v.ndim]
            tensors = [p.data, *buffers]
            apply_masks_(tensors, [mask] * len(tensors))

    def enforce(self) -> None:
        """Make masked weights and their optimiser buffers exactly 0. For code that edits weights outside step()."""
        if isinstance(self.recipe.family, est.Projected):
            self._enforce(self._entry)

    def check(self) -> None:
        """Raise MaskError unless masks are legal and (projected family) weights are 0 off the mask."""
        for name, pattern in self.patterns.items():
            pattern.check(self.masks[name])
        family = self.recipe.family
        if isinstance(family, est.Projected) and family.masks_gradient(self.time):
            for name, mask in self._entry.items():
                leaked = int(self._parameters[name].detach()[~mask].count_nonzero())
                if leaked:
                    raise MaskError(f"{leaked} masked weights of {name} are not zero; call enforce()")

    # ------------------------------------------------------------------ what a user reads

    @property
    def entry_masks(self) -> dict[str, Tensor]:
        """Parameter name -> bool mask of its shape (live tensors, do not write)."""
        return self._entry

    def density(self) -> float:
        """Kept fraction of all units."""
        total = sum(g.numel for g in self.groups)
        return sum(int(m.sum()) for m in self.masks.values()) / total if total else 1.0

    def itop_rate(self) -> float:
        """Fraction of units that were ever active (Liu et al. 2021, ITOP, R_s)."""
        total = sum(g.numel for g in self.groups)
        return sum(int(m.sum()) for m in self.ever.values()) / total if total else 1.0

    def _record(self, force: bool = False) -> None:
        row = max(1, self.steps // HISTORY_ROWS)
        if self.history and not force and self.step - self.history[-1]["step"] < row and self.step < self.steps:
            return
        self.history.append(
            {
                "step": self.step,
                "density": self.density(),
                "layers": {name: float(mask.float().mean()) for name, mask in self.masks.items()},
                "flips": 0 if force else self._flips,
                "dense_gradient_steps": self.dense_gradient_steps,
                "itop": self.itop_rate(),
            }
        )
        self._flips = 0

    # ------------------------------------------------------------------ saving and ending

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs beside model and optimiser: tensors and JSON values only."""
        return saving.state_of(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken. Load the model's and optimiser's state as well, in any order.

        Raises:
            CheckpointError: another version, recipe, length of run or model.
        """
        saving.check_state(self, state)
        saving.restore(self, state)
        self._refresh_entries()
        self.statistics.disarm()
        self._recompute_forward()
        for store in self._stores:
            store.read(updated=False)
        self._prepare_next()

    def remove(self) -> None:
        """Take the hooks off the optimiser and the model; masks stay as they are."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for store in self._stores:
            store.release()
        self._stores = []
        self.statistics.disarm()

    @torch.no_grad()
    def finalize(self) -> nn.Module:
        """End: remove hooks and parametrisations, bake exact zeros into plain weights. Returns the model."""
        if not self._hooks:
            return self.model
        self._record(force=False)
        self.remove()
        if not isinstance(self.recipe.family, est.Projected):
            for name in self._entry:
                trained = self._parameters[name].requires_grad or isinstance(self.recipe.family, est.Scored)
                est.uninstall(self.model, name)
                path, _, attr = name.rpartition(".")
                parameter = getattr(self.model.get_submodule(path), attr)
                parameter.requires_grad_(trained)
        parameters = dict(self.model.named_parameters())
        for name, mask in self._entry.items():
            apply_masks_([parameters[name].data], [mask])
        return self.model


def kaiming(p: Tensor, rng: torch.Generator) -> Tensor:
    """Kaiming-normal values for a weight of the shape of `p`."""
    fan_in = p[0].numel() if p.ndim > 1 else p.numel()
    return (torch.randn(p.shape, generator=rng) * (2.0 / fan_in) ** 0.5).to(p.device, p.dtype)


def _unwrap(model: nn.Module) -> nn.Module:
    """The user's module inside DDP and torch.compile."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner
