"""What tests of the language-model loop share: tiny policies, their rows, and the smallest runs."""

from dataclasses import replace
from pathlib import Path

import torch
import transformers as hf

from bandits.core.rng import Key
from bandits.runs.directory import Ledger
from llm_loop.__main__ import main
from llm_loop.config import PRESETS, Alignment, Evaluation
from llm_loop.models import Adapter, Policy, Row, byte_tokenizer, load_policy
from llm_loop.run import AlignmentStudy, Cell
from llm_loop.sampling import Decoding
from llm_loop.seeding import seeded

STACK = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 257,
}
BERT = hf.BertConfig(**STACK, max_position_embeddings=24)
TARGETS = {"tiny-gpt2": ("c_attn", "c_proj")}


def tiny(name: str, moved: bool = True, seed: int = 0, rank: int = 4) -> Policy:
    """A tiny policy, by default away from the reference."""
    policy = load_policy(name, Adapter(rank, 2.0 * rank, TARGETS.get(name, ("q_proj", "v_proj", "o_proj"))), Key(seed))
    if moved:
        generator = torch.Generator().manual_seed(seed)
        policy.restore({k: v + 0.2 * torch.randn(v.shape, generator=generator) for k, v in policy.state().items()})
    return policy


def rows_of(policy: Policy) -> list[Row]:
    """Rows of unequal prompts and responses; one ends, one has a single token."""
    prompts = policy.encode(["hello there", "abc", "a somewhat longer prompt, with punctuation."], 64)
    responses = [(1, 2, 3), (5, 6, 7, 8, 9, 10, 11, policy.end), (77,)]
    return [Row(p, r) for p, r in zip(prompts, responses, strict=True)]


def classifier(folder, config=BERT, tokenizer=None, seed=0, **settings):
    """Save a random classifier; return its folder."""
    config = type(config)(**config.to_dict() | {"num_labels": 1} | settings)
    with seeded(Key(seed)):
        model = hf.AutoModelForSequenceClassification.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    (tokenizer or byte_tokenizer()).save_pretrained(folder)
    return folder


SMOKE = PRESETS["smoke"][1]
FEW = replace(
    SMOKE,
    evaluation=Evaluation(prompts=2, duels=1, probes=2),
    decoding=Decoding(tokens=5),
    training=replace(SMOKE.training, epochs=1),
)


def run_cell(alignment: Alignment, strategy: str, seed: int, folder: Path) -> None:
    """Play one cell of an experiment."""
    Ledger(folder).close(*AlignmentStudy.of(alignment).play(Cell(strategy, seed), folder))


def smoke(folder: Path, *options: str) -> int:
    """Run the smoke preset in this process."""
    return main(["smoke", "--output", str(folder), "--jobs", "1", *options])
