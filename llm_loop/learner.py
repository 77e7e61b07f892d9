"""Owns the fit: DPO on the answered duels by TRL's trainer, and the implicit reward ``β log π_θ/π_ref``.

Knows nothing of where duels come from or how they are chosen.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import tyro
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer

from bandits.core.duels import Labelled
from bandits.core.errors import InputError
from bandits.core.oracles import loss as duel_loss
from bandits.core.rng import Key
from bandits.core.rows import Dense
from llm_loop.arena import Completions
from llm_loop.gradients import Gradients, embeddings
from llm_loop.launch import processes
from llm_loop.models import Policy, Row, trainer_settings
from llm_loop.passes import read
from llm_loop.seeding import seeded

MOST = 10_000
"""epochs, and duels per step: what goes beyond is a slip, and would take for ever"""


@dataclass(frozen=True)
class Training:
    """DPO's settings.

    ``data``: ``all`` refits to all answers from the reference, as the theory's ``θ_t`` asks; ``new`` goes on from
    ``θ_{t-1}`` with the round's answers alone.  ``regularisation`` is λ of ``Σ loss + (λ/2)‖θ - θ0‖²`` over LoRA's
    parameters; 0 leaves it out, as practice does.
    """

    beta: float = 0.1
    """of DPO and of the implicit reward"""
    rate: float = 1.5e-3
    """learning rate of AdamW"""
    epochs: int = 3
    batch: Annotated[int, tyro.conf.arg(name="dpo-batch")] = 4
    """duels per step"""
    data: Literal["all", "new"] = "all"
    """refit to all labels from the reference, or go on with the round's new ones"""
    regularisation: float = 0.0
    """λ of (λ/2)‖θ - θ0‖² beside the sum of losses"""
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    """of the learning rate"""
    clip: float = 1.0
    """largest norm of a step's gradient"""
    ties: float | None = None
    """Davidson's ν of the loss, DPO-D of arXiv 2409.17431; default the oracle's own (0 where it gives no ties)"""

    def __post_init__(self) -> None:
        for option, value in (("--beta", self.beta), ("--rate", self.rate), ("--clip", self.clip)):
            if not (value > 0 and math.isfinite(value)):
                raise InputError(f"{option} must be positive and finite, got {value}")
        if self.rate > 10:  # one step then moves every weight by 10
            raise InputError(f"--rate must be at most 10, got {self.rate}")
        for option, count in (("--epochs", self.epochs), ("--dpo-batch", self.batch)):
            if not 1 <= count <= MOST:
                raise InputError(f"{option} must be at least 1 and at most {MOST}, got {count}")
        if not (self.regularisation >= 0 and math.isfinite(self.regularisation)):
            raise InputError(f"--regularisation must be finite and not negative, got {self.regularisation}")
        if self.ties is not None and not (self.ties >= 0 and math.isfinite(self.ties)):
            raise InputError(f"--ties must be finite and not negative, got {self.ties}")


@dataclass(frozen=True)
class Preference:
    """One answered duel, with the reference's log-probabilities of both responses in nats.

    ``outcome`` is 1, or 1/2 for a tie, where ``chosen`` is the one that was shown first.
    """

    chosen: Row
    rejected: Row
    chosen_reference: float
    rejected_reference: float
    outcome: float = 1.0


@dataclass(frozen=True)
class Fit:
    """How a fit went: mean loss of its first and last step in nats, the steps taken, and the pairs in its last epoch.

    ``chosen`` and ``rejected`` are mean log-ratios ``log π_θ/π_ref`` in nats, apart, since DPO's loss sees only their
    difference and may lower both; each pair as training met it in the last epoch, before the step that it took part in.
    Ties, which prefer neither, are left out of these; NaN where all were.
    """

    first_loss: float
    last_loss: float
    steps: int
    chosen: float
    rejected: float
    chosen_fell: float
    """share of pairs whose preferred response has become less likely than under the reference"""
    accuracy: float
    """share of pairs whose preferred response has the larger log-ratio"""


class _Trainer(DPOTrainer):
    """TRL's trainer on rows that are token ids already, with cached reference log-probabilities.

    Text would be tokenised again, which need not give the tokens that were drawn, and would get an end token even where
    the response was cut.  The reference's log-probabilities come with the rows (issues 1962 and 2423 of TRL are about
    wrong ones; tests compare ours with TRL's own).  The loss is written out here: TRL's fused head makes logits for
    prompts and padding too, and makes them twice, and knows no ties; what rows share is read once, and what
    the layers below the adapter make of them is known (``python -m benchmarks dpo-step``).  Tests compare it and its
    gradients with TRL's, which ``own_loss=False`` uses.
    """

    def __init__(
        self,
        policy: Policy,
        preferences: Sequence[Preference],
        *,
        pull: float = 0.0,
        own_loss: bool = True,
        ties: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            model=policy.model, train_dataset=_dataset(preferences), processing_class=policy.tokenizer, **kwargs
        )
        self.precompute_ref_logps = True
        self._policy, self._preferences, self._pull, self._own_loss = policy, preferences, pull, own_loss
        self._ties = ties
        if own_loss:
            self._signature_columns, self.data_collator = ["place"], _places
        self.ratios: list[Tensor] = []
        """of every step's pairs, ``(pairs, 3)``: log-ratios of chosen and rejected, outcome; by our own loss only"""
        self.read = 0
        """tokens that went through the model; by our own loss only"""

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        model.eval()  # no dropout, which the policy's log-probabilities do without
        if self._own_loss:
            pairs = [self._preferences[place] for place in inputs["place"].tolist()]
            groups = [[pair.chosen, pair.rejected] for pair in pairs]
            logs = self._policy.summed(groups, model).unflatten(0, (-1, 2))
            self.read += read(groups)
            known = [(pair.chosen_reference, pair.rejected_reference, pair.outcome) for pair in pairs]
            *reference, outcome = torch.tensor(known, device=logs.device).unbind(-1)
            chosen, rejected = (logs - torch.stack(reference, -1)).unbind(-1)
            self.ratios.append(torch.stack([chosen, rejected, outcome], -1).detach())
            loss = duel_loss(self.beta * (chosen - rejected), outcome, self._ties) / len(outcome)
        else:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._pull == 0:
            return loss
        named = dict(self.accelerator.unwrap_model(model).named_parameters())
        start = self._policy.initial
        drift = sum((named[name] - at.to(named[name].device)).square().sum() for name, at in start.items())
        return loss + self._pull / 2 * drift


def _dataset(preferences: Sequence[Preference]) -> Dataset:
    """Return preferences as TRL has them once they are token ids, with their places."""
    return Dataset.from_list(
        [
            {
                "place": place,
                "prompt_ids": list(pair.chosen.prompt),
                "chosen_ids": list(pair.chosen.response),
                "rejected_ids": list(pair.rejected.response),
                "ref_chosen_logps": pair.chosen_reference,
                "ref_rejected_logps": pair.rejected_reference,
            }
            for place, pair in enumerate(preferences)
        ]
    )


def _places(examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    return {"place": torch.tensor([example["place"] for example in examples])}


@contextmanager
def _lent(policy: Policy) -> Iterator[None]:
    """Lend the policy to a trainer, and undo what it does to the model besides training it."""
    base = policy.model.get_base_model()
    forward = base.__dict__.get("forward")
    try:
        yield
    finally:
        if "ref" in policy.model.peft_config:  # TRL's copy of the adapter, which cached log-probabilities replace
            policy.model.delete_adapter("ref")
            policy.model.set_adapter("default")
        if forward is None:
            base.__dict__.pop("forward", None)  # TRL's fused head
        policy.model.eval()


def fit_dpo(
    policy: Policy, preferences: Sequence[Preference], training: Training, key: Key, own_loss: bool = True
) -> Fit:
    """Train LoRA's matrices from where they are by DPO on these preferences; return how it went.

    The loss is the mean over a batch of ``-log σ(β [log-ratio chosen - log-ratio rejected])``, or Davidson's likelihood
    of wins and ties where the model has them (``training.ties``; at ν = 0 a tie is half of either answer); with λ > 0,
    ``(λ/2n)‖θ - θ0‖²`` is added, so that the sum over all ``n`` preferences is the theory's objective.
    """
    if not preferences:
        raise InputError("DPO needs at least one preference")
    share, left = divmod(training.batch, processes())  # of a batch, where a launcher started several processes
    if left:
        raise InputError(f"a DPO batch of {training.batch} cannot be shared evenly by {processes()} processes")
    with tempfile.TemporaryDirectory() as scratch, policy.meter.stage("train"), seeded(key), _lent(policy):
        arguments = DPOConfig(
            output_dir=scratch,
            **trainer_settings(policy, key),
            beta=training.beta,
            learning_rate=training.rate,
            num_train_epochs=training.epochs,
            per_device_train_batch_size=share,
            lr_scheduler_type=training.schedule,
            max_grad_norm=training.clip,
            remove_unused_columns=False,
        )
        trainer = _Trainer(
            policy,
            preferences,
            args=arguments,
            pull=training.regularisation / len(preferences),
            own_loss=own_loss,
            ties=training.ties or 0.0,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        if not all(bool(matrix.isfinite().all()) for matrix in policy.state().values()):
            raise InputError(f"the training diverged: the adapter is no longer finite; lower --rate {training.rate:g}")
        last_epoch = trainer.ratios[-math.ceil(len(losses) / training.epochs) :]
        ratios = trainer.accelerator.gather(torch.cat(last_epoch)) if last_epoch else torch.full((1, 3), math.nan)
        spent = trainer.accelerator.gather(torch.tensor([trainer.read], device=policy.device))
    policy.meter.tokens["train"] += int(spent.sum())
    chosen, rejected, outcome = ratios.double().cpu().unbind(-1)
    chosen, rejected = chosen[outcome != 0.5], rejected[outcome != 0.5]
    return Fit(
        losses[0],
        losses[-1],
        len(losses),
        float(chosen.mean()),
        float(rejected.mean()),
        float((chosen < 0).double().mean()),
        float((chosen > rejected).double().mean()),
    )


class DPOLearner:
    """The loop's learner on a real policy: ``rewards`` are implicit, ``features`` LoRA gradients, ``fit`` is DPO."""

    def __init__(self, policy: Policy, training: Training, gradients: Gradients, key: Key) -> None:
        """Begin at the reference."""
        self.policy, self.training, self.gradients, self.key = policy, training, gradients, key
        self._reference: dict[Row, float] = {}
        self._current: dict[Row, float] = {}
        self._zero: dict[Row, float] = {}
        self._initial: dict[tuple[Literal["all", "last"], Row], tuple[Tensor, float | None]] = {}
        """features at θ0 that are known, with the share of zero gradients"""
        self.at_start = self._is_start()
        """whether ``θ = θ0``, where every implicit reward is exactly 0; looked at whenever the learner moves θ"""

    @property
    def ties(self) -> float:
        """Davidson's ν of the loss."""
        return self.training.ties or 0.0

    def _is_start(self) -> bool:
        return all(torch.equal(p.detach().cpu(), self.policy.initial[n]) for n, p in self.policy.parameters.items())

    def note(self, rows: Sequence[Row], current: Tensor | None = None, reference: Tensor | None = None) -> None:
        """Remember log-probabilities that are known already: of the current policy until it moves, of the reference."""
        for cache, values in ((self._current, current), (self._reference, reference)):
            if values is not None:
                cache.update(zip(rows, values.tolist(), strict=True))

    def note_drawn(self, items: Completions) -> None:
        """Remember what the current policy gives to what it has just drawn."""
        self.note(items.rows, items.log_probs, items.log_probs if self.at_start else None)

    def note_initial_draws(self, items: Completions) -> None:
        """Remember what the reference gives to what it has drawn."""
        self.note(items.rows, items.log_probs if self.at_start else None, items.log_probs)

    def note_initial(self, layer: Literal["all", "last"], rows: Sequence[Row], values: Tensor, zero: Tensor) -> None:
        """Remember features at θ0, ``(n, d)``, and the share of zero gradients (NaN: unknown)."""
        for row, value, share in zip(rows, values, zero.tolist(), strict=True):
            self._initial[layer, row] = (value, None if math.isnan(share) else share)

    def known_reference(self, rows: Sequence[Row]) -> list[float | None]:
        """Return ``log π_ref(y|x)`` in nats of the rows whose value is known already."""
        return [self._reference.get(row) for row in rows]

    def reference(self, rows: Sequence[Row]) -> Float[Tensor, " n"]:
        """Return ``log π_ref(y|x)`` in nats; each row goes through the model once in a run."""
        with self.policy.reference():
            return self._cached(self._reference, rows)

    def current(self, rows: Sequence[Row]) -> Float[Tensor, " n"]:
        """Return ``log π_θ(y|x)`` in nats."""
        return self._cached(self._current, rows)

    def _cached(self, cache: dict[Row, float], rows: Sequence[Row]) -> Tensor:
        missing = [row for row in dict.fromkeys(rows) if row not in cache]
        if missing:
            cache.update(zip(missing, self.policy.log_probs(missing, "score").tolist(), strict=True))
        return torch.tensor([cache[row] for row in rows], dtype=torch.float64)

    def rewards(self, items: Completions) -> Float[Tensor, " n"]:
        """Return ``β log π_θ(y|x)/π_ref(y|x)``, in log-odds; exactly 0 at the start."""
        if self.at_start:  # what the policy drew with is the reference's
            self.note(items.rows, reference=items.log_probs)
            return torch.zeros_like(items.log_probs)
        reference = self.reference(items.rows)
        return self.training.beta * (self.current(items.rows) - reference)

    def features(self, items: Completions, at: Literal["current", "initial"], layer: Literal["all", "last"]) -> Dense:
        """Return each item's gradient of its implicit reward, or its last hidden state; equal items count once."""
        rows = list(dict.fromkeys(items.rows))
        if self.at_start or at == "initial":
            known = [self._initial.get((layer, row)) for row in rows]
            missing = [row for row, found in zip(rows, known, strict=True) if found is None]
            values = [found[0] for found in known if found is not None]
            self._zero |= {row: f[1] for row, f in zip(rows, known, strict=True) if f is not None and f[1] is not None}
            if missing:
                with nullcontext() if self.at_start else self.policy.at(self.policy.initial):
                    values += self._features(missing, layer).values
            order = [row for row, found in zip(rows, known, strict=True) if found is not None] + missing
            table = torch.stack(values)
        else:
            order, table = rows, self._features(rows, layer).values
        place = {row: i for i, row in enumerate(order)}
        return Dense(table[[place[row] for row in items.rows]])

    def _features(self, rows: Sequence[Row], layer: Literal["all", "last"]) -> Dense:
        if layer == "last":
            return embeddings(self.policy, rows)
        features, zero = self.gradients.with_zeros(rows)
        self._zero.update(zip(rows, zero.tolist(), strict=True))
        return features

    def zero_share(self, rows: Sequence[Row]) -> float | None:
        """Return the share of (response, A-matrix) pairs whose gradient was exactly 0 when the rows were last seen.

        None if they never were: a strategy may read no gradient, or the last layer's features alone.
        """
        shares = [self._zero.get(row) for row in rows]
        known = [share for share in shares if share is not None]
        return sum(known) / len(known) if len(known) == len(shares) else None

    def entropy(self, items: Completions, rewards: Tensor) -> Float[Tensor, " p"]:
        """Return ``-mean log π_θ(y|x)`` over each prompt's responses: a Monte Carlo estimate of the policy's entropy.

        The estimate of APLP (Muldrew et al., arXiv 2402.08114), nats per response.  The responses are the policy's own
        draws; of a pool that lasts, ``π`` is the initial model, which need not have drawn them all.
        """
        return -items.log_probs.unflatten(-1, (-1, items.responses)).mean(-1)

    def preferences(self, past: Labelled[Completions]) -> list[Preference]:
        """Return labelled duels as preferences; ties as they were shown."""
        rows, duels = past.items.rows, past.duels
        reference = self.reference(rows)
        won = past.outcome >= 0.5
        good, bad = torch.where(won, duels.first, duels.second), torch.where(won, duels.second, duels.first)
        shares = torch.maximum(past.outcome, 1 - past.outcome)
        return [
            Preference(rows[a], rows[b], float(reference[a]), float(reference[b]), share)
            for a, b, share in zip(good.tolist(), bad.tolist(), shares.tolist(), strict=True)
        ]

    def fit(self, past: Labelled[Completions]) -> Fit:
        """Run DPO; afterwards the current policy's log-probabilities are forgotten."""
        key = self.key.fold_in("fit", len(past))
        if self.training.data == "all":
            self.policy.restore(self.policy.initial)
        else:
            past = Labelled(past.batches[-1:])
        fit = fit_dpo(self.policy, self.preferences(past), self.training, key)
        self._moved()
        return fit

    def _moved(self) -> None:
        self._current.clear()
        self.at_start = self._is_start()

    def state(self) -> dict[str, Tensor]:
        """Return θ."""
        return self.policy.state()

    def restore(self, state: dict[str, Tensor]) -> None:
        """Load a saved θ."""
        self.policy.restore(state)
        self._moved()
