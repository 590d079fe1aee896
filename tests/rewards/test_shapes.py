"""Format, set, length, repetition and overlap rewards: numbers computed by hand."""

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from concordant.core.errors import RewardError
from concordant.rewards import (
    Bleu,
    Chrf,
    CosineLength,
    GroupLengthBand,
    JsonFormat,
    KimiLength,
    LengthBand,
    LinearLength,
    Matches,
    NgramRepetition,
    Rouge,
    SetFBeta,
    SoftOverlong,
    TagFormat,
    exact_text,
    f_beta,
    length_penalty,
    tag_format,
    token_f1,
)
from concordant.scoring.reward import Verdict, as_reward

TAGS = st.lists(
    st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "a", " ", "\n", "<b>"]), max_size=12
)


@given(TAGS)
def test_tag_format_by_default_is_the_fixed_one(parts):
    text = "".join(parts)
    assert TagFormat()(text) == tag_format(text)


@pytest.mark.parametrize(
    ("options", "text", "score"),
    [
        ({}, "<think>a</think><answer>b</answer>", 1.0),
        ({}, "x<think>a</think><answer>b</answer>", 0.0),
        ({"only": False}, "x<think>a</think>y<answer>b</answer>z", 1.0),
        ({}, "<answer>b</answer><think>a</think>", 0.0),
        ({"ordered": False}, "<answer>b</answer><think>a</think>", 1.0),
        ({}, "<think>a</think><think>a</think><answer>b</answer>", 0.0),
        ({"once": False}, "<think>a</think><think>a</think><answer>b</answer>", 1.0),
        ({"once": False}, "<think>a</think>", 0.0),
        ({"filled": True}, "<think> </think><answer>b</answer>", 0.0),
        ({"tags": ("a.c",)}, "<a.c>1</a.c>", 1.0),
        ({"tags": ("a.c",)}, "<abc>1</abc>", 0.0),
        ({}, "<think>" * 50_000, 0.0),
        ({}, "", 0.0),
    ],
)
def test_tag_options(options, text, score):
    assert TagFormat(**options)(text) == score


def test_tags_are_checked():
    for tags in ((), ("a", "a"), ("<a>",)):
        with pytest.raises(RewardError, match="tags are distinct names"):
            TagFormat(tags)


PERSON = {"type": "object", "required": ["name"], "properties": {"age": {"type": "integer", "minimum": 0}}}


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"name": "Ann"}', 1.0),
        ('Here:\n```json\n{"name": "Ann", "age": 3}\n```\nDone.', 1.0),
        ('```\n{"age": 3}\n```', 0.0),
        ('{"name": "Ann", "age": -1}', 0.0),
        ('{"name": "Ann"} and more', 0.0),
        ('{"name": "Ann", "name": "Bob"}', 0.0),
        ('{"name": NaN}', 0.0),
        ("[" * 200_000, 0.0),
        ("9" * 10_000, 0.0),
        ("", 0.0),
    ],
)
def test_json_format(text, score):
    assert JsonFormat(PERSON)(text) == score


def test_json_place_and_schema():
    fenced = '```json\n{"name": "Ann"}\n```'
    assert JsonFormat(PERSON, where="whole")(fenced) == 0.0
    assert JsonFormat(PERSON, where="fence")('{"name": "Ann"}') == 0.0
    with pytest.raises(RewardError, match="not a JSON schema"):
        JsonFormat({"type": "person"})
    with pytest.raises(Exception, match="nresolvable"):  # and not: fetched from the network
        JsonFormat({"$ref": "http://127.0.0.1:9/schema.json"})("{}")


def test_matches():
    assert Matches(r"(?s)^a.c$")("a\nc") == 1.0
    assert Matches(r"^a.c$")("a\nc") == 0.0
    with pytest.raises(RewardError, match="not a regular expression"):
        Matches("(")
    verdict = Matches("(a|aa)+$", seconds=0.05)("a" * 60 + "b")
    assert isinstance(verdict, Verdict) and verdict.score is None


def test_f_beta_by_hand():
    found, key = {"a", "b", "c"}, {"a", "d"}  # P = 1/3, R = 1/2
    assert f_beta(found, key) == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    assert f_beta(found, key, beta=2) == pytest.approx(5 * (1 / 6) / (4 / 3 + 1 / 2))
    assert f_beta(found, key, beta=0) == pytest.approx(1 / 3)
    assert f_beta(found, set()) == f_beta(set(), key) == f_beta(set(), key, beta=0) == 0.0


def test_set_reward_reads_lists_and_separators():
    judge = SetFBeta()
    assert judge("<answer>Red, red,\n BLUE</answer>", "red,blue") == 1.0
    assert judge('<answer>["red", "green"]</answer>', ["Red", "Blue"]) == 0.5
    assert judge("<answer>[1, 2]</answer>", "1,2") == 1.0
    assert judge("<answer>[]</answer>", []) == judge("[]", "") == 1.0
    assert judge("", "red") == 0.0
    assert SetFBeta(separator=";", case=True)("a; B", "a;b") == 0.5


def test_harmo_band_exactly():
    band = LengthBand(100, 200)
    values = [band("", completion_ids=[0] * length) for length in (0, 100, 150, 200, 500)]
    assert values == [0.0, 0.0, -0.5, -1.0, -1.0]
    assert math.copysign(1, values[0]) == 1, "no negative zero"
    assert LengthBand(100, 200, power=2)("", completion_ids=[0] * 150) == -0.25
    step = LengthBand(100, 100)
    assert [step("", completion_ids=[0] * length) for length in (99, 100, 101)] == [0.0, 0.0, -1.0]
    with pytest.raises(RewardError, match="low <= high"):
        LengthBand(2, 1)


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0.1, 5))
def test_length_penalty_is_bounded_and_grows(length, low, width, power):
    first, second = (length_penalty(each, low, low + width, power) for each in (length, length + 1))
    assert 0.0 <= first <= second <= 1.0


def test_band_only_where_asked():
    only_right = LengthBand(0, 10, only_if="correct")
    assert only_right("", correct=1.0, completion_ids=[0] * 10) == -1.0
    assert only_right("", correct=0.0, completion_ids=[0] * 10) == 0.0
    assert only_right("", correct=None, completion_ids=[0] * 10) is None
    assert LengthBand(0, 10, only_if="wrong")("", correct=Verdict(0.0), completion_ids=[0] * 5) == -0.5


def test_group_band():
    band = GroupLengthBand(unit="words")
    assert band(["a", "a b c", "a b c d e"]) == [0.0, -0.5, -1.0]
    assert band(["a b"] * 4) == [0.0] * 4
    assert band(["a"]) == [0.0]
    assert GroupLengthBand()(["", ""], completion_ids=[[1], [1, 2]]) == [0.0, -1.0]
    assert GroupLengthBand(only_if="correct", unit="words")(["a", "a b", "a b"], correct=[1, 0, None]) == [
        0.0,
        0.0,
        None,
    ]
    assert as_reward(band).level == as_reward(KimiLength()).level == "group"


def test_kimi_length():
    # lengths 10, 20, 30: u = 1/2, 0, -1/2; wrong answers gain nothing from being short
    ids = [[0] * 10, [0] * 20, [0] * 30]
    texts = ["", "", ""]
    assert KimiLength()(texts, [1, 1, 1], ids) == [0.5, 0.0, -0.5]
    assert KimiLength()(texts, [0, 0, None], ids) == [0.0, 0.0, None]
    assert KimiLength()(texts, [0, 1, 0], [[0]] * 3) == [0.0, 0.0, 0.0]


def test_linear_and_soft_overlong():
    line = LinearLength(10, 20, at_low=1.0, at_high=-1.0)
    assert [line("", [0] * length) for length in (5, 10, 15, 20, 99)] == [1.0, 1.0, 0.0, -1.0, -1.0]
    soft = SoftOverlong(limit=100, buffer=20)
    assert [soft("", [0] * length) for length in (0, 80, 85, 90, 100, 101)] == [
        0.0,
        0.0,
        -0.25,
        -0.5,
        -1.0,
        -1.0,
    ]
    hard = SoftOverlong(limit=100, buffer=0)
    assert [hard("", [0] * length) for length in (100, 101)] == [0.0, -1.0]
    with pytest.raises(RewardError, match="between 0 and limit"):
        SoftOverlong(10, 11)


def test_cosine_by_hand():
    judge = CosineLength(limit=100)
    right = [judge("", correct=1.0, completion_ids=[0] * length) for length in (0, 50, 100, 200)]
    wrong = [judge("", correct=0.0, completion_ids=[0] * length) for length in (0, 50, 100, 200)]
    assert right == pytest.approx([1.0, 0.75, 0.5, 0.5])
    assert wrong == pytest.approx([-1.0, -0.75, -0.5, -0.5])
    third = judge("", correct=1.0, completion_ids=[0] * 30)
    assert third == pytest.approx(0.5 + 0.25 * (1 + math.cos(0.3 * math.pi)))
    assert CosineLength(100, exceed=-10)("", correct=1.0, completion_ids=[0] * 101) == -10


def test_cosine_judges_by_itself_and_passes_missing_on():
    judge = CosineLength(limit=8, unit="characters")
    assert judge("0.50", "1/2") == pytest.approx(0.75)
    unknown = judge("0.50", "###")
    assert (
        isinstance(unknown, Verdict) and unknown.score is None and "gold answer" in unknown.detail["reason"]
    )
    assert judge("0.50") is None


def test_tokens_are_never_guessed():
    for reward in (LengthBand(0, 1), LinearLength(0, 1), SoftOverlong(1, 1), NgramRepetition()):
        with pytest.raises(RewardError, match="completion_ids"):
            reward("some text")
    with pytest.raises(RewardError, match="unknown unit"):
        LinearLength(0, 1, unit="bytes")("some text")


def test_ngram_repetition():
    assert NgramRepetition(2)("", [1, 2, 3, 4]) == 0.0
    assert NgramRepetition(2)("", [5] * 5) == -0.75  # 4 bigrams, 1 distinct
    assert NgramRepetition(2, worst=-2.0)("", [1, 2, 1, 2]) == pytest.approx(-2 / 3)  # 12, 21, 12
    assert NgramRepetition(3)("", [1, 1]) == 0.0
    assert NgramRepetition(1, unit="words")("The the THE") == pytest.approx(-2 / 3)
    assert NgramRepetition(1, unit="characters")("aaaa") == -0.75


def test_bleu_by_hand():
    # 5 words against 6, all n-grams match: precision 1, brevity penalty exp(1 - 6/5)
    assert Bleu()("the cat sat on the", "the cat sat on the mat") == pytest.approx(math.exp(-0.2))
    assert Bleu()(
        "<answer>the cat sat on the mat</answer>", ["no", "the cat sat on the mat"]
    ) == pytest.approx(1.0)
    assert Bleu()("", "the cat") == 0.0


def test_chrf_by_hand():
    # thecat / thehat: 5/6 of letters, 3/5, 1/4, 0, 0, 0 of the longer n-grams, in both directions
    assert Chrf()("the cat", "the hat") == pytest.approx((5 / 6 + 3 / 5 + 1 / 4) / 6)
    assert Chrf()("日本語", "日本語") == pytest.approx(1.0)


def test_rouge_by_hand():
    # "the cat sat" / "the dog sat down": 2 words in order: P = 2/3, R = 1/2, F = 4/7
    assert Rouge()("the cat sat", "the dog sat down") == pytest.approx(4 / 7)
    assert Rouge(measure="precision")("the cat sat", "the dog sat down") == pytest.approx(2 / 3)
    assert Rouge("rouge2")("the cat sat", "a the cat") == pytest.approx(1 / 2)
    assert Rouge()("the cat", ["dog", "the cat"]) == 1.0
    assert Rouge(stem=True)("running", "runs") == 1.0


def test_overlap_without_reference_is_missing():
    for judge in (Bleu(), Chrf(), Rouge()):
        for answer in ("", " ", []):
            verdict = judge("text", answer)
            assert verdict.score is None and verdict.detail["reason"] == "the reference is empty"


def test_squad_measures():
    # "red big dog" / "big dog": 2 shared, P = 2/3, R = 1
    assert token_f1("a red big dog", "the big dog") == pytest.approx(0.8)
    assert token_f1("dog dog", "dog") == pytest.approx(2 / 3)
    assert token_f1("", "") == 1.0
    assert token_f1("", "dog") == token_f1("the", "dog") == 0.0
    assert exact_text("The  Eiffel-Tower!", ["x", "eiffeltower"]) == 1.0
    assert exact_text("<answer>Paris</answer>", "paris") == 1.0
    assert exact_text("Paris, France", "paris") == 0.0


def test_shapes_pickle_and_are_found_as_rewards():
    lengths = (LengthBand(0, 1), GroupLengthBand(), KimiLength(), CosineLength(9), SoftOverlong(2, 1))
    others = (
        TagFormat(),
        JsonFormat(PERSON),
        Matches("a"),
        SetFBeta(),
        NgramRepetition(),
        Bleu(),
        Chrf(),
        Rouge(),
    )
    for reward in (*lengths, *others):
        assert pickle.loads(pickle.dumps(as_reward(reward))).function == reward
