"""Owns the policy: a language model with a LoRA adapter, its tokenizer, its log-probabilities, its cost meter.

The reference is the same model with the adapter off, so ``π_θ0 = π_ref`` holds exactly at the start.  Also builds tiny
random models with a byte tokenizer.  Knows nothing of rewards, duels or training.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
import tyro
from jaxtyping import Bool, Float, Int64
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from safetensors.torch import save
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from bandits.core.errors import InputError, naming, unknown
from bandits.core.rng import Key
from bandits.runs.files import write_bytes
from bandits.runs.text import dumps
from llm_loop import folders, passes
from llm_loop.data import assets
from llm_loop.data.chat import Message, Prompt, continuable, text_of
from llm_loop.folders import DTYPES
from llm_loop.passes import Packed, Trunk, read_once
from llm_loop.passes import Row as Row
from llm_loop.seeding import seeded
from llm_loop.templates import conversation, plain

TINY = ("tiny-llama", "tiny-gemma", "tiny-gpt2")
Chat = Literal["yes", "no"]
"""Whether a prompt that is a text is sent as a message."""


Drawing = Literal["grouped", "cached", "generate", "generate-alike", "generate-uncached"]
DRAWINGS: tuple[Drawing, ...] = get_args(Drawing)


@dataclass(frozen=True)
class Route:
    """How a policy draws, scores and differentiates: the fastest ways, unless ``llm_loop.agreement`` found them wrong.

    ``drawing``: our decoding with grouped attention; ours with the model's own attention; the library's ``generate``
    with prompts padded on the left; the same with prompts of one length only; the same without a key-value memory.
    ``padded``: score rows of unlike length side by side, padded on the right; else one row at a time.
    ``shared``: read once what rows share that are scored or trained on together, a prompt or its opening; needs
    ``padded``.
    ``cached``: keep what the layers below the adapter make of a row (``llm_loop.passes``); needs ``shared``.
    ``fused``: sum logits up as they are made, by parts of the vocabulary; needs ``shared``.
    ``hooked``: take gradients of a whole batch from what passes through LoRA's matrices; else by autograd, row by row.
    """

    drawing: Drawing = "grouped"
    padded: bool = True
    shared: bool = True
    cached: bool = True
    fused: bool = True
    hooked: bool = True

    @property
    def summary(self) -> str:
        """What is slower than it could be, in a clause; empty where nothing is."""
        slow = {
            "cached": "decoding with the model's own attention",
            "generate": "decoding by the library's generate",
            "generate-alike": "decoding by the library's generate, prompts of one length at a time",
            "generate-uncached": "decoding by the library's generate without a key-value memory",
        }
        clauses = [slow[self.drawing]] if self.drawing in slow else []
        clauses += [] if self.padded else ["scoring one response at a time"]
        clauses += [] if self.shared or not self.padded else ["reading prompts anew for every response"]
        clauses += [] if self.cached or not self.shared else ["running the layers below the adapter in every pass"]
        clauses += [] if self.fused or not self.shared else ["making all logits before any is summed up"]
        clauses += [] if self.hooked else ["gradients one response at a time"]
        return ", ".join(clauses)


@dataclass
class Meter:
    """What was spent, stage by stage: tokens through the model (padding not counted) and wall-clock seconds.

    The seconds of a stage within another are the inner one's alone.
    """

    tokens: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    _inner: list[float] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str, tokens: int = 0) -> Iterator[None]:
        """Count a block of work."""
        started = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            self.seconds[name] += elapsed - self._inner.pop()
            if self._inner:
                self._inner[-1] += elapsed
        self.tokens[name] += tokens


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
"""What gets an adapter where nobody said what: the attention of most families, by its usual names."""
WIDEST = 100_000
"""The largest rank and α of LoRA: beyond the width of any model, where numbers cease to be finite."""


@dataclass(frozen=True)
class Adapter:
    """LoRA's settings: ``W x + (α/r) B A x`` at the named modules (Hu et al. 2021).

    ``targets`` may be ``("all-linear",)``: every linear layer but the output's; or empty: what PEFT takes by default
    for a model's family, or every linear layer where it has no default.  In a model that lacks one of ``ATTENTION``,
    these stand for PEFT's default.
    """

    rank: int = 16
    alpha: float = 32.0
    """LoRA's scale is alpha/rank"""
    targets: tuple[str, ...] = ATTENTION
    """modules that get an adapter (not given: these, or PEFT's default where the model lacks one of them); all-linear:
    all linear layers but the output; none: what PEFT takes for the model"""
    layers: Annotated[int, tyro.conf.arg(name="lora-layers")] = 0
    """how many of the uppermost layers get an adapter, 0: all; what is below runs once a response, not in every pass"""
    init: Annotated[Literal["b0", "a0"], tyro.conf.arg(name="lora-init")] = "b0"
    """which of LoRA's matrices begins at 0, the other at random: B, as is usual, or A"""

    def __post_init__(self) -> None:
        if self.layers < 0:
            raise InputError(f"--lora-layers must not be negative, got {self.layers}")
        if self.rank < 1:
            raise InputError(f"--rank must be at least 1, got {self.rank}")
        if self.rank > WIDEST:
            raise InputError(f"--rank must be at most {WIDEST}, got {self.rank}")
        if not 0 < self.alpha <= WIDEST:
            raise InputError(f"--alpha must be positive and at most {WIDEST}, got {self.alpha}")


class Policy:
    """``π_θ(y|x)``: a causal language model whose only trained weights are LoRA's."""

    def __init__(
        self, model: Any, tokenizer: Any, adapter: Adapter, key: Key, device: str = "cpu", chat: Chat = "no"
    ) -> None:
        """Put a fresh adapter (A random, B = 0) on a model; ``chat`` says whether a text is a chat's one message.

        Raises ``InputError`` if the model lacks the target modules or has an adapter already, the tokenizer has no end
        token, tokens that the model has not, or no chat template where one is asked for, or the machine not the device.
        """
        check_device(device)
        if isinstance(model, PeftModel) or any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            raise InputError("the model has an adapter already; merge it into the weights first")
        self.targets = _targets(model, adapter.targets)
        """names of the modules that have the adapter"""
        if tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no end token, so no response could end; give it one")
        rows = model.get_input_embeddings().weight.shape[0]
        beyond = {i for i in tokenizer.get_vocab().values() if i >= rows} - {tokenizer.pad_token_id}
        if beyond:
            raise InputError(
                f"the tokenizer has tokens up to number {max(beyond)}, but the model has embeddings for {rows} only; "
                "give it the tokenizer it was trained with"
            )
        _check_template(tokenizer, chat)
        self.tokenizer, self.adapter, self.device, self.chat = tokenizer, adapter, torch.device(device), chat
        self.end: int = tokenizer.eos_token_id
        self.ends = _ends(model, tokenizer)
        self.stops = torch.tensor(self.ends, device=self.device)
        self.drawable = _drawable(model, tokenizer, self.device)
        """which ids the tokenizer has, where the model has more; π is conditioned on them when a response is drawn"""
        self.context = context_of(model.config)
        self.route = Route()
        # Padding is masked everywhere; a tokenizer without a pad token that the model has pads with its end token.
        if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:
            tokenizer.pad_token = tokenizer.eos_token
        self.pad: int = tokenizer.pad_token_id
        config = LoraConfig(
            r=adapter.rank,
            lora_alpha=adapter.alpha,
            target_modules=list(self.targets),
            lora_dropout=0.0,
            bias="none",
            task_type="CAUSAL_LM",
            layers_to_transform=_upper(model.config, adapter.layers),
            fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),
        )
        try:
            with seeded(key.fold_in("adapter")):
                self.model = get_peft_model(model, config)
        except (ValueError, TypeError) as error:  # modules that PEFT does not adapt
            raise InputError(
                f"LoRA cannot be put on {', '.join(self.targets)}: {str(error).partition(chr(10))[0]}"
            ) from None
        if adapter.init == "a0":
            self._swap(key)
        self.model.to(self.device).eval()
        self.trunk = Trunk(self.model)
        self.meter = Meter()
        self.belongs = ""
        """the folder of the model that the adapter is for, as its own folder is to name it; empty: the model's own"""
        self.batch_tokens = 1024
        """padded tokens in one pass without gradients"""
        named = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.parameters: dict[str, nn.Parameter] = dict(sorted(named.items()))
        self.initial = self.state()

    @torch.no_grad()
    def _swap(self, key: Key) -> None:
        """Begin with A = 0 and B drawn as PEFT draws A."""
        with seeded(key.fold_in("adapter-b")):
            for layer in self.layers:
                layer.lora_A["default"].weight.zero_()
                nn.init.kaiming_uniform_(layer.lora_B["default"].weight, a=math.sqrt(5))

    @property
    def layers(self) -> list[LoraLayer]:
        """The adapted modules, in the model's order."""
        return [module for module in self.model.modules() if isinstance(module, LoraLayer)]

    @property
    def replaced(self) -> str:
        """Which modules have the adapter in place of those that the model lacks, in a clause; else empty."""
        there = {name.rpartition(".")[2] for name, _ in self.model.named_modules()}
        lacking = [name for name in self.adapter.targets if name not in there]
        if self.adapter.targets != ATTENTION or not lacking:
            return ""
        return f"it lacks {', '.join(lacking)} (--targets), so LoRA is on PEFT's default: {', '.join(self.targets)}"

    def state(self) -> dict[str, Tensor]:
        """Return a copy of θ, LoRA's matrices by name, on the CPU."""
        return {name: parameter.detach().cpu().clone() for name, parameter in self.parameters.items()}

    def theta_of(self, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return θ by this policy's names, from the contents of an adapter's file."""
        return {name: saved[name.replace(".default.", ".")] for name in self.parameters}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Set θ."""
        if state.keys() != self.parameters.keys():
            raise InputError("the saved adapter has other matrices than this policy; it was made by other settings")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state[name])

    @contextmanager
    def at(self, state: dict[str, Tensor]) -> Iterator[None]:
        """Work at another θ, then come back."""
        here = self.state()
        self.restore(state)
        try:
            yield
        finally:
            self.restore(here)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Work with the adapter off: ``π_ref``."""
        with self.model.disable_adapter():
            yield

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Work with ``W + (α/r) B A`` in place of ``W`` and the adapter: same map, fewer products.

        Afterwards the frozen weights are copied back, since subtracting what was added would round.  In bfloat16 adding
        would round away small updates, so nothing is merged.
        """
        weights = [layer.get_base_layer().weight for layer in self.layers]
        if any(weight.dtype != torch.float32 for weight in weights):
            yield
            return
        before = [weight.detach().clone() for weight in weights]
        self.model.merge_adapter()
        try:
            yield
        finally:
            with torch.no_grad():
                for layer, weight, kept in zip(self.layers, weights, before, strict=True):
                    layer.merged_adapters.clear()
                    weight.copy_(kept)

    def check_context(self, prompt: int, response: int) -> None:
        """Raise ``InputError`` if a prompt and a response, of so many tokens, go beyond the model's positions."""
        if self.context is not None and prompt + response > self.context:
            raise InputError(
                f"a prompt of {prompt} tokens and a response of up to {response} need {prompt + response} positions, "
                f"and the model has {self.context}; lower --tokens or shorten the prompts"
            )

    def encode(self, prompts: Sequence[Prompt], longest: int) -> list[tuple[int, ...]]:
        """Return the prompts' token ids; ``InputError`` for one without tokens or with more than ``longest``."""
        encoded = [self.tokens_of(prompt) for prompt in prompts]
        for prompt, ids in zip(prompts, encoded, strict=True):
            if not ids or not text_of(prompt).strip():
                raise InputError("a prompt is empty; drop it from the prompt set")
            if len(ids) > longest:
                raise InputError(
                    f"a prompt has {len(ids)} tokens, over the limit of {longest}: {text_of(prompt)[:60]!r}…; "
                    "raise --prompt-tokens or shorten it"
                )
        return encoded

    def tokens_of(self, prompt: Prompt) -> tuple[int, ...]:
        """Return a prompt's token ids.

        A text begins as the tokenizer begins texts (at most one of each special token), and never ends with an end
        token, since a response follows.  A conversation goes through the tokenizer's chat template, as does a text
        where the policy's ``chat`` is on; without a template it is written out.  What reads like a special token
        within a prompt is plain text.
        """
        if isinstance(prompt, str) and self.chat == "yes":
            prompt = (Message("user", prompt),)
        if isinstance(prompt, str) or not self.tokenizer.chat_template:
            return (*self._opening, *plain(self.tokenizer, continuable(prompt)))
        return tuple(conversation(self.tokenizer, prompt, answer=True))

    def response_of(self, text: str, ended: bool = True) -> tuple[int, ...]:
        """Return a written response's tokens, and the end token behind them; what reads like a special one is text.

        A response that was cut (not ``ended``) has no end token, unless it has no other.
        """
        tokens = tuple(plain(self.tokenizer, text))
        return tokens if tokens and not ended else (*tokens, self.end)

    def as_response(self, text: str) -> Row:
        """Return a text as a response to nothing: after what the tokenizer puts before texts, or after an end token."""
        return Row(self._opening or (self.end,), tuple(plain(self.tokenizer, text)))

    @cached_property
    def _opening(self) -> tuple[int, ...]:
        """The special tokens that the tokenizer puts before a text, each once."""
        bare, dressed = (self.tokenizer("a", add_special_tokens=special).input_ids for special in (False, True))
        starts = (i for i in range(len(dressed)) if bare and dressed[i : i + len(bare)] == bare)
        return tuple(dict.fromkeys(dressed[: next(starts, 0)]))

    def decode(self, response: Sequence[int]) -> str:
        """Return a response's text, without its end token."""
        if response and response[-1] in self.ends:
            response = response[:-1]
        text: str = self.tokenizer.decode(response, skip_special_tokens=True)
        return text

    def padded(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """Return token ids padded on the right, ``(n, T)``, and where the responses' tokens are (booleans)."""
        longest = max(row.tokens for row in rows)
        ids = torch.full((len(rows), longest), self.pad)
        inside = torch.zeros(len(rows), longest, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : row.tokens] = torch.tensor(row.prompt + row.response)
            inside[i, len(row.prompt) : row.tokens] = True
        return ids.to(self.device), inside.to(self.device)

    def token_log_probs(self, rows: Sequence[Row]) -> Float[Tensor, "n t"]:
        """Return ``log π_θ(y_t | x, y_<t)`` of the rows' response tokens, as ``token_log_probs`` does."""
        return token_log_probs(self.model, *self.padded(rows), self.route.padded)

    @contextmanager
    def begun(self, packed: Packed, once: Mapping[Row, Tensor] | None = None) -> Iterator[Tensor | None]:
        """Let a pass over packed rows begin above the layers that θ does not change, if it may; yield where it begins.

        What those layers make of rows is computed and kept here where it is not known; ``once`` says that the rows are
        seen but once, and has it where it is known: where it is not, the pass begins below.
        """
        if not self.begins_above or (once is not None and not once.keys() >= set(packed.rows)):
            yield None
            return
        if once is None:
            self.go_below(packed.rows)
        with self.trunk.given(packed, once) as table:
            yield table

    @property
    def begins_above(self) -> bool:
        """Whether passes begin above the layers that θ does not change."""
        return self.route.cached and self.route.shared and self.trunk.there

    def go_below(self, rows: Sequence[Row]) -> None:
        """Compute what the layers below the adapter make of rows, where it is not known."""

        def forward(what: Tensor | Packed, memory: DynamicCache | None = None) -> Any:
            if isinstance(what, Packed):
                where = passes.placed(what, self._reach, next(self.head.parameters()).dtype)
                return self.model(input_ids=what.ids, use_cache=False, **where)
            return self.model(input_ids=what, cache=memory, use_cache=True)

        for row in self.trunk.missing(rows):
            with self.meter.stage("below"):
                self.meter.tokens["below"] += self.trunk.keep(forward, row, self.device)
        self.trunk.shrink(rows)

    def together(self, rows: Sequence[Row]) -> None:
        """Let rows of a prompt go through the layers below the adapter side by side, whichever of them is asked for."""
        groups: dict[tuple[int, ...], list[Row]] = {}
        for row in rows:
            groups.setdefault(row.prompt, []).append(row)
        for group in groups.values():
            self.trunk.together(group)

    def summed(
        self, groups: Sequence[Sequence[Row]], model: Any = None, once: Mapping[Row, Tensor] | None = None
    ) -> Float[Tensor, " n"]:
        """Return ``log π_θ(y|x)`` of rows in nats, group by group; differentiable.  Rows of a group share their prompt.

        ``model`` stands for the policy's where a trainer has wrapped it; ``once`` is for rows that are seen but once,
        as ``begun`` takes it.
        """
        model = self.model if model is None else model
        if not self.route.shared:
            rows = [row for group in groups for row in group]
            return token_log_probs(model, *self.padded(rows), self.route.padded).sum(-1)
        packed = passes.pack(groups, self.pad, self.device, bundled=True)
        with self.begun(packed, once):
            return passes.log_probs(model, self.head, packed, self._reach, self.route.fused)

    @property
    def _reach(self) -> dict[str, int | None] | None:
        return passes.windows(self.model.config.get_text_config())

    @property
    def head(self) -> nn.Module:
        """The output's layer."""
        head: nn.Module = self.model.get_base_model().get_output_embeddings()
        return head

    @torch.no_grad()
    def log_probs(
        self, rows: Sequence[Row], stage: str, once: Mapping[Row, Tensor] | None = None
    ) -> Float[Tensor, " n"]:
        """Return ``log π(y|x)`` of every row in nats, summed over its tokens, in float64 on the CPU.

        ``once`` is for rows that are seen but once, as ``begun`` takes it.
        """
        out = torch.zeros(len(rows), dtype=torch.float64)
        groups = grouped(rows, self.batch_tokens) if self.route.shared else [[i] for i in range(len(rows))]
        lengths = [read_once([rows[i] for i in group]) for group in groups]
        for places in batches(lengths, self.batch_tokens):
            part = [[rows[i] for i in groups[place]] for place in places]
            with self.meter.stage(stage, passes.read(part) if self.route.shared else sum(map(read_once, part))):
                out[[i for place in places for i in groups[place]]] = self.summed(part, once=once).double().cpu()
        return out

    def files(self) -> dict[str, bytes]:
        """Return the adapter as the files of a PEFT folder."""
        tensors = {k: v.detach().cpu().contiguous() for k, v in get_peft_model_state_dict(self.model).items()}
        config = self.model.peft_config["default"].to_dict()
        plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
        plain["inference_mode"] = True
        if self.belongs:
            plain["base_model_name_or_path"] = self.belongs
        return {
            "adapter_config.json": (dumps(plain, indent=2, sort_keys=True) + "\n").encode(),
            "adapter_model.safetensors": save(tensors, {"format": "pt"}),
        }

    def save(self, folder: Path) -> None:
        """Write the adapter as a PEFT folder, each file whole."""
        for name, content in self.files().items():
            write_bytes(folder / name, content)


def token_log_probs(
    model: Any, ids: Int64[Tensor, "n t"], inside: Bool[Tensor, "n t"], padded: bool = True
) -> Float[Tensor, "n s"]:
    """Return ``log π(y_t | x, y_<t)`` of the responses' tokens (``inside``) in nats, 0 at other places.

    Rows are padded on the right and attention is causal, so padding changes nothing and needs no mask; a model for
    which that does not hold reads one row at a time, without padding.  Logits are made only from the first response
    token of the batch on.
    """
    start = int(inside.int().argmax(1).min())
    if not padded and len(ids) > 1:
        out = ids.new_zeros(len(ids), ids.shape[1] - start, dtype=torch.float32)
        for i, own in enumerate(inside):
            first, last = int(own.int().argmax()), int(own.nonzero().max()) + 1
            out[i, first - start : last - start] = token_log_probs(model, ids[i : i + 1, :last], own[None, :last])[0]
        return out
    keep = torch.arange(start - 1, ids.shape[1] - 1, device=ids.device)
    logits = model(input_ids=ids, logits_to_keep=keep, use_cache=False).logits
    if logits.shape[1] != len(keep):  # of a model that always makes all
        logits = logits[:, keep]
    logits = logits.float()
    chosen = logits.gather(-1, ids[:, start:, None]).squeeze(-1) - logits.logsumexp(-1)
    return torch.where(inside[:, start:], chosen, 0.0)


def grouped(rows: Sequence[Row], limit: int) -> list[list[int]]:
    """Return the places of rows in groups that share a prompt, of at most ``limit`` tokens each, or one row."""
    out: list[list[int]] = []
    last: dict[tuple[int, ...], int] = {}
    spent: list[int] = []
    for place, row in enumerate(rows):
        group = last.get(row.prompt)
        if group is None or spent[group] + len(row.response) > limit:
            group = last[row.prompt] = len(out)
            out.append([])
            spent.append(len(row.prompt))
        out[group].append(place)
        spent[group] += len(row.response)
    return out


def _check_template(tokenizer: Any, chat: str) -> None:
    if chat == "yes" and not tokenizer.chat_template:
        raise InputError("prompts are to be chat messages, but the tokenizer has no chat template; use --chat no")


def _upper(config: Any, count: int) -> list[int] | None:
    """Return the numbers of a model's uppermost layers; None for all."""
    there = getattr(config.get_text_config(), "num_hidden_layers", None)
    if not count or there is None:
        return None
    if count > there:
        raise InputError(f"--lora-layers {count}: the model has {there} layers; 0 means all")
    return list(range(there - count, there))


def _adaptable(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _targets(model: Any, named: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the modules to adapt; ``InputError`` for one that is not there, and for the output layer.

    The output layer is not adapted: where it shares its weights with the embedding it cannot be adapted alone, and the
    trainer multiplies by its weights directly, so an adapter there would never be trained.
    """
    linear = {name: module for name, module in model.named_modules() if _adaptable(module)}
    head = model.get_output_embeddings()
    output = {name.rpartition(".")[2] for name, module in linear.items() if module is head}
    there = sorted({name.rpartition(".")[2] for name in linear} - output)
    if named == ("all-linear",):
        named = tuple(there)
    elif not named or (named == ATTENTION and not set(named) <= set(there)):
        known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type, ())
        usual = tuple(name for name in known if name in there) if not isinstance(known, str) else ()  # else a pattern
        named = usual or named or tuple(there)
    for name in named:
        if name in output:
            raise InputError(f"{name} is the output layer, which gets no adapter; leave it out (--targets)")
    if missing := [name for name in named if name not in there]:
        none = f", and PEFT has no default for {model.config.model_type}" if named == ATTENTION else ""
        raise InputError(
            f"the model has no modules named {', '.join(missing)}{none}; it has {', '.join(there)} (--targets)"
        )
    return named


def _ends(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return all tokens that end a response: the tokenizer's, and those by which the library's ``generate`` stops."""
    named = getattr(model.generation_config, "eos_token_id", None)
    rows = model.get_input_embeddings().weight.shape[0]
    found = {tokenizer.eos_token_id, *(named if isinstance(named, Sequence) else [named])}
    return tuple(sorted(i for i in found if i is not None and 0 <= i < rows))


def _drawable(model: Any, tokenizer: Any, device: torch.device) -> Bool[Tensor, " v"] | None:
    """Return which of a model's token ids its tokenizer has; None where it has all."""
    known = torch.tensor(sorted(set(tokenizer.get_vocab().values())))
    head = model.get_output_embeddings()
    out = torch.zeros((model.get_input_embeddings() if head is None else head).weight.shape[0], dtype=torch.bool)
    out[known[known < len(out)]] = True
    return None if bool(out.all()) else out.to(device)


def context_of(config: Any) -> int | None:
    """Return how many positions a model has; None for one without a limit, such as one with ALiBi or a state space."""
    text = config.get_text_config()
    found = (getattr(text, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
    return next((limit for limit in found if isinstance(limit, int) and limit > 0), None)


def batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Return the rows' places in batches of like length: at most ``batch_tokens`` padded tokens each, or one row."""
    out: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if out and (len(out[-1]) + 1) * lengths[out[-1][0]] <= batch_tokens:
            out[-1].append(place)
        else:
            out.append([place])
    return out


def trainer_settings(policy: Policy, key: Key) -> dict[str, Any]:
    """Return what all of TRL's trainers are told: the policy's device, the order of the data, and to leave no trace."""
    return {
        "weight_decay": 0.0,
        "max_length": None,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": policy.device.type == "cpu",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": int(key.fold_in("order").generators()[0].integers(2**31)),
    }


def check_device(device: str) -> None:
    """Raise ``InputError`` if a device is not here."""
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise InputError(f"device {device!r} is not available here; use cpu")


def load_policy(
    name: str,
    adapter: Adapter,
    key: Key,
    device: str = "cpu",
    dtype: str = "float32",
    chat: Literal["auto", "yes", "no"] = "no",
    trust: bool = False,
    weights: Key | None = None,
    option: str = "--model",
) -> Policy:
    """Return the policy of a named asset, a local directory, a hub id, or a tiny random model (``TINY``).

    A hub id is looked up in the local hub cache first; the network is used only if it is not there.  A PEFT folder is
    merged into its model, which then is the reference.  ``weights`` draws a tiny model (default: ``key``, which draws
    the adapter); all seeds of a run begin with one model.  ``chat="auto"`` treats texts as messages where the tokenizer
    has a chat template.  Raises ``InputError``, with the ``option`` that names the model, if there is none, its files
    are not right, it needs code of its own and ``trust`` is not given, or it cannot be adapted.
    """
    with naming(option):
        check_device(device)
        if name in TINY:
            tiny = tiny_model(name, (weights or key).fold_in("model")).to(DTYPES[dtype])
            return Policy(tiny, byte_tokenizer(), adapter, key, device, "yes" if chat == "yes" else "no")
        loaded = folders.load(AutoModelForCausalLM, _folder(name, trust), "model", dtype, trust)
        if chat == "auto":
            chat = "yes" if loaded.tokenizer.chat_template else "no"
        try:
            return Policy(loaded.model, loaded.tokenizer, adapter, key, device, chat)
        except InputError as error:
            raise InputError(f"model {name}: {error}") from None


def check_model(
    name: str, adapter: Adapter, tokens: int, chat: Literal["auto", "yes", "no"], trust: bool, option: str = "--model"
) -> None:
    """Raise ``InputError`` if a model's config.json or tokenizer shows that ``load_policy``, or a response, will fail.

    ``tokens`` is the longest response.  No weight is read.
    """
    with naming(option):
        folder = None if name in TINY else _folder(name, trust)
        config = _config(name, folder, trust)
        _upper(config, adapter.layers)
        if (context := context_of(config)) is not None and tokens >= context:
            raise InputError(
                f"--tokens {tokens}: the model has {context} positions, for a prompt and its response; lower it"
            )
        if chat == "yes":
            _check_template(folders.load_tokenizer(folder, "model", trust) if folder else byte_tokenizer(), chat)


def model_bytes(name: str, dtype: str, trust: bool, option: str = "--model") -> int:
    """Return the bytes of a model's weights, which are not read: its config tells how many there are."""
    with naming(option):
        config = _config(name, None if name in TINY else _folder(name, trust), trust)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
    return DTYPES[dtype].itemsize * sum(p.numel() for p in model.parameters())


def _config(name: str, folder: Path | None, trust: bool) -> Any:
    return folders.load_config(folder, "model", trust) if folder else tiny_config(name)


def weights_hash(name: str, trust: bool = False, option: str = "--model") -> str:
    """Return a SHA-256 of the files that ``load_policy`` reads for a name, or of the name of a tiny random model."""
    with naming(option):
        return hashlib.sha256(name.encode()).hexdigest() if name in TINY else folders.fingerprint(_folder(name, trust))


def distinct(names: Sequence[str], trust: bool, option: str) -> None:
    """Raise ``InputError`` if a name, which the option brought, is no model's, or two are one model's."""
    places: dict[Path, str] = {}
    for name in names:
        with naming(option):
            place = Path(name) if name in TINY else _folder(name, trust).resolve()
        if place in places:
            raise InputError(f"{option}: {name} and {places[place]} are the same model")
        places[place] = name


def _folder(name: str, trust: bool) -> Path:
    if name in assets.models():
        return assets.find(name)
    return folders.locate(name, "model", [*assets.models(), *TINY], trust)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte and an end token: nothing to download, every text can be written."""
    letters = sorted(ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)} | {"<end>": len(letters)}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")


def tiny_model(name: str, key: Key, width: int = 32, layers: int = 2) -> Any:
    """Return a random model of 2 layers over the byte tokenizer's vocabulary, of Llama's, Gemma's or GPT-2's kind."""
    config = tiny_config(name, width, layers)
    with seeded(key):
        return AutoModelForCausalLM.from_config(config).float()


def tiny_config(name: str, width: int = 32, layers: int = 2) -> Any:
    """Return the config of a tiny model."""
    vocabulary = len(ByteLevel.alphabet()) + 1
    # Weights larger than usual: the model then has preferences, and its adapter something to move.
    common = {
        "vocab_size": vocabulary,
        "bos_token_id": None,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
        "initializer_range": 0.2,
    }
    stack = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
    match name:
        case "tiny-llama":
            return LlamaConfig(**common, **stack)
        case "tiny-gemma":
            return Gemma3TextConfig(**common, **stack, head_dim=8, sliding_window=16, query_pre_attn_scalar=8)
        case "tiny-gpt2":
            return GPT2Config(
                **common,
                n_embd=width,
                n_layer=layers,
                n_head=4,
                n_positions=512,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
            )
        case _:
            raise unknown("tiny model", name, TINY)
