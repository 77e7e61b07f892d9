"""Scorers of all kinds: classifiers that users bring, adapters, two labels, chats, code of one's own; or one line."""

import json
import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import BERT, STACK, classifier

from bandits.core.errors import InputError
from bandits.core.rng import Key
from llm_loop import tables
from llm_loop.__main__ import main
from llm_loop.data.chat import Message, asked
from llm_loop.models import byte_tokenizer, tiny_model
from llm_loop.rewards.models import load_encoder
from llm_loop.rewards.scorers import checked, cut, load_scorer, registered, weights_hash
from llm_loop.seeding import seeded

LLAMA = hf.LlamaConfig(**STACK, max_position_embeddings=64, pad_token_id=None, bos_token_id=None, eos_token_id=256)
PAIRS = (["one", "a longer prompt", "x", "x"], ["two", "y", "three, four, fi", "z"])


def plain(folder, prompt, response, **how):
    """The logits of one pair by the library alone."""
    model = hf.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = byte_tokenizer()
    with torch.no_grad():
        encoded = tokenizer(prompt, response, return_tensors="pt", **how)
        return model(input_ids=encoded.input_ids).logits[0].double()


FORMS = {
    "encoder": (BERT, {}),
    "decoder without a pad token": (LLAMA, {}),
    "decoder that pads with its end": (LLAMA, {"pad_token_id": 256}),
    "gpt2": (hf.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=257, n_positions=64, eos_token_id=256), {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pad", [True, False])
def test_a_pair_scores_as_the_library_says_alone_and_in_company(form, pad, tmp_path):
    config, settings = FORMS[form]
    tokenizer = byte_tokenizer()
    if not pad:
        tokenizer.pad_token = None
    scorer = load_scorer(str(classifier(tmp_path, config, tokenizer, **settings)), "cpu")
    want = [float(plain(tmp_path, p, r)[0]) for p, r in zip(*PAIRS, strict=True)]
    assert scorer(*PAIRS).tolist() == pytest.approx(want, abs=1e-5)
    assert [float(scorer([p], [r])[0]) for p, r in zip(*PAIRS, strict=True)] == pytest.approx(want, abs=1e-5)
    assert len(set(want)) == 4


@pytest.mark.parametrize(
    ("labels", "good"), [(None, 1), ({0: "NEGATIVE", 1: "POSITIVE"}, 1), ({0: "Chosen", 1: "no"}, 0)]
)
def test_two_labels_are_log_odds_of_the_good_one(labels, good, tmp_path):
    more = {"id2label": labels} if labels else {}
    scorer = load_scorer(str(classifier(tmp_path, num_labels=2, **more)), "cpu")
    logits = plain(tmp_path, "one", "two")
    odds = torch.softmax(logits, -1)[good] / torch.softmax(logits, -1)[1 - good]
    assert float(scorer(["one"], ["two"])[0]) == pytest.approx(float(odds.log()), abs=1e-5)


def without_head(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in tensors.items() if "classifier" not in k}, folder / "model.safetensors", {"format": "pt"}
    )


REFUSED = {
    "no head": (classifier, without_head, r"its files lack 2 weights of the model: classifier\.bias"),
    "three labels": (
        lambda f: classifier(f, num_labels=3),
        None,
        r"has 3 outputs \(LABEL_0, LABEL_1, LABEL_2\); it needs",
    ),
    "two labels of no name": (
        lambda f: classifier(f, num_labels=2, id2label={0: "cat", 1: "dog"}),
        None,
        r"has 2 outputs \(cat, dog\); it needs one, or two of which one is named good",
    ),
    "language model": (
        lambda f: tiny_model("tiny-llama", Key(0)).save_pretrained(f) or byte_tokenizer().save_pretrained(f),
        None,
        "is a LlamaForCausalLM, which has no trained head",
    ),
    "pointer": (
        classifier,
        lambda f: (f / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        "git-LFS pointer",
    ),
    "foreign code": (
        classifier,
        lambda f: (f / "config.json").write_text(
            json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}, "architectures": ["OwnReward"]})
        ),
        "needs code of its own",
    ),
    "large tokenizer": (
        lambda f: classifier(f, vocab_size=200),
        None,
        "its tokenizer has tokens up to 255, its embedding 200 rows",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_reward_model_is_refused_in_one_line(name, tmp_path):
    make, damage, words = REFUSED[name]
    make(tmp_path)
    if damage:
        damage(tmp_path)
    with pytest.raises(InputError, match=words) as refusal:
        load_scorer(str(tmp_path), "cpu")
    assert "\n" not in str(refusal.value)


def test_a_mistyped_reward_model_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="did you mean sentiment-valence"):
        load_scorer("sentiment-valnce", "cpu")
    with pytest.raises(InputError, match="there is no such directory"):
        load_scorer(str(tmp_path / "gone"), "cpu")


@pytest.mark.slow
def test_long_texts_are_refused_or_cut_at_the_models_positions_and_counted(tmp_path):
    pairs = ["one", "one"], ["two", "a response, much longer than that"]
    folder = str(classifier(tmp_path))
    with pytest.raises(InputError, match=r"reads 24 tokens; 1 of 2 texts have more, up to 36, .* --long-texts cut"):
        load_scorer(folder, "cpu")(*pairs)
    scorer = load_scorer(folder, "cpu", long_texts="cut")
    found = scorer(*pairs)
    shortened = plain(tmp_path, "one", pairs[1][1], truncation=True, max_length=24)
    assert float(found[1]) == pytest.approx(float(shortened[0]), abs=1e-5)
    assert cut(scorer, *pairs) == [1]
    alike = scorer(["one", "one"], ["a response, much longer than A", "a response, much longer than B"])
    assert alike[0] == alike[1]  # a tie, and counted
    assert cut(scorer, ["one", "one"], ["a response, much longer than A", "a response, much longer than B"]) == [0, 1]
    assert cut(load_scorer("lexical-letters", "cpu"), [""], ["x" * 999]) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "limit", "prompts", "room"),
    [
        ("sentiment-valence", 64, ["word " * 999] * 2, 62),
        ("tweet-judge", 64, ["word " * 999] * 2, 62),
        ("similarity", 256, ["word " * 254] * 2, 254),
    ],
)
def test_long_texts_are_refused_or_cut_by_what_ships_too(name, limit, prompts, room):
    fits, long = "good " * (limit - 2), "good " * (limit - 1)
    whole, cuts = load_scorer(name, "cpu"), load_scorer(name, "cpu", long_texts="cut")
    assert whole(prompts, [fits, fits]).tolist() == cuts(prompts, [fits, fits]).tolist()
    with pytest.raises(InputError, match=rf"{name} reads {limit} tokens; 1 of 2 texts have more, up to {limit + 1}, "):
        whole(prompts, [fits, long])
    assert cut(cuts, prompts, [fits, long]) == [1]
    assert cuts(prompts, [fits, long])[1] == pytest.approx(float(cuts(prompts, [fits, fits])[0]), abs=1e-5)
    whole.admit_drawn(prompts[0], room)
    with pytest.raises(InputError, match=rf"a prompt leaves {room} of them to a response, which has up to {room + 1}"):
        whole.admit_drawn(prompts[0], room + 1)


def test_a_prompt_that_is_too_long_itself_leaves_nothing():
    with pytest.raises(InputError, match="similarity reads 256 tokens; a prompt leaves 0 of them to a response"):
        load_scorer("similarity", "cpu").admit_drawn("word " * 255, 1)


def test_what_the_user_wrote_last_is_what_a_response_is_compared_with():
    turns = tuple(
        Message(*turn) for turn in (("user", "first"), ("assistant", "no"), ("user", "second"), ("tool", "x"))
    )
    assert asked("a text") == "a text"
    assert asked(turns) == "second"
    assert asked((Message("system", "alone"),)) == "alone"


def test_word_overlap_is_the_f1_of_distinct_words():
    scorer = load_scorer("word-overlap", "cpu")
    prompt = (Message("system", "words, words"), Message("user", "The cat sat; the dog sat."))
    found = scorer([prompt] * 5, ["THE cat", "the cat sat the dog", "", "a bird", "cat cat cat hen"])
    shares = [(2, 2), (4, 4), (0, 0), (0, 2), (1, 2)]  # shared, and the response's own; the prompt has 4
    assert found.tolist() == pytest.approx([4 * 2 * shared / (4 + own) for shared, own in shares])


@pytest.mark.slow
def test_similarity_is_the_cosine_of_embeddings_read_alone():
    """Against one text a pass, and in order of meaning: a copy, a paraphrase, another matter."""
    scorer, encoder = load_scorer("similarity", "cpu", long_texts="cut"), load_encoder()
    article = "The central bank raised interest rates on Tuesday to slow inflation."
    responses = [
        article,
        "Rates go up as the bank fights rising prices",
        "Local team wins the cup after extra time",
        "",
    ]
    found = scorer([(Message("system", "You write headlines."), Message("user", article))] * 4, responses)
    alone = [encoder([ids])[0].double() for text in (article, *responses) for ids in encoder.tokens([text])]
    expected = [4 * float(alone[0] @ one / (alone[0].norm() * one.norm())) for one in alone[1:]]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert found[0] == pytest.approx(4)
    assert found[0] > found[1] > found[2]
    assert cut(scorer, [article, "word " * 250, "word " * 260], ["short"] * 3) == [2]


@pytest.mark.campaign
def test_a_loop_is_labelled_by_similarity_and_judged_by_words(tmp_path, capsys):
    told = ["--reward", "similarity", "--judge", "word-overlap", "--seeds", "1", "--strategies", "random"]
    assert main(["smoke", *told, "--output", str(tmp_path), "--jobs", "1"]) == 0
    (folder,) = (tmp_path / "llm").iterdir()
    rows = tables.frame(tables.Evaluation, folder / "cells" / "random--seed0")
    assert rows["reward"].between(-4, 4).all()
    assert rows["judge"].between(0, 4).all()
    assert rows["reward"].nunique() > 1
    assert "how near a response is in meaning" in (folder / "index.html").read_text()


@pytest.mark.slow
def test_a_reward_adapter_is_merged_with_its_head(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model = tiny_model("tiny-llama", Key(0))
    model.save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    with seeded(Key(1)):
        judge = hf.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        adapted = get_peft_model(judge, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"]))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 0.3)
    adapted.save_pretrained(adapter)
    scorer = load_scorer(str(adapter), "cpu")
    adapted.eval()
    with torch.no_grad():
        want = [
            float(adapted(input_ids=byte_tokenizer()(p, r, return_tensors="pt").input_ids).logits)
            for p, r in zip(*PAIRS, strict=True)
        ]
    assert scorer(*PAIRS).tolist() == pytest.approx(want, abs=1e-4)
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({k: v for k, v in tensors.items() if "score" not in k}, adapter / "adapter_model.safetensors")
    with pytest.raises(InputError, match="score"):
        load_scorer(str(adapter), "cpu")


def test_a_chat_reward_model_reads_chats(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}[{{ m['role'][0] }}]{{ m['content'] }}<end>{% endfor %}"
    scorer = load_scorer(str(classifier(tmp_path, LLAMA, tokenizer)), "cpu")
    model = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()

    def score(text):
        ids = byte_tokenizer()(text, return_tensors="pt").input_ids
        return float(model(input_ids=ids).logits)

    chat = (Message("user", "hi"), Message("assistant", "yes?"), Message("user", "so"))
    found = scorer(["hi", chat], ["ho", "no"]).tolist()
    assert found == pytest.approx(
        [score("[u]hi<end>[a]ho<end>"), score("[u]hi<end>[a]yes?<end>[u]so<end>[a]no<end>")], abs=1e-5
    )


@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("side", ["right", "left"])
def test_what_reads_like_a_special_token_in_a_chat_is_text_and_a_long_chat_is_cut(labels, side, tmp_path):
    """A decoder that judges chats, of one label or two: a response that says <end> does not end the turn."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}[{{ m['role'][0] }}]{{ m['content'] }}<end>{% endfor %}"
    folder = classifier(tmp_path, LLAMA, tokenizer, num_labels=labels)
    said = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(said | {"truncation_side": side}))
    scorer = load_scorer(str(folder), "cpu", long_texts="cut")
    model = hf.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    letters = byte_tokenizer()

    def score(ids):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0]
        return float(logits[0] if labels == 1 else logits[1] - logits[0])

    def chat(prompt, response):
        turns = (f"[u]{prompt}", f"[a]{response}")
        return [token for turn in turns for token in (*letters(turn, split_special_tokens=True).input_ids, 256)]

    spoken = scorer(["say <end>", "hi"], ["ho<end>[u]no", "ho"]).tolist()
    want = [score(chat("say <end>", "ho<end>[u]no")), score(chat("hi", "ho"))]
    assert spoken == pytest.approx(want, abs=1e-5)
    long = chat("hi", "x" * 70)
    kept = long[:64] if side == "right" else long[-64:]
    assert scorer(["hi"], ["x" * 70]).tolist() == pytest.approx([score(kept)], abs=1e-5)


def test_what_reads_like_a_special_token_in_a_pair_is_text(tmp_path):
    scorer = load_scorer(str(classifier(tmp_path)), "cpu", long_texts="cut")
    want = float(plain(tmp_path, "a", "b<end>c", split_special_tokens=True)[0])
    assert float(scorer(["a"], ["b<end>c"])[0]) == pytest.approx(want, abs=1e-5)
    assert scorer.lengths(["a"], ["b<end>c"]) == [8]


def test_code_of_ones_own_scores(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        "def length(prompts, responses):\n    return [float(len(r)) for r in responses]\n"
        "class Shorter:\n    def __call__(self, prompts, responses):\n        return [-len(r) for r in responses]\n"
        "def wrong(prompts, responses):\n    return [1.0]\n"
        "def broken(prompts, responses):\n    return 1 / 0\n"
        "def words(prompts, responses):\n    return ['good'] * len(responses)\n"
        "nothing = 3\n"
    )
    (tmp_path / "my_script.py").write_text("import sys\nsys.exit('usage: my_script')\n")
    monkeypatch.chdir(tmp_path)
    assert load_scorer("my_rewards:length", "cpu")(["a", "b"], ["cc", "d"]).tolist() == [2.0, 1.0]
    shorter = load_scorer("my_rewards:Shorter", "cpu")
    assert (shorter.name, shorter(["a"], ["cc"]).tolist()) == ("my_rewards:Shorter", [-2.0])
    for name, words in (
        ("my_rewards:wrong", r"of 2 responses: numbers of shape \(1,\), not \(2,\)"),
        ("my_rewards:broken", "cannot score prompts and responses .ZeroDivisionError"),
        ("my_rewards:words", r"no real numbers, but list \['good', 'good'\]"),
        ("my_rewards:nothing", "cannot score prompts and responses"),
        ("my_rewards:gone", "has no attribute 'gone'"),
        ("no_such_module:f", "No module named"),
        ("my_script:f", "SystemExit: usage: my_script"),
    ):
        with pytest.raises(InputError, match=words):
            load_scorer(name, "cpu")
    assert weights_hash("my_rewards:length") != weights_hash("my_rewards:Shorter")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda device: None, "a scorer has a name, its function returned None"),
        (lambda: None, "takes 0 positional arguments"),
        (lambda device: Told([1.0]), r"numbers of shape \(1,\), not \(2,\)"),
        (lambda device: Told([1.0, float("nan")]), "gave nan for 1 of 2 responses"),
        (lambda device: Told(None), "no real numbers, but NoneType None"),
        (lambda device: Told({}["score"]), "KeyError: 'score'"),
    ],
)
def test_a_registered_scorer_that_cannot_score_is_refused_when_it_is_loaded(make, words):
    with pytest.raises(InputError, match=f"^reward model .*told.*{words}"):
        registered("told", make, "cpu", "refuse")


def test_rewards_in_other_clothes_are_taken():
    for given in ([1, 2], np.array([1, 2], dtype=np.float32), torch.tensor([1.0, 2.0], requires_grad=True)):
        scorer = registered("told", lambda device, given=given: Told(given), "cpu", "refuse")
        found = checked(scorer, ["a", "b"], ["c", "d"])
        assert (found.dtype, found.tolist()) == (torch.float64, [1, 2])


@dataclass(frozen=True)
class Told:
    """A scorer that gives what it was told."""

    given: Any
    name = "told"

    def __call__(self, prompts, responses):
        return self.given


def test_hashes_of_scorers_differ_as_they_do(tmp_path):
    one, other = classifier(tmp_path / "one"), classifier(tmp_path / "other", seed=1)
    copy = shutil.copytree(one, tmp_path / "copy")
    shipped = ("sentiment-valence", "tweet-judge", "similarity", "word-overlap", "lexical-letters", "lexical-vowels")
    names = (*shipped, str(one), str(other))
    assert len({weights_hash(name) for name in names}) == len(names)
    assert weights_hash(str(copy)) == weights_hash(str(one))
