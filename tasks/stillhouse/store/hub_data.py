"""Data sets of the Hugging Face hub."""

from pathlib import Path

from stillhouse.contract import ConfigurationError, TryAgain, canonical_json, sha256_of
from stillhouse.recipe import HubDataSource
from stillhouse.store.downloads import cached_entry


def fetch_hub_data(source: HubDataSource, cache: Path) -> Path:
    """Return a Parquet file with a split of a data set of the hub, read by `datasets`."""
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetNotFoundError
    except ImportError:
        raise ConfigurationError(f"{source.repo}: install stillhouse[ml] to read data sets of the hub") from None

    def fill(folder: Path) -> None:
        try:
            rows = load_dataset(source.repo, source.config, split=source.split, revision=source.revision)
        except (DatasetNotFoundError, ValueError):
            raise ConfigurationError(
                f"{source.title}: no such data set, configuration or split for this token; correct the recipe"
            ) from None
        except OSError:
            raise TryAgain(
                f"{source.repo}: the hub does not answer; check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
            ) from None
        rows.to_parquet(folder / f"{source.split}.parquet")

    return cached_entry(cache / "hub-data" / fingerprint_hub_data(source), fill) / f"{source.split}.parquet"


def fingerprint_hub_data(source: HubDataSource) -> str:
    """Return a digest of the pins of a data set of the hub."""
    return sha256_of(canonical_json(source))
