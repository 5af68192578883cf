"""A data set of a model hub. No hub can be reached here: a folder of the same layout takes its place."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stillhouse.contract import ConfigurationError, TryAgain
from stillhouse.recipe import HubDataSource
from stillhouse.store.hub_data import fetch_hub_data, fingerprint_hub_data

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "train.csv").write_text("text,label\nfine,1\nbad,0\n")
    (folder / "test.csv").write_text("text,label\nfair,1\n")
    return folder


def source(repo: object, **pins: str) -> HubDataSource:
    return HubDataSource.model_validate({"repo": str(repo), "revision": COMMIT} | pins)


def test_split_becomes_one_parquet_file(repo: Path, tmp_path: Path) -> None:
    path = fetch_hub_data(source(repo, split="train"), tmp_path / "cache")

    assert pq.read_table(path).to_pydict() == {"text": ["fine", "bad"], "label": [1, 0]}
    assert fetch_hub_data(source(repo, split="train"), tmp_path / "cache") == path
    assert pq.read_table(fetch_hub_data(source(repo, split="test"), tmp_path / "cache")).num_rows == 1


def test_missing_split_is_a_mistake_in_the_recipe(repo: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="split nothing: no such data set, configuration or split"):
        fetch_hub_data(source(repo, split="nothing"), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("**/*.parquet"))


def test_hub_out_of_reach_may_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)

    with pytest.raises(TryAgain, match="the hub does not answer"):
        fetch_hub_data(source("nobody/nothing"), tmp_path / "cache")


def test_every_pin_counts(repo: Path) -> None:
    pins = [source(repo), source(repo, split="test"), source(repo, config="b"), source(repo, revision="f" * 40)]
    assert len({fingerprint_hub_data(pin) for pin in pins}) == 4
