"""Arrays as fields: exact wherever a field goes, and never unpickled from a file."""

import doctest
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from concordant.core.errors import DataError, RewardError
from concordant.core.table import Table
from concordant.loops import samples
from concordant.loops.records import Records, as_rows, as_table
from concordant.scoring import arrays, pairs, plan, values
from concordant.scoring.engine import Engine
from concordant.scoring.keys import fingerprint, key, row_keys
from concordant.scoring.outcome import Rows
from concordant.scoring.replay import rescore
from concordant.scoring.reward import as_reward, load_reward, reward
from concordant.scoring.scores import score
from concordant.scoring.workers import schedule

ROOM = Path(__file__).with_name("room.py")
RNG = np.random.default_rng(0)


def images(count: int, *shape: int) -> list[Any]:
    return list(RNG.random((count, *(shape or (8, 8, 1))), dtype=np.float32))


def brightness(image: Any) -> float:
    return float(image.mean())


ODD = [
    np.array([[np.nan, -0.0], [np.inf, 5e-324]]),
    np.zeros((0, 3), np.float32),
    np.array(1.5, dtype=np.float16),
    np.arange(6, dtype=">i2").reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(12.0)[::-2],
    np.array([True, False]),
    np.array([1 + 2j], dtype=np.complex64),
]


# ---- JSON ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("array", ODD, ids=lambda a: f"{a.dtype}{a.shape}")
def test_what_is_written_is_read_to_the_bit(array: Any) -> None:
    text = arrays.dump({"frames": [array, {"deep": array}], "note": "x"})
    told = arrays.restore(json.loads(text))
    for found in (told["frames"][0], told["frames"][1]["deep"]):
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert found.tobytes() == array.tobytes()
        found.flat[:1] = 0  # whoever reads it may write to it
    assert told["note"] == "x"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"shape": [2], "data": "AAAA"}, "does not have 3 bytes"),
        ({"shape": [2], "data": "?"}, "cannot be read"),
        ({"shape": [-1], "data": ""}, "list of sizes"),
        ({"shape": [True], "data": "AAAAAA=="}, "list of sizes"),
        ({"shape": []}, "has the keys"),
        ({arrays.MARK: "O", "shape": [1], "data": "AAAAAAAAAAA="}, "plain numbers"),
        ({arrays.MARK: "V8", "shape": [1], "data": "AAAAAAAAAAA="}, "plain numbers"),
        ({arrays.MARK: [["a", "<f4"]], "shape": [1], "data": "AAAAAA=="}, "an array"),
        ({arrays.MARK: "no type", "shape": [1], "data": ""}, "cannot be read"),
    ],
)
def test_what_only_says_that_it_is_an_array_is_refused(said: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arrays.restore({arrays.MARK: "<f4", **said})


def test_objects_are_never_written() -> None:
    for value in (np.array([None]), np.array([("a", 1)], dtype=[("n", "U1"), ("k", "i4")]), {1, 2}):
        with pytest.raises(DataError, match="cannot be stored"):
            arrays.dump(value)


# ---- keys ----------------------------------------------------------------------------------------------------------


def test_equal_keys_mean_equal_type_shape_and_bytes() -> None:
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    name = key(b"f", {"image": base})
    same = [base.copy(), np.asfortranarray(base), np.repeat(base, 2, axis=0)[::2]]
    assert [key(b"f", {"image": each}) for each in same] == [name] * 3
    nudged = base.copy()
    nudged[2, 3] = np.nextafter(nudged[2, 3], 99)
    other = [
        base.T.copy(),
        base.reshape(4, 3),
        base.astype(np.float64),
        base.astype(">f4"),
        nudged,
        -base * 0,
    ]
    assert len({name, *(key(b"f", {"image": each}) for each in other)}) == 7
    text = arrays.name(base)
    assert key(b"f", {"image": text}) != name, "a text that looks like the name of an array is none"
    assert key(b"f", {"image": np.array([None])}) is None
    assert key(b"f", {"image": np.ma.masked_array([1.0])}) is None


def test_keys_of_columns_are_those_of_rows() -> None:
    fields = {"image": images(3), "prompt": ["a", "b", "c"]}
    whole = row_keys(b"f", fields)
    assert whole == [
        key(b"f", {"image": fields["image"][i], "prompt": fields["prompt"][i]}) for i in range(3)
    ]
    assert len(set(whole)) == 3


# ---- the engine ----------------------------------------------------------------------------------------------------


def test_a_worker_is_given_the_array_itself() -> None:
    one = load_reward(f"{ROOM}:pixel")
    shown = [*images(5), np.full((8, 8, 1), np.nan, np.float32), np.asfortranarray(images(1)[0])]
    with Engine([one]) as engine:
        found = engine.run(Rows({"image": shown, "place": [0] * 7}))["pixel"]
    assert [o.value for o in found[:5]] == [float(image.flat[0]) for image in shown[:5]]
    assert found[5].reason == "returned nan"
    assert found[6].value == float(shown[6][0, 0, 0])


def test_equal_images_share_a_call_and_the_cache_knows_them(tmp_path: Path) -> None:
    first, second = images(2)
    rows = Rows({"image": [first, second, first.copy(), np.asfortranarray(second)]})
    for remote in (False, True):
        one = load_reward(f"{ROOM}:mean", inline=not remote)
        with Engine([one], cache=tmp_path / f"{remote}.sqlite") as engine:
            values = [o.value for o in engine.run(rows)["mean"]]
            assert engine.stats["mean"].calls == 2
            assert engine.stats["mean"].repeated == 2
            again = engine.run(rows)["mean"]
        assert values == [pytest.approx(float(image.mean())) for image in rows.fields["image"]]
        assert all(o.cached for o in again)
        assert [o.value for o in again] == values


def test_an_array_inside_a_list_of_a_group_is_sent_too() -> None:
    one = load_reward(f"{ROOM}:brightest")
    shown = images(4)
    with Engine([one]) as engine:
        found = engine.run(Rows({"image": shown}, group=[0, 0, 1, 1]))["brightest"]
    means = [image.mean() for image in shown]
    assert [o.value for o in found] == [
        float(means[i] == max(means[2 * (i // 2) : 2 * (i // 2) + 2])) for i in range(4)
    ]


def test_large_images_go_out_in_chunks_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "CHUNK_BYTES", 1 << 20)
    shown = images(24, 256, 256, 3)  # 768 KB each: a chunk takes one
    with Engine([load_reward(f"{ROOM}:mean")]) as engine:
        found = engine.run(Rows({"image": shown}))["mean"]
    assert [o.value for o in found] == [pytest.approx(float(image.mean()), abs=1e-6) for image in shown]


def test_a_call_with_more_than_a_worker_takes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "LARGEST", 1000)
    with (
        Engine([load_reward(f"{ROOM}:mean")]) as engine,
        pytest.raises(RewardError, match="judge fewer rows"),
    ):
        engine.run(Rows({"image": images(1, 32, 32, 1)}))


def test_the_worker_side_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, concordant.scoring.workers.child, concordant.scoring.pairs, concordant.scoring.arrays;"
        "print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


# ---- tables and files ----------------------------------------------------------------------------------------------


def table(shown: list[Any]) -> Table:
    rows = len(shown)
    return Table.of(
        {
            "id": ("b", torch.arange(rows) + 10),
            "group": ("b", torch.arange(rows) // 2),
            "mask": ("b s", torch.ones(rows, 2, dtype=torch.bool)),
            "drift": ("b s", torch.rand(rows, 2)),
            "keep": ("b", torch.ones(rows, dtype=torch.bool)),
        },
        {"prompt": [f"digit {i // 2}" for i in range(rows)], "image": shown},
    )


def test_a_table_with_images_comes_back_from_its_rows() -> None:
    made = table(images(4))
    back = as_table(json.loads(json.dumps(as_rows(made))))
    for before, after in zip(made.fields["image"], back.fields["image"], strict=True):
        assert after.dtype == np.float32
        assert np.array_equal(before, after)
    assert torch.equal(made["drift"], back["drift"])
    assert back.axes("drift") == made.axes("drift")


def test_stored_images_are_scored_again(tmp_path: Path) -> None:
    made = score(table(images(6)), [as_reward(brightness)]).table
    records = Records(tmp_path)
    records.rewind(0)
    records.add_rollouts(1, made, 100)
    records.commit(1)
    records.finish()
    stored = tmp_path / "rollouts.parquet"
    cell = pq.read_table(stored).column("field.image")[0].as_py()
    assert json.loads(cell)["shape"] == [8, 8, 1]
    again = load_reward(f"{ROOM}:brightness")
    for out in ("scores.parquet", "scores.jsonl"):
        told = rescore(stored, [again], tmp_path / out, cache=tmp_path / "cache.sqlite")
        assert told.rewards["brightness"]["scored"] == 6
        assert told.rewards["brightness"]["agreement"]["equal"] == 1.0
        once_more = rescore(tmp_path / out, [load_reward(f"{ROOM}:mean")])  # what was written can be read
        assert once_more.rewards["mean"]["scored"] == 6
    assert told.rewards["brightness"]["cached"] == 6, "the second time from the cache"


def test_lines_of_a_users_file_may_hold_arrays(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    shown = images(3)
    file.write_text("".join(arrays.dump({"prompt": "p", "image": image}) + "\n" for image in shown))
    told = rescore(file, [load_reward(f"{ROOM}:mean")])
    assert told.rewards["mean"]["mean"] == pytest.approx(float(np.mean(shown)), abs=1e-6)
    broken = json.loads(arrays.dump({"prompt": "p", "image": shown[0]}))
    broken["image"]["shape"] = [9, 9]
    with file.open("a") as lines:
        lines.write(json.dumps(broken) + "\n")
    with pytest.raises(
        DataError, match=r"r\.jsonl, line 4: field 'image': an array of <f4 and shape \[9, 9\]"
    ):
        rescore(file, [load_reward(f"{ROOM}:mean")])


def test_an_object_in_a_column_of_images_is_told_with_its_row(tmp_path: Path) -> None:
    pq.write_table(
        pa.table(
            {"step": [1], "axes": ["{}"], "group": [0], "field.image": ['{"concordant.array": "O"}']},
        ),
        tmp_path / "r.parquet",
    )
    with pytest.raises(DataError, match="row 0: field 'image'"):
        rescore(tmp_path / "r.parquet", [load_reward(f"{ROOM}:mean")])


@reward(level="batch")
def ranks(image: list[Any]) -> list[float]:
    means = [each.mean() for each in image]
    return [float(sorted(means).index(mean)) for mean in means]


def test_fingerprints_do_not_depend_on_images() -> None:
    before = fingerprint(as_reward(ranks))
    assert score(table(images(4)), [as_reward(ranks)]).table["ranks"].sort().values.tolist() == [0, 1, 2, 3]
    assert fingerprint(as_reward(ranks)) == before


@pytest.mark.parametrize("module", [arrays, pairs, values, samples], ids=lambda module: module.__name__)
def test_docstrings(module: Any) -> None:
    found = doctest.testmod(module)
    assert found.failed == 0
    assert found.attempted > 0
