"""The doctor: what it says about the key that models are signed with."""

from pathlib import Path

import pytest

from stillhouse.contract import ExitCode
from stillhouse.orchestration.doctor import examine
from stillhouse.promotion.signing import SIGNING_KEY, SigningKeys, generate_key


def test_a_deployment_without_a_key_is_told_what_that_means(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(SIGNING_KEY, raising=False)
    examine()
    assert "models are not signed" in capsys.readouterr().out


def test_a_key_is_known_by_its_fingerprint_and_refused_if_open_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "key.pem"
    generate_key(path)
    monkeypatch.setenv(SIGNING_KEY, str(path))
    monkeypatch.setenv("COLUMNS", "500")
    keys = SigningKeys.from_environment()
    assert keys is not None
    examine()
    assert keys.fingerprint[:16] in capsys.readouterr().out
    path.chmod(0o644)
    assert examine() == ExitCode.CONFIGURATION
    assert "open to other users" in capsys.readouterr().out
