"""The digits world: data, attributes, tasks, rewards, judges, evaluators and bases."""

import inspect
import math
import pickle
import shutil

import numpy as np
import pytest
import torch

import concordant.worlds as worlds
from concordant.core.errors import ConfigError, DataError
from concordant.core.seeds import Rng
from concordant.core.table import Table
from concordant.policies.flow import FlowPlan
from concordant.scoring.engine import Engine
from concordant.scoring.reward import as_reward, declared
from concordant.scoring.scores import begin
from concordant.worlds.flow_digits import DigitsConfig, DigitsWorld, data, meters, rewards, sets
from concordant.worlds.flow_digits.evaluators import BASE, stack
from concordant.worlds.flow_digits.world import code_at

WORLD = DigitsWorld()
CODES = DigitsWorld(DigitsConfig(model="ddim", prompts="attributes"))
BATCH = sorted(name for name, function in CODES.rewards.items() if declared(function)["level"] == "batch")
NAN = math.nan


def blank(value=0.0):
    return np.full((8, 8, 1), value, dtype=np.float32)


def broken():
    image = blank(0.5)
    image[3, 3, 0] = NAN
    return image


def pixels(*places):
    image = blank()
    for row, column in places:
        image[row, column, 0] = 1.0
    return image


def asked(function, count=4, **given):
    """Arguments of a reward: real digits unless given."""
    half = data.half("b")
    fields = {
        "image": list(half.images[:count]),
        "label": half.labels[:count].tolist(),
        "thickness": [0.1 * i for i in range(count)],
        "slant": [-0.2 * i for i in range(count)],
    } | given
    return {name: fields[name] for name in inspect.signature(function).parameters}


# ---- data ----------------------------------------------------------------------------------------------------------


def test_halves_are_disjoint_whole_and_balanced():
    a, b, everything = data.half("a"), data.half("b"), data.digits()
    assert (len(a.labels), len(b.labels), len(everything.labels)) == (901, 896, 1797)
    both = [set(map(bytes, half.images.reshape(-1, 64))) for half in (a, b)]
    assert not both[0] & both[1]
    assert np.abs(np.bincount(a.labels) - np.bincount(b.labels)).max() <= 1
    assert everything.images.min() == 0.0
    assert everything.images.max() == 1.0


def test_thickness_and_slant_by_hand():
    shapes = {
        "right": pixels(*((7 - i, i) for i in range(8))),
        "left": pixels(*((i, i) for i in range(8))),
        "upright": pixels(*((i, 4) for i in range(8))),
        "flat": pixels(*((4, i) for i in range(8))),
        "none": blank(),
    }
    found = dict(zip(shapes, data.measure(np.stack(list(shapes.values()))), strict=True))
    assert [found[name][1] for name in ("right", "left", "upright")] == pytest.approx([1.0, -1.0, 0.0])
    assert np.isnan(found["flat"][1])
    assert np.isnan(found["none"]).all()
    # one pixel: its own difference is sqrt 2 (down and right at once), those above and to the left are 1
    one, square = data.measure(np.stack([pixels((4, 4)), pixels((3, 3), (3, 4), (4, 3), (4, 4))]))[:, 0]
    assert one == pytest.approx(2 / (2 + math.sqrt(2)))
    assert square == pytest.approx(8 / (6 + math.sqrt(2)))
    grey = data.measure(0.5 * np.stack([pixels((4, 4))]))[0, 0]
    assert grey == pytest.approx(one)  # area and outline both halve


def test_variants_have_other_strokes_and_are_the_same_every_time():
    images = data.half("a").images[:200]
    varied = data.varied(images, np.random.default_rng(3))
    assert np.array_equal(varied, data.varied(images, np.random.default_rng(3)))
    assert varied.min() >= 0.0
    assert varied.max() <= 1.0 + 1e-6
    before, after = data.attributes(images), data.attributes(varied)
    assert np.all(after.std(0) > 1.3 * before.std(0))


# ---- tasks ---------------------------------------------------------------------------------------------------------


def test_lookup_and_options():
    assert {"flow/digits", "flow/ring2d"} <= set(worlds.names())
    assert worlds.get("flow/digits", {"shift": 3.0}).config.shift == 3.0
    with pytest.raises(ConfigError, match="did you mean 'shift'"):
        worlds.get("flow/digits", {"shifts": 3.0})
    with pytest.raises(ConfigError, match="did you mean 'ddim'"):
        DigitsConfig(model="dim")
    with pytest.raises(ConfigError, match="'ddim' goes with"):
        DigitsConfig(prompts="attributes")
    with pytest.raises(ConfigError, match="shift belongs to flows"):
        DigitsConfig(model="ddim", prompts="attributes", shift=3.0)
    with pytest.raises(ConfigError, match="train_prompts"):
        DigitsConfig(train_prompts=0)
    with pytest.raises(ConfigError, match="lora_rank"):
        WORLD.policy(lora=object())
    with pytest.raises(ConfigError, match="float32"):
        WORLD.policy(dtype="float16")


@pytest.mark.parametrize("world", [WORLD, CODES])
def test_tasks_are_addressed_and_alike(world):
    train = world.tasks("train", 3, 5, 24)
    assert train[:8] == world.tasks("train", 3, 5, 8)
    assert train != world.tasks("train", 3, 6, 24)
    assert world.tasks("test", 9, 9, 20) == world.tasks("test", count=20)
    assert len({tuple(task.fields) for task in (*train, *world.tasks("test", count=20))}) == 1
    ids = {task.id: task.prompt for task in train}
    assert len(set(ids.values())) == len(ids)
    with pytest.raises(ConfigError, match="test_prompts"):
        world.tasks("test", count=513)
    with pytest.raises(ConfigError, match="neither"):
        world.tasks("dev")


def test_classes_take_turns():
    labels = [task.fields["label"] for task in WORLD.tasks("train", 0, 0, 24)]
    assert sorted(np.bincount(labels)) == [2] * 6 + [3] * 4
    assert WORLD.tasks("test", count=4)[3].prompt == "a handwritten 3"


@pytest.mark.parametrize("count", [16, 256, 4096])
def test_prompts_with_attributes_come_from_a_pool_that_grows(count):
    world = DigitsWorld(DigitsConfig(model="ddim", prompts="attributes", train_prompts=count))
    pool = {code_at("train", place).text for place in range(count)}
    drawn = {task.prompt for step in range(4) for task in world.tasks("train", 0, step, 16)}
    assert drawn <= pool
    assert len(drawn) == 16 if count == 16 else len(drawn) > 50
    assert pool.isdisjoint(task.prompt for task in CODES.tasks("test", count=512))
    strokes = np.array([code_at("train", place)[1:] for place in range(256)])
    assert np.abs(strokes).max() <= 1.5
    assert np.abs(strokes.mean(0)).max() < 0.2


def test_validate_finds_nothing_and_finds_other_weights(monkeypatch, tmp_path):
    assert WORLD.validate() == []
    assert CODES.validate() == []
    folder = tmp_path / "base"
    shutil.copytree(BASE, folder)
    (folder / "cls.safetensors").write_bytes(b"other")
    monkeypatch.setattr("concordant.worlds.flow_digits.world.BASE", folder)
    assert WORLD.validate() == ["cls.safetensors is not the file that config.json describes"]


# ---- rewards -------------------------------------------------------------------------------------------------------


def test_pixel_rewards_by_hand():
    half, one = blank(), pixels((0, 0))
    half[:, :4] = 1.0
    images = [blank(), blank(1.0), half, one]
    assert rewards.ink(images) == pytest.approx([0.0, 1.0, 0.5, 1 / 64])
    assert rewards.symmetry(images) == pytest.approx([1.0, 1.0, 0.0, 1 - 2 / 64])
    # differences: 8 rows x 7 to the right, 7 x 8 down
    assert rewards.compressibility(images) == pytest.approx([0.0, 0.0, -8 / 56, -2 / 56])


def test_class_rewards_agree_with_each_other():
    made = WORLD.rewards
    given = asked(made["cls"], 50)
    chance, log = made["cls"](**given), made["cls_logp"](**given)
    assert chance == pytest.approx(np.exp(log).tolist(), rel=1e-5)
    assert np.mean(chance) > 0.9
    smooth = np.array(made["smooth_cls"](**given))
    assert smooth == pytest.approx(np.array(chance) + rewards.compressibility(given["image"]), abs=1e-6)
    wrong = {**given, "label": [(label + 1) % 10 for label in given["label"]]}
    assert np.mean(made["cls"](**wrong)) < 0.05


def test_attribute_reward_prefers_what_was_asked_for():
    made = CODES.rewards["attributes"]
    half = data.half("b")
    strokes = data.attributes(half.images)
    given = {"image": list(half.images), "label": half.labels.tolist()}
    right = made(**given, thickness=strokes[:, 0].tolist(), slant=strokes[:, 1].tolist())
    thin = made(**given, thickness=(strokes[:, 0] - 1).tolist(), slant=strokes[:, 1].tolist())
    labels = [(label + 1) % 10 for label in given["label"]]
    other = made(given["image"], labels, strokes[:, 0].tolist(), strokes[:, 1].tolist())
    assert np.mean(right) > -0.35
    assert np.mean(thin) == pytest.approx(-1.05, abs=0.15)
    assert np.mean(other) < -1.9


@pytest.mark.parametrize("name", BATCH)
def test_an_image_that_is_not_finite_has_no_value_and_moves_nobody(name):
    function = CODES.rewards[name]
    given = asked(function)
    want = function(**given)
    images = [*given["image"][:2], broken(), *given["image"][3:]]
    got = function(**{**given, "image": images})
    assert math.isnan(got[2])
    assert [got[i] for i in (0, 1, 3)] == pytest.approx([want[i] for i in (0, 1, 3)], abs=1e-6)
    assert all(math.isnan(v) for v in function(**asked(function, 2, image=[broken(), broken()])))
    back = {key: values[::-1] for key, values in given.items()}
    assert function(**back) == pytest.approx(want[::-1], abs=1e-5)
    assert declared(function) == {"level": "batch", "inline": True}
    assert as_reward(pickle.loads(pickle.dumps(function)), name).level == "batch"
    with pytest.raises(DataError, match=r"\(8, 8, 1\)"):
        function(**asked(function, image=[np.zeros((28, 28, 1))] * 4))


def test_the_engine_records_it_as_missing(tmp_path):
    given = asked(WORLD.rewards["cls"], 3)
    table = Table.of({name: ("b", torch.arange(3)) for name in ("id", "group", "task")}, given)
    table.fields["image"][1] = broken()
    wanted = [as_reward(WORLD.rewards[name], name) for name in ("cls", "ink")]
    engine = Engine(wanted, 1)
    try:
        scored = begin(table, wanted, engine=engine)().table
    finally:
        engine.close()
    assert scored["cls"].isnan().tolist() == scored["ink"].isnan().tolist() == [False, True, False]


def test_the_attribute_reward_belongs_to_its_prompts():
    assert set(CODES.rewards) - set(WORLD.rewards) == {"attributes"}


# ---- judges --------------------------------------------------------------------------------------------------------


def pairs():
    """Real digits of the prompted class against real digits of another one."""
    half = data.half("b")
    order = np.random.default_rng(0).permutation(len(half.labels))
    other = half.labels[order] != half.labels
    left, right = half.images[other], half.images[order][other]
    return list(left), list(right), half.labels[other].tolist()


@pytest.mark.parametrize("name", sorted(WORLD.judges))
def test_judges_do_not_care_for_the_order(name):
    judge = WORLD.judges[name]
    left, right, labels = (values[:100] for values in pairs())
    shares = np.array(judge(left, right, labels))
    assert set(shares) <= {0.0, 0.5, 1.0}
    assert np.array_equal(shares + judge(right, left, labels), np.ones(100))
    assert judge(left[:1], left[:1], labels[:1]) == [0.5]
    got = judge([broken(), left[1], left[2]], [right[0], broken(), right[2]], labels[:3])
    assert math.isnan(got[0])
    assert math.isnan(got[1])
    assert got[2] == shares[2]
    with pytest.raises(DataError, match="2 left images, 1 right"):
        judge(left[:2], right[:1], labels[:2])
    with pytest.raises(DataError, match=r"\(8, 8, 1\)"):
        judge(left[:1], [np.zeros((4, 4))], labels[:1])


def test_judges_that_were_told_the_truth_know_it():
    left, right, labels = pairs()
    share = {name: np.mean(judge(left, right, labels)) for name, judge in WORLD.judges.items()}
    assert min(share["pairwise"], share["pairwise_strict"], share["quality"]) > 0.75
    assert abs(share["shuffled"] - 0.5) < 0.1


def test_only_the_strict_judge_knows_no_ties():
    half = data.half("b")
    same = [half.images[half.labels == 3][i : i + 80] for i in (0, 5)]
    shares = {name: judge(list(same[0]), list(same[1]), [3] * 80) for name, judge in WORLD.judges.items()}
    assert shares["pairwise_strict"].count(0.5) == shares["quality"].count(0.5) == 0
    assert shares["pairwise"].count(0.5) > 20
    assert shares["quality_margin"].count(0.5) > 5


# ---- metrics and meters --------------------------------------------------------------------------------------------


def tensors(half, rows=slice(None)):
    return stack(list(half.images[rows]))[0], torch.from_numpy(half.labels[rows])


def test_set_metrics_of_real_digits_of_copies_and_of_noise():
    real = {k: float(np.mean(v)) for k, v in sets.measure(*tensors(data.half("b"))).items()}
    assert real["precision"] > 0.93
    assert real["recall"] > 0.93
    assert 0.8 < real["density"] < 1.2
    assert 0.9 < real["diversity"] < 1.1
    assert abs(real["mmd"]) < 0.005
    one = data.half("b").images[:1].repeat(200, 0)
    copies = sets.measure(*tensors(data.Digits(one, np.zeros(200, dtype=np.int64))))
    assert copies["diversity"][0] < 1e-6
    assert copies["recall"][0] < 0.02
    assert copies["mmd"][0] > 0.2
    chaos = np.random.default_rng(0).uniform(size=(200, 8, 8, 1)).astype(np.float32)
    noise = {
        k: float(np.mean(v))
        for k, v in sets.measure(*tensors(data.Digits(chaos, np.arange(200) % 10))).items()
    }
    assert noise["density"] < 0.3
    assert noise["recall"] < 0.1
    assert noise["frechet"] > 100 * real["frechet"]


def test_distances_by_hand():
    ours = sets.reference()
    assert sets.frechet(ours.features, ours) == pytest.approx(0.0, abs=1e-4)
    assert sets.frechet(ours.features + 1.0, ours) == pytest.approx(32.0, abs=1e-4)  # 32 features moved by 1
    assert sets.inside(ours.features, ours)[0].min() == 1.0
    assert sets.recall(ours.features, ours) == 1.0


def test_small_sets_leave_out_what_they_cannot_have():
    half = data.half("b")
    assert sets.measure(*tensors(half, slice(0))) == {}
    assert set(sets.measure(*tensors(half, slice(1)))) == {"precision", "density"}
    assert set(sets.measure(*tensors(half, slice(3)))) == {"precision", "density", "mmd", "frechet"}


def table_of(images, labels, group, **more):
    return Table.of({"group": ("b", torch.tensor(group))}, {"image": images, "label": labels, **more})


def test_evaluate_counts_broken_rows_as_failures_and_leaves_them_out_of_the_rest():
    half = data.half("b")
    images = [*half.images[:9], broken()]
    judged = WORLD.evaluate(table_of(images, half.labels[:10].tolist(), [0] * 10))
    assert judged["accuracy"] == [1.0] * 9 + [0.0]
    assert judged["gold"][9] == judged["cls"][9] == 0.0
    assert judged["broken"] == [0.0] * 9 + [1.0]
    assert {len(judged[name]) for name in ("ink", "symmetry", "compressibility", "precision")} == {9}
    assert not any(math.isnan(value) for values in judged.values() for value in values)
    nothing = WORLD.evaluate(table_of([broken()], [3], [0]))
    assert nothing == {"gold": [0.0], "accuracy": [0.0], "cls": [0.0], "broken": [1.0]}


def test_evaluate_measures_prompted_attributes_exactly():
    half = data.half("a")
    strokes = data.attributes(half.images[:6])
    images = [*half.images[:5], blank()]
    fields = {"thickness": (strokes[:, 0] + 0.5).tolist(), "slant": strokes[:, 1].tolist()}
    judged = CODES.evaluate(table_of(images, half.labels[:6].tolist(), [0] * 6, **fields))
    assert judged["thickness_error"] == pytest.approx([0.5] * 5)  # the empty image has no strokes to measure
    assert judged["slant_error"] == pytest.approx([0.0] * 5)
    assert judged["distance"] == pytest.approx([-0.5] * 5, abs=0.05)
    assert len(judged["attributes"]) == 6


def test_meters_see_ties_and_gaps():
    half = data.half("b")
    one = half.images[half.labels == 1][0]
    images = [one, one, *half.images[half.labels == 2][:2], broken(), one]
    found = WORLD.meters(table_of(images, [1, 1, 2, 3, 1, 1], [0, 0, 1, 1, 2, 2]))
    assert found["tied_groups"] == pytest.approx(2 / 3)
    assert found["spread_cls"] == pytest.approx(0.5 / 3, abs=0.01)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["broken"] == pytest.approx(1 / 6)
    assert found["gap"] == pytest.approx(found["cls"] - found["gold"])
    assert meters.TIE == 1e-3


# ---- bases ---------------------------------------------------------------------------------------------------------


def sampled(world, steps, count, group_size):
    noise = 1.0 if world.config.model == "ddim" else 0.0
    plan = FlowPlan(group_size=group_size, steps=steps, noise=noise)
    return world.policy().sample(world.tasks("test", count=count), plan, Rng(0, "test"))


@pytest.mark.parametrize("model", ["mlp", "dit"])
def test_bases_draw_the_prompted_class_in_two_of_three_samples(model):
    world = DigitsWorld(DigitsConfig(model=model))
    judged = world.evaluate(sampled(world, 20, 10, 60 if model == "mlp" else 30))
    assert 0.56 < np.mean(judged["accuracy"]) < 0.74
    assert 0.56 < np.mean(judged["cls"]) < 0.74
    assert np.mean(judged["precision"]) > (0.85 if model == "mlp" else 0.7)
    assert judged["recall"][0] > 0.8


def test_the_noise_base_follows_attributes():
    table = sampled(CODES, 20, 200, 2)
    judged = CODES.evaluate(table)
    assert 0.4 < np.mean(judged["accuracy"]) < 0.75
    made = CODES.rewards["attributes"]
    names = ("label", "thickness", "slant")
    right = made(table.fields["image"], *(table.fields[name] for name in names))
    other = made(
        table.fields["image"], *(table.fields[name][100:] + table.fields[name][:100] for name in names)
    )
    assert np.mean(right) > np.mean(other) + 0.3
