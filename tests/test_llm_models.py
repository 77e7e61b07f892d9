"""The policy against plain full-softmax log-probabilities, and what it refuses."""

import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import rows_of, tiny
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, OPTConfig, Phi3Config

from bandits.core.errors import InputError
from bandits.core.rng import Key
from llm_loop import folders
from llm_loop.data.chat import Message
from llm_loop.models import (
    ATTENTION,
    TINY,
    Adapter,
    Policy,
    batches,
    byte_tokenizer,
    load_policy,
    tiny_model,
    weights_hash,
)
from llm_loop.seeding import seeded


@pytest.fixture(params=TINY, scope="module")
def policy(request):
    return tiny(request.param)


def by_hand(policy, row):
    """``Σ_t log softmax(logits)_t`` of one row alone, in float64, from all logits."""
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([row.prompt + row.response])).logits[0].double()
    logs = torch.log_softmax(logits, -1)
    start = len(row.prompt)
    return sum(float(logs[start + i - 1, token]) for i, token in enumerate(row.response))


def test_log_probabilities_are_those_computed_by_hand(policy):
    rows = rows_of(policy)
    assert policy.log_probs(rows, "test").tolist() == pytest.approx([by_hand(policy, row) for row in rows], abs=2e-5)


def test_padding_changes_no_log_probability(policy):
    rows = rows_of(policy)
    alone = [float(policy.log_probs([row], "test")[0]) for row in rows]
    assert policy.log_probs(rows, "test").tolist() == pytest.approx(alone, abs=2e-5)


def test_merging_keeps_the_map_and_leaves_no_trace(policy):
    rows = rows_of(policy)
    weights = [p.detach().clone() for p in policy.model.parameters()]
    plain = policy.log_probs(rows, "test")
    with policy.merged():
        merged = policy.log_probs(rows, "test")
    assert torch.allclose(plain, merged, atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(weights, policy.model.parameters(), strict=True))
    assert torch.equal(plain, policy.log_probs(rows, "test"))


def test_the_reference_is_the_policy_at_its_start(policy):
    rows = rows_of(policy)
    here = policy.state()
    with policy.reference():
        off = policy.log_probs(rows, "test")
    with policy.at(policy.initial):
        assert torch.equal(off, policy.log_probs(rows, "test"))
    assert all(torch.equal(here[name], value) for name, value in policy.state().items())
    assert not torch.allclose(off, policy.log_probs(rows, "test"))


@pytest.mark.parametrize("init", ["b0", "a0"])
def test_in_half_precision_and_with_dropout_the_policy_begins_at_the_reference(init):
    config = GPT2Config(
        vocab_size=257, n_embd=32, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1
    )
    with seeded(Key(0)):
        model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    policy = Policy(model, byte_tokenizer(), Adapter(4, 8.0, ("c_attn",), init=init), Key(1))
    rows = rows_of(policy)
    here = policy.log_probs(rows, "test")
    assert torch.equal(here, policy.log_probs(rows, "test"))
    with policy.reference():
        assert torch.equal(here, policy.log_probs(rows, "test"))


def test_a_saved_adapter_is_a_peft_folder(policy, tmp_path):
    policy.save(tmp_path)
    with seeded(Key(5)):
        base = tiny_model(policy_name(policy), Key(0).fold_in("model"))
        loaded = PeftModel.from_pretrained(base, tmp_path).eval()
    rows = rows_of(policy)
    other = Policy.__new__(Policy)
    other.__dict__.update(policy.__dict__ | {"model": loaded})
    assert torch.equal(policy.log_probs(rows, "test"), other.log_probs(rows, "test"))


def policy_name(policy):
    kinds = {"llama": "tiny-llama", "gemma3_text": "tiny-gemma", "gpt2": "tiny-gpt2"}
    return kinds[policy.model.config.model_type]


def test_the_meter_counts_tokens_without_padding(policy):
    rows = rows_of(policy)
    before = policy.meter.tokens["count"]
    policy.log_probs(rows, "count")
    assert policy.meter.tokens["count"] - before == sum(row.tokens for row in rows)


def test_adapters_differ_by_luck_alone():
    one, same, other = (tiny("tiny-llama", moved=False, seed=s).state() for s in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert all(bool((value == 0).all()) for name, value in one.items() if "lora_B" in name)


@given(st.text(max_size=40))
def test_byte_tokens_spell_every_text(text):
    tokenizer = byte_tokenizer()
    ids = tokenizer(text).input_ids
    assert len(ids) == len(text.encode("utf-8", "replace"))
    assert tokenizer.decode(ids) == text


@given(st.lists(st.integers(1, 30), min_size=1, max_size=30), st.integers(1, 100))
def test_batches_hold_every_row_once_and_keep_their_size(lengths, limit):
    parts = batches(lengths, limit)
    assert sorted(place for part in parts for place in part) == list(range(len(lengths)))
    assert all(len(part) == 1 or len(part) * max(lengths[i] for i in part) <= limit for part in parts)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: load_policy("tiny-llama", Adapter(targets=("c_attn",)), Key(0)), "no modules named c_attn; it has"),
        (lambda: load_policy("no/such-model-here", Adapter(), Key(0)), "cannot load model 'no/such-model-here'"),
        (lambda: load_policy("tiny-llama", Adapter(), Key(0), "cuda"), "not available here"),
        (lambda: Adapter(rank=0), "--rank must be at least 1"),
        (lambda: tiny("tiny-llama").encode([" "], 9), "a prompt is empty"),
        (lambda: tiny("tiny-llama").encode(["ten tokens"], 9), "10 tokens, over the limit of 9"),
        (lambda: tiny("tiny-llama").restore({}), "other matrices"),
    ],
)
def test_refusals_say_what_is_wrong(make, words, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=words):
        make()


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot read its config\.json"):
        load_policy(str(tmp_path), Adapter(), Key(0))


def test_a_local_directory_is_a_model(tmp_path):
    tiny_model("tiny-llama", Key(0).fold_in("model")).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    there = load_policy(str(tmp_path), Adapter(4, 8.0, ("q_proj",)), Key(0))
    here = load_policy("tiny-llama", Adapter(4, 8.0, ("q_proj",)), Key(0))
    rows = rows_of(here)
    assert torch.equal(there.log_probs(rows, "test"), here.log_probs(rows, "test"))


def test_a_tokenizer_without_a_pad_token_pads_with_its_end_and_without_an_end_is_refused():
    model, tokenizer = tiny_model("tiny-llama", Key(0)), byte_tokenizer()
    tokenizer.pad_token = None
    policy = Policy(model, tokenizer, Adapter(4, 8.0, ("q_proj",)), Key(0))
    assert policy.pad == policy.end == 256
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="no end token"):
        Policy(tiny_model("tiny-llama", Key(0)), tokenizer, Adapter(4, 8.0, ("q_proj",)), Key(0))


def saved(folder, model=None, tokenizer=None):
    """Save a tiny model and its tokenizer."""
    (model or tiny_model("tiny-llama", Key(0).fold_in("model"))).save_pretrained(folder)
    (tokenizer or byte_tokenizer()).save_pretrained(folder)
    return folder


def edit_weights(change):
    """Return what rewrites the weights of a folder."""

    def damage(folder):
        file = folder / "model.safetensors"
        tensors = load_file(file)
        save_file(change(tensors) or tensors, file, {"format": "pt"})

    return damage


def edit_json(name, **changes):
    def damage(folder):
        file = folder / name
        file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | changes))

    return damage


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
WEIGHTS = "model.safetensors"


def pickled(folder):
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")


def sharded(folder):
    tiny_model("tiny-llama", Key(0)).save_pretrained(folder, max_shard_size="20KB")
    (folder / WEIGHTS).unlink()
    next(iter(sorted(folder.glob("model-*")))).unlink()


def set_to_nan(tensors):
    tensors["model.norm.weight"][3] = torch.nan


DAMAGES = {
    "half missing": (
        edit_weights(lambda t: dict(list(t.items())[::2])),
        r"lack 10 weights of the model: model\.embed_tokens\.weight, .*, .*, …; none is made up",
    ),
    "no head": (
        edit_weights(lambda t: {k: v for k, v in t.items() if k != "lm_head.weight"}),
        r"lack 1 weights of the model: lm_head\.weight",
    ),
    "renamed": (edit_weights(lambda t: {f"_orig_mod.{k}": v for k, v in t.items()}), "does not have: _orig_mod"),
    "left over": (edit_weights(lambda t: t | {"extra.weight": torch.ones(2)}), r"does not have: extra\.weight"),
    "misshapen": (
        edit_weights(lambda t: t | {"lm_head.weight": torch.ones(3, 32)}),
        r"do not fit its config\.json, first lm_head\.weight: \[3, 32\] in the files, \[257, 32\]",
    ),
    "not finite": (edit_weights(set_to_nan), r"not finite numbers: model\.norm\.weight"),
    "cut": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]), "empty, cut short or damaged"),
    "empty": (write(WEIGHTS, b""), r"\(0 bytes\) is empty, cut short"),
    "pointer": (write(WEIGHTS, POINTER), "git-LFS pointer"),
    "pointer for settings": (write("config.json", POINTER), "git-LFS pointer"),
    "pickled": (pickled, r"but pytorch_model\.bin, a pickle, which may run code"),
    "shard missing": (sharded, "cannot read .*model-00001-of-"),
    "quantised": (
        edit_json("config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        r"quantised \(gptq\)",
    ),
    "no settings": (write("config.json", b"[]"), "holds no settings"),
    "no JSON": (write("config.json", b"{"), "is not JSON"),
    "unknown kind": (edit_json("config.json", model_type="no-such-kind"), "cannot be loaded"),
    "odd settings": (edit_json("config.json", num_attention_heads="many"), "cannot be loaded"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "its tokenizer cannot be loaded"),
    "large tokenizer": (lambda f: grown(f), "tokens up to number 257, but the model has embeddings for 257 only"),
}


def grown(folder):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens("word")
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("sound"))


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_refused_in_one_line(name, sound, tmp_path, capfd):
    damage, words = DAMAGES[name]
    folder = shutil.copytree(sound, tmp_path / "model")
    damage(folder)
    capfd.readouterr()
    with pytest.raises(InputError, match=words) as refusal:
        load_policy(str(folder), Adapter(4, 8.0, ("q_proj",)), Key(0))
    assert "\n" not in str(refusal.value)
    assert "MISSING" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("form", ["tied", "sharded", "half", "no pad", "pad beyond", "no bos"])
def test_sound_folders_of_all_forms_are_read(form, tmp_path):
    model, tokenizer, more = tiny_model("tiny-llama", Key(0)), byte_tokenizer(), {}
    match form:
        case "tied":
            model.config.tie_word_embeddings = True
            model.tie_weights()
        case "sharded":
            more = {"max_shard_size": "20KB"}
        case "half":
            for parameter in model.parameters():
                parameter.data = parameter.data.bfloat16().float()
            more = {"state_dict": {k: v.bfloat16() for k, v in model.state_dict().items()}}
        case "no pad":
            tokenizer.pad_token = None
        case "pad beyond":
            tokenizer.add_special_tokens({"pad_token": "<pad>"})
    model.save_pretrained(tmp_path, **more)
    tokenizer.save_pretrained(tmp_path)
    policy = load_policy(str(tmp_path), Adapter(4, 8.0, ("q_proj",)), Key(0))
    assert policy.pad == policy.end == policy.tokenizer.pad_token_id == 256
    rows = rows_of(policy)
    model = model.eval()
    for row, found in zip(rows, policy.log_probs(rows, "test").tolist(), strict=True):
        with torch.no_grad():
            logs = model(input_ids=torch.tensor([row.prompt + row.response])).logits[0].double().log_softmax(-1)
        start = len(row.prompt) - 1
        assert found == pytest.approx(sum(float(logs[start + i, t]) for i, t in enumerate(row.response)), abs=1e-4)


@pytest.mark.slow
def test_an_adapter_is_merged_and_becomes_the_reference(sound, tmp_path):
    trained = load_policy(str(sound), Adapter(4, 8.0, ("q_proj", "o_proj")), Key(0))
    trained.restore({k: v + 0.2 for k, v in trained.state().items()})
    trained.save(tmp_path)
    rows = rows_of(trained)
    policy = load_policy(str(tmp_path), Adapter(2, 4.0, ("v_proj",)), Key(1))
    assert torch.allclose(policy.log_probs(rows, "test"), trained.log_probs(rows, "test"), atol=1e-4)
    with policy.reference():
        reference = policy.log_probs(rows, "test")
    assert torch.equal(policy.log_probs(rows, "test"), reference)


@pytest.mark.slow
def test_an_adapter_of_an_adapter_is_merged_after_it(sound, tmp_path):
    """What a run leaves that began by tuning: the policy's adapter was made for the tuned model's."""
    tuned = load_policy(str(sound), Adapter(4, 8.0, ("q_proj", "o_proj")), Key(0))
    tuned.restore({k: v + 0.2 for k, v in tuned.state().items()})
    tuned.save(tmp_path / "sft")
    trained = load_policy(str(tmp_path / "sft"), Adapter(2, 4.0, ("o_proj", "v_proj")), Key(1))
    trained.restore({k: v - 0.2 for k, v in trained.state().items()})
    trained.belongs = "../sft"
    trained.save(tmp_path / "dpo")
    policy = load_policy(str(tmp_path / "dpo"), Adapter(2, 4.0, ("v_proj",)), Key(2))
    rows = rows_of(policy)
    assert torch.allclose(policy.log_probs(rows, "test"), trained.log_probs(rows, "test"), atol=1e-3)
    assert not torch.allclose(policy.log_probs(rows, "test"), tuned.log_probs(rows, "test"), atol=0.05)
    before = weights_hash(str(tmp_path / "dpo"))
    edit_json("adapter_config.json", lora_alpha=9)(tmp_path / "sft")
    assert weights_hash(str(tmp_path / "dpo")) != before
    edit_json("adapter_config.json", base_model_name_or_path="../dpo")(tmp_path / "sft")
    with pytest.raises(InputError, match="made, in the end, for itself"):
        load_policy(str(tmp_path / "dpo"), Adapter(2, 4.0, ("v_proj",)), Key(2))


KINDS = {
    "dora": (LoraConfig(r=2, target_modules=["q_proj", "o_proj"], use_dora=True), ""),
    "rank-stabilised": (LoraConfig(r=2, target_modules=["q_proj"], use_rslora=True, lora_alpha=3), ""),
    "layers of unlike rank": (LoraConfig(r=2, target_modules=["q_proj", "v_proj"], rank_pattern={"q_proj": 5}), ""),
    "with a head": (LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]), ""),
    "on the embedding": (
        LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"]),
        "only in the adapter or the model",
    ),
    "ia3": (IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]), ""),
    "loha": (LoHaConfig(r=2, target_modules=["q_proj"]), ""),
    "prompt": (PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), "PROMPT_TUNING cannot be merged"),
    "prefix": (PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), "PREFIX_TUNING cannot be merged"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_any_kind_is_merged_exactly_or_refused(kind, sound, tmp_path):
    config, refused = KINDS[kind]
    with seeded(Key(3)):
        adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(sound), config)
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and not name.endswith("magnitude_vector.default.weight"):
                parameter.data += 0.2 * torch.randn_like(parameter)
    adapted.eval().save_pretrained(tmp_path)
    own = Adapter(2, 4.0, ("v_proj",))
    if refused:
        with pytest.raises(InputError, match=refused):
            load_policy(str(tmp_path), own, Key(1))
        return
    policy = load_policy(str(tmp_path), own, Key(1))
    rows = rows_of(policy)
    here = policy.log_probs(rows, "test")
    with policy.reference():
        assert torch.equal(here, policy.log_probs(rows, "test"))  # implicit rewards are exactly 0
    plain = load_policy(str(sound), own, Key(1)).log_probs(rows, "test")
    assert not torch.allclose(here, plain, atol=0.05)
    policy.model = adapted
    assert here.tolist() == pytest.approx([by_hand(policy, row) for row in rows], abs=1e-3)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (edit_json("adapter_config.json", base_model_name_or_path=None), "does not say which model"),
        (edit_json("adapter_config.json", base_model_name_or_path="./gone"), "no such directory"),
        (edit_json("adapter_config.json", peft_type="NO_SUCH"), "its adapter cannot be read"),
        (edit_json("adapter_config.json", target_modules=["q_proj", "v_proj"]), "only in the adapter or the model"),
        (edit_json("adapter_config.json", r=3), "does not fit"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(POINTER), "git-LFS pointer"),
        (
            lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
            r"but adapter_model\.bin, a pickle",
        ),
    ],
)
def test_a_damaged_adapter_is_refused_in_one_line(damage, words, sound, tmp_path):
    trained = load_policy(str(sound), Adapter(4, 8.0, ("q_proj",)), Key(0))
    trained.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=words) as refusal:
        load_policy(str(tmp_path), Adapter(4, 8.0, ("q_proj",)), Key(0))
    assert "\n" not in str(refusal.value)


def test_a_model_is_never_adapted_twice():
    policy = tiny("tiny-llama")
    for model in (policy.model, policy.model.get_base_model()):
        with pytest.raises(InputError, match="has an adapter already"):
            Policy(model, byte_tokenizer(), Adapter(4, 8.0, ("q_proj",)), Key(0))


def test_foreign_code_is_refused_without_a_question_and_never_runs(sound, tmp_path, monkeypatch):
    folder = shutil.copytree(sound, tmp_path / "model")
    auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    edit_json("config.json", model_type="own-kind", auto_map=auto)(folder)
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    with pytest.raises(InputError, match="needs code of its own, which runs only with --trust-remote-code"):
        load_policy(str(folder), Adapter(4, 8.0, ("q_proj",)), Key(0))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(InputError, match="cannot be loaded"):  # it runs now, and holds no such class
        load_policy(str(folder), Adapter(4, 8.0, ("q_proj",)), Key(0), trust=True)
    assert (tmp_path / "ran").exists()


def test_a_mistyped_directory_is_told_as_one_and_a_name_as_one(sound, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "models" / "llama-small").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in ("models/lama-small", "./models/lama-small", str(tmp_path / "models" / "lama-small")):
        with pytest.raises(InputError, match="there is no such directory; did you mean 'llama-small'"):
            load_policy(name, Adapter(), Key(0))
    with pytest.raises(InputError, match=r"did you mean smollm2-135m\?"):
        load_policy("smollm2-135", Adapter(), Key(0))
    (tmp_path / "file.gguf").touch()
    with pytest.raises(InputError, match="is a file; give the directory"):
        load_policy("file.gguf", Adapter(), Key(0))
    monkeypatch.setenv("HOME", str(sound.parent))
    assert load_policy(f"~/{sound.name}", Adapter(4, 8.0, ("q_proj",)), Key(0)).end == 256


def test_a_hub_id_is_read_from_its_snapshot(sound, monkeypatch):
    asked = []

    def snapshot(name, local_files_only, allow_patterns, ignore_patterns):
        asked.append(local_files_only)
        if local_files_only:
            raise OSError("not in the cache")
        assert "*.py" not in allow_patterns
        return str(sound)

    monkeypatch.setattr(folders, "snapshot_download", snapshot)
    policy = load_policy("someone/model", Adapter(4, 8.0, ("q_proj",)), Key(0))
    assert asked == [True, False]
    here = load_policy(str(sound), Adapter(4, 8.0, ("q_proj",)), Key(0))
    assert torch.equal(policy.log_probs(rows_of(here), "test"), here.log_probs(rows_of(here), "test"))


def test_the_hash_of_weights_is_that_of_contents(sound, tmp_path):
    folder = shutil.copytree(sound, tmp_path / "model")
    assert weights_hash(str(folder)) == weights_hash(str(sound))
    load_policy(str(sound), Adapter(4, 8.0, ("q_proj",)), Key(0)).save(tmp_path / "adapter")
    before = weights_hash(str(folder)), weights_hash(str(tmp_path / "adapter"))
    (folder / "README.md").write_text("not read")
    assert weights_hash(str(folder)) == before[0]
    edit_weights(set_to_nan)(folder)
    assert weights_hash(str(folder)) != before[0]
    edit_json("adapter_config.json", base_model_name_or_path=str(folder))(tmp_path / "adapter")
    assert weights_hash(str(tmp_path / "adapter")) != before[1]
    assert len({weights_hash(name) for name in TINY}) == len(TINY)


@pytest.mark.parametrize(
    ("name", "targets", "want"),
    [
        ("tiny-llama", ("all-linear",), {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("tiny-llama", (), {"q_proj", "v_proj"}),
        ("tiny-gpt2", ("all-linear",), {"c_attn", "c_proj", "c_fc"}),
        ("tiny-gpt2", (), {"c_attn"}),
    ],
)
def test_target_modules_are_found(name, targets, want):
    policy = load_policy(name, Adapter(2, 4.0, targets), Key(0))
    assert {n.split(".lora_")[0].rpartition(".")[2] for n in policy.parameters} == want
    rows = rows_of(policy)
    assert policy.log_probs(rows, "test").tolist() == pytest.approx([by_hand(policy, row) for row in rows], abs=2e-5)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])  # the latter's shares its weights with the embedding
@pytest.mark.parametrize("targets", [("lm_head",), ("q_proj", "c_attn", "lm_head")])
def test_the_output_layer_is_not_adapted(name, targets):
    with pytest.raises(InputError, match=r"lm_head is the output layer, which gets no adapter; .*--targets"):
        load_policy(name, Adapter(2, 4.0, targets), Key(0))


def test_where_a_default_name_is_absent_pefts_default_takes_its_place_or_the_modules_are_told():
    policy = load_policy("tiny-gpt2", Adapter(2, 4.0), Key(0))
    assert policy.targets == ("c_attn",)
    assert policy.replaced.startswith("it lacks q_proj, k_proj, v_proj, o_proj (--targets), so LoRA is on PEFT's")
    assert policy.files()["adapter_config.json"].count(b"c_attn") == 1
    llama = load_policy("tiny-llama", Adapter(2, 4.0), Key(0))
    assert (llama.targets, llama.replaced) == (ATTENTION, "")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    shape |= {"pad_token_id": 256}
    with seeded(Key(0)):
        neox = AutoModelForCausalLM.from_config(GPTNeoXConfig(vocab_size=257, **shape))
        phi = AutoModelForCausalLM.from_config(Phi3Config(vocab_size=257, **shape))
        opt = AutoModelForCausalLM.from_config(OPTConfig(vocab_size=257, ffn_dim=64, word_embed_proj_dim=32, **shape))
    assert Policy(neox, byte_tokenizer(), Adapter(2, 4.0), Key(0)).targets == ("query_key_value",)
    assert "it lacks o_proj (" in Policy(opt, byte_tokenizer(), Adapter(2, 4.0), Key(0)).replaced
    words = r"named q_proj, k_proj, v_proj, and PEFT has no default for phi3; it has .*qkv_proj.* \(--targets\)"
    with pytest.raises(InputError, match=words):
        Policy(phi, byte_tokenizer(), Adapter(2, 4.0), Key(0))


def tokenizer_with(template=None, chat=None):
    """The byte tokenizer with a begin token, a post-processor and a chat template."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<begin>"})
    if template:
        special = [("<begin>", tokenizer.bos_token_id), ("<end>", 256)]
        tokenizer._tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=special)
    tokenizer.chat_template = chat
    return tokenizer


def policy_with(tokenizer, chat="no"):
    config = LlamaConfig(vocab_size=300, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    with seeded(Key(0)):
        model = AutoModelForCausalLM.from_config(config)
    return Policy(model, tokenizer, Adapter(2, 4.0, ("q_proj",)), Key(0), chat=chat)


@pytest.mark.parametrize(
    ("template", "opening"),
    [
        (None, ()),
        ("<begin> $A", (257,)),
        ("<begin> <begin> $A", (257,)),
        ("$A <end>", ()),
        ("<begin> $A <end>", (257,)),
    ],
)
def test_a_prompt_begins_as_the_tokenizer_says_and_never_ends_with_an_end(template, opening):
    policy = policy_with(tokenizer_with(template))
    text = "say <end> or <begin>"
    (ids,) = policy.encode([text], 64)
    assert ids == (*opening, *byte_tokenizer()(text, split_special_tokens=True).input_ids)
    assert len(ids) == len(opening) + len(text)
    assert policy.tokenizer.decode(ids[len(opening) :]) == text


CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] | trim }}<end>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_chats_go_through_the_template_and_texts_too_where_asked():
    policy = policy_with(tokenizer_with("<begin> $A", CHAT), "yes")
    chat = (Message("user", "hi"), Message("assistant", "yes?"), Message("user", "so"))
    one, two, odd = policy.encode(["hi", chat, " say <end>"], 99)
    assert policy.tokenizer.decode(one) == "<begin>[user]hi<end>[assistant]"
    assert policy.tokenizer.decode(two) == "<begin>[user]hi<end>[assistant]yes?<end>[user]so<end>[assistant]"
    assert policy.tokenizer.decode(odd) == "<begin>[user]say <end><end>[assistant]"
    assert [ids.count(257) for ids in (one, two, odd)] == [1, 1, 1]
    assert [ids.count(256) for ids in (one, two, odd)] == [1, 3, 1]
    plain = policy_with(tokenizer_with("<begin> $A", CHAT))
    assert plain.encode(["hi"], 9) == [(257, *byte_tokenizer()("hi").input_ids)]
    assert plain.encode([chat], 99) == [two]
    with pytest.raises(InputError, match="the tokenizer has no chat template; use --chat no"):
        policy_with(tokenizer_with(), "yes")
    bare = policy_with(tokenizer_with())
    assert bare.tokenizer.decode(bare.encode([chat], 99)[0]).endswith("User: so\n\nAssistant:")


def test_a_folder_with_a_template_is_a_chat_model_where_that_is_left_to_it(sound, tmp_path):
    folder = shutil.copytree(sound, tmp_path / "chat")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m['content'] }}>{% endfor %}:"
    tokenizer.save_pretrained(folder)
    adapter = Adapter(4, 8.0, ("q_proj",))
    for where, chat, want in ((folder, "auto", "<hi>:"), (folder, "no", "hi"), (sound, "auto", "hi")):
        policy = load_policy(str(where), adapter, Key(0), chat=chat)
        assert policy.tokenizer.decode(policy.encode(["hi"], 9)[0]) == want


def test_a_template_that_refuses_is_told():
    policy = policy_with(tokenizer_with(None, "{{ raise_exception('roles must alternate') }}"), "yes")
    with pytest.raises(InputError, match="the chat template refuses a prompt"):
        policy.encode(["hi"], 9)


def test_a_response_is_told_without_the_token_that_ended_it():
    policy = tiny("tiny-llama")
    policy.ends = (65, 256)
    assert policy.decode((66, 67, 65)) == policy.decode((66, 67, 256)) == policy.decode((66, 67))
