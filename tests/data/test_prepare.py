from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.contract import DataRejected
from stillhouse.data import Dropped, Tables, load_tables
from stillhouse.data.prepare import held_out_of, sample, split
from stillhouse.recipe import DataConfig, Splits

Make = Callable[..., tuple[Any, Path]]
SPLITS = Splits(validation=0.2, test=0.1)
label_counts = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def _frame(counts: list[int]) -> pd.DataFrame:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    texts = [f"text {number}" for number in range(len(labels))]
    return pd.DataFrame({"id": [str(n) for n in range(len(labels))], "text": texts, "label": labels})


def _ids(frame: pd.DataFrame) -> list[str]:
    return list(frame["id"])


@given(label_counts, st.integers(0, 5))
def test_every_row_goes_into_exactly_one_set_and_keeps_its_order(counts: list[int], seed: int) -> None:
    frame = _frame(counts)
    sets = split({"train": frame}, Splits(seed=seed))
    assert list(sets) == ["train", "validation", "test"]
    assert sorted(_ids(frame)) == sorted(row for part in sets.values() for row in _ids(part))
    assert all(part.index.is_monotonic_increasing for part in sets.values())


@given(label_counts)
def test_each_set_gets_its_rounded_share_of_each_label(counts: list[int]) -> None:
    sets = split({"train": _frame(counts)}, SPLITS)
    for label, count in enumerate(counts):
        in_test, in_validation = ((sets[name]["label"] == label).sum() for name in ("test", "validation"))
        assert in_test == min(round(0.1 * count), count - 1)
        assert in_validation == min(round(0.2 * count), count - 1 - in_test)
        assert (sets["train"]["label"] == label).sum() >= 1


def test_a_label_with_one_row_stays_in_train_however_large_the_shares() -> None:
    sets = split({"train": _frame([1, 2, 20])}, Splits(validation=0.49, test=0.49))
    assert set(sets["train"]["label"]) == {0, 1, 2}


@given(label_counts, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_decide_where_they_go(counts: list[int], random: Any) -> None:
    frame = _frame(counts)
    order = list(range(len(frame)))
    random.shuffle(order)
    shuffled = frame.iloc[order].reset_index(drop=True)
    for name, part in split({"train": frame}, SPLITS).items():
        assert set(_ids(part)) == set(_ids(split({"train": shuffled}, SPLITS)[name]))
    assert set(_ids(sample(frame, 3, seed=1))) == set(_ids(sample(shuffled, 3, seed=1)))


def test_added_rows_move_few_others() -> None:
    grown = _frame([220])
    before = set(_ids(split({"train": grown.iloc[:200]}, SPLITS)["test"]))
    after = set(_ids(split({"train": grown}, SPLITS)["test"]))
    assert len(before - after) <= 4


def test_the_seed_decides_where_rows_go() -> None:
    frame = _frame([200])
    tests = [frozenset(_ids(split({"train": frame}, Splits(seed=seed))["test"])) for seed in range(5)]
    assert len(set(tests)) == 5
    assert _ids(sample(frame, 50, seed=1)) != _ids(sample(frame, 50, seed=2))


@given(st.integers(1, 60))
def test_a_sample_has_the_size_asked_for_or_all_rows_in_order(max_rows: int) -> None:
    frame = _frame([40])
    sampled = sample(frame, max_rows, seed=7)
    assert len(sampled) == min(max_rows, 40)
    assert sampled.index.is_monotonic_increasing


def test_tables_of_the_recipe_are_not_cut_again() -> None:
    frames = {"train": _frame([50]), "test": _frame([5]), "ood-x": _frame([9])}
    sets = split(frames, SPLITS)
    assert {name: len(part) for name, part in sets.items()} == {"train": 40, "validation": 10, "test": 5, "ood-x": 9}


def test_what_teaches_or_tunes_shares_no_text_with_what_judges() -> None:
    names = ["train", "validation", "test", "ood-a", "ood-b"]
    assert held_out_of("train", names) == ["validation", "test", "ood-a", "ood-b"]
    assert held_out_of("validation", names) == ["test", "ood-a", "ood-b"]
    assert held_out_of("test", names) == held_out_of("ood-a", names) == []


def _load(make_table: Make, tables: dict[str, tuple[list[str], dict[str, Any]]], **more: Any) -> Tables:
    """Load tables of the columns text and label; ``more`` are fields of the section ``data``."""
    named: dict[str, Any] = {}
    for name, (rows, fields) in tables.items():
        made, _ = make_table("\n".join(["text,label", *rows]), name=name, **fields)
        named[name] = made
    kinds = {"ood-scope": "out-of-scope"}
    more["ood"] = [
        {"name": name.removeprefix("ood-"), "kind": kinds.get(name, "shifted-domain"), "table": named.pop(name)}
        for name in list(named)
        if name.startswith("ood-")
    ]
    if "reference" in named:
        more["coverage"] = {"reference": named.pop("reference")} | more.get("coverage", {})
    config = DataConfig.model_validate({"domain": "d", "labels": ["no", "yes"], **more, **named})
    return load_tables(config, lambda source: Path(source.path))  # type: ignore[union-attr]


PLENTY = [f"text {number},{'yes' if number % 2 else 'no'}" for number in range(40)]


def test_the_first_of_equal_texts_is_kept_and_the_others_are_counted(make_table: Make) -> None:
    extra = ["TEXT  3,yes", "text 3 ,no", "text 4,yes"]
    tables = _load(make_table, {"train": (PLENTY + extra, {"duplicates": "drop"})})
    assert tables.dropped["train"] == Dropped(duplicates=3, conflicting=2)
    rows = pd.concat(tables.values())
    assert len(rows) == 40
    assert rows.set_index("id").loc["3", "label"] == 1


def test_missing_texts_are_no_duplicates_of_each_other(make_table: Make) -> None:
    tables = _load(make_table, {"train": ([*PLENTY, ",no", ",yes"], {"duplicates": "drop"})})
    assert tables.dropped["train"] == Dropped()


def test_rejected_duplicates_are_left_for_the_suites_to_name(make_table: Make) -> None:
    tables = _load(make_table, {"train": ([*PLENTY, "text 3,yes"], {})})
    assert sum(map(len, tables.values())) == 41
    assert tables.dropped["train"] == Dropped()


def test_training_data_gives_way_to_held_out_sets(make_table: Make) -> None:
    tables = _load(
        make_table,
        {
            "train": (PLENTY, {"duplicates": "drop"}),
            "test": (["Text 1,yes", "other,no"], {}),
            "ood-web": (["text  2,no", "third,no"], {"max_rows": 1}),
        },
    )
    assert tables.dropped == {"train": Dropped(held_out=2), "test": Dropped(), "ood-web": Dropped(sampled=1)}
    assert len(tables["test"]) == 2
    assert not {"1", "2"} & set(_ids(pd.concat([tables["train"], tables["validation"]])))


def test_the_sets_come_in_one_order_and_their_rows_are_numbered_anew(make_table: Make) -> None:
    tables = _load(make_table, {"ood-web": (PLENTY, {}), "train": (PLENTY[:20], {"max_rows": 15})})
    assert list(tables) == ["train", "validation", "test", "ood-web"]
    assert all(list(frame.index) == list(range(len(frame))) for frame in tables.values())
    assert sum(len(tables[name]) for name in ("train", "validation", "test")) == 15


def test_too_few_rows_to_split_are_refused(make_table: Make) -> None:
    with pytest.raises(DataRejected, match="validation: no rows are left"):
        _load(make_table, {"train": (PLENTY[:4], {})})


def test_stratified_splits_keep_the_shares_of_the_labels() -> None:
    sets = split({"train": _frame([900, 100])}, Splits(validation=0.2, test=0.1))
    assert Counter(sets["validation"]["label"]) == {0: 180, 1: 20}
    assert Counter(sets["test"]["label"]) == {0: 90, 1: 10}


LONG = "a text of more than five words that somebody wrote about film {} and its music"
LONG_ROWS = [f"{LONG.format(f'n{number} x{number} y{number} z{number}')},yes" for number in range(40)]


def test_near_duplicates_of_held_out_texts_leave_what_is_learned_from(make_table: Make) -> None:
    edited = [row.replace("music", "songs") for row in LONG_ROWS[:6]]
    tables = _load(
        make_table,
        {
            "train": (LONG_ROWS, {}),
            "validation": (edited[:2] + PLENTY[:9], {}),
            "test": (edited[2:4] + PLENTY[9:20], {}),
            "ood-web": ([edited[4], edited[1].replace("a text", "one text"), *PLENTY[20:30]], {}),
        },
    )
    # What validation loses to a held-out set, train need not lose to validation.
    assert tables.dropped == {
        "train": Dropped(contaminated=4),
        "validation": Dropped(contaminated=1),
        "test": Dropped(),
        "ood-web": Dropped(),
    }
    assert _ids(tables["train"]) == ["1", *(str(number) for number in range(5, 40))]
    assert _ids(tables["validation"]) == [str(number) for number in range(11) if number != 1]


def test_near_duplicates_across_sets_that_were_cut_out_of_train_are_removed_and_counted(make_table: Make) -> None:
    twins = [row.replace("music", "songs") for row in LONG_ROWS]
    tables = _load(make_table, {"train": (LONG_ROWS + twins, {})})
    count = tables.dropped["train"].contaminated
    assert count > 0
    assert sum(map(len, tables.values())) == 80 - count
    seen = {name: {text.replace("songs", "music") for text in frame["text"]} for name, frame in tables.items()}
    assert not seen["train"] & (seen["validation"] | seen["test"])
    assert not seen["validation"] & seen["test"]
    assert len(tables["test"]) == 12


@pytest.mark.parametrize("contamination", [None, {"action": "warn"}, {"action": "reject"}])
def test_nothing_is_removed_unless_the_recipe_says_so(make_table: Make, contamination: Any) -> None:
    twins = [row.replace("music", "songs") for row in LONG_ROWS]
    tables = _load(make_table, {"train": (LONG_ROWS, {}), "test": (twins, {})}, contamination=contamination)
    assert tables.dropped["train"] == Dropped()
    assert len(tables["train"]) + len(tables["validation"]) == 40


def test_removing_near_duplicates_hides_no_leak(make_table: Make) -> None:
    test = [LONG_ROWS[3], LONG_ROWS[3].replace("music", "songs"), *PLENTY]
    tables = _load(make_table, {"train": (LONG_ROWS, {}), "test": (test, {})})
    assert tables.dropped["train"] == Dropped()
    assert "3" in _ids(pd.concat([tables["train"], tables["validation"]]))


def test_a_set_that_the_firewall_empties_is_refused(make_table: Make) -> None:
    twins = [row.replace("music", "songs") for row in LONG_ROWS]
    with pytest.raises(DataRejected, match="train: no rows are left"):
        _load(make_table, {"train": (LONG_ROWS, {}), "validation": (PLENTY, {}), "test": (twins, {})})


def test_texts_that_no_label_fits_keep_none(make_table: Make) -> None:
    scope = ["what is this,anything", "and this,else"]
    tables = _load(make_table, {"train": (PLENTY, {}), "ood-scope": (scope, {"prompt_column": "label"})})
    assert list(tables["ood-scope"].columns) == ["id", "text"]


@pytest.mark.parametrize(("bound", "columns"), [(None, ["id", "text"]), (0.5, ["id", "text", "label"])])
def test_the_reference_is_beside_the_sets_and_has_labels_if_they_are_bounded(
    make_table: Make, bound: float | None, columns: list[str]
) -> None:
    sets: dict[str, Any] = {
        "train": (PLENTY, {}),
        "reference": (["one,no", "one,yes", "two,no"], {"duplicates": "drop"}),
    }
    tables = _load(make_table, sets, coverage={"max_label_distance": bound})
    assert list(tables) == ["train", "validation", "test"]
    assert tables.reference is not None
    assert list(tables.reference.columns) == columns
    assert list(tables.reference["text"]) == ["one", "two"]


def test_perturbed_sets_come_last_and_follow_the_test_set(make_table: Make) -> None:
    perturbations = [{"name": "loud", "kind": "case", "strength": 1}, {"name": "short", "kind": "length"}]
    tables = _load(make_table, {"train": (PLENTY, {}), "ood-web": (PLENTY[:3], {})}, perturbations=perturbations)
    assert list(tables) == ["train", "validation", "test", "ood-web", "perturbed-loud", "perturbed-short"]
    for name in ("perturbed-loud", "perturbed-short"):
        assert tables[name][["id", "label"]].equals(tables["test"][["id", "label"]])
    assert list(tables["perturbed-loud"]["text"]) == [text.upper() for text in tables["test"]["text"]]


def test_prompted_rows_may_be_held_out_by_a_set_without_prompts(make_table: Make) -> None:
    train, _ = make_table(
        "prompt,text\n" + "".join(f"ask {n},say {n}\n" for n in range(20)),
        name="train",
        prompt_column="prompt",
        duplicates="drop",
    )
    other, _ = make_table("text\nsay 3\nelse\n", name="other")
    config = DataConfig.model_validate({"domain": "d", "train": train, "ood": [{"name": "other", "table": other}]})
    tables = load_tables(config, lambda source: Path(source.path))  # type: ignore[union-attr]
    assert sum(len(tables[name]) for name in ("train", "validation", "test")) == 20


def test_every_row_keeps_its_slices_wherever_it_goes(make_table: Make) -> None:
    rows = [f"r{n},the {n % 35}th good film,{n % 35 % 3}" for n in range(40)]
    train, _ = make_table(
        "id,text,part\n" + "\n".join(rows), id_column="id", slice_columns=["part"], duplicates="drop", max_rows=30
    )
    data = {
        "domain": "d",
        "train": train,
        "perturbations": [{"name": "loud", "kind": "case", "strength": 1}],
        "contamination": {"threshold": 1.0},
    }
    tables = load_tables(DataConfig.model_validate(data), lambda source: Path(source.path))  # type: ignore[union-attr]
    assert sum(len(tables[name]) for name in ("train", "validation", "test")) == 30
    for frame in tables.values():
        assert list(frame["slice:part"]) == [str(int(row[1:]) % 3) for row in frame["id"]]


@given(label_counts, st.integers(1, 5), st.randoms())
def test_rows_of_a_group_stay_together(counts: list[int], size: int, random: Any) -> None:
    frame = _frame(counts)
    frame["group"] = [f"g{row // size}" for row in range(len(frame))]
    sets = split({"train": frame}, SPLITS)
    places = {group: name for name, part in sets.items() for group in part["group"]}
    assert sum(part["group"].nunique() for part in sets.values()) == len(places)
    assert sorted(_ids(frame)) == sorted(row for part in sets.values() for row in _ids(part))
    shuffled = frame.sample(frac=1, random_state=random.randint(0, 9))
    again = split({"train": shuffled}, SPLITS)
    assert {name: set(_ids(part)) for name, part in again.items()} == {n: set(_ids(p)) for n, p in sets.items()}
