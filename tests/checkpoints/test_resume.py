"""Interrupted conversions: whatever the moment, the same call ends in the bytes of an undisturbed one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import difflm
from difflm.checkpoints import resume, shards
from difflm.checkpoints.convert import convert
from difflm.checkpoints.fields import write_json
from difflm.checkpoints.hf import file_sha256
from difflm.checkpoints.lock import FileLock
from difflm.checkpoints.manifest import guarded, unguarded, write_manifest
from difflm.checkpoints.merge import average_checkpoints
from difflm.checkpoints.resume import PROGRESS, Stage
from difflm.checkpoints.shards import ShardWriter
from difflm.errors import CheckpointError
from tests.checkpoints.tiny import ling_folder, make_tokenizer, write_tensors

LIMIT = 40_000


class Killed(BaseException):
    """The process ends here, as by SIGKILL: nothing is tidied up."""


class Notes:
    """Keeps what an observer is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.phases: list[tuple[str, int, int, int, int]] = []
        self.counts = [0, 0]

    def phase(self, name: str, *, size: int, files: int, done: int = 0, files_done: int = 0) -> None:
        self.phases.append((name, size, files, done, files_done))
        self.counts = [done, files_done]

    def advance(self, count: int, *, files: int = 0) -> None:
        self.counts[0] += count
        self.counts[1] += files

    def note(self, text: str) -> None:
        self.notes.append(text)


def written(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = make_tokenizer()
    return ling_folder(
        tmp_path_factory.mktemp("resume") / "parent",
        dtype=torch.bfloat16,
        tokenizer=tokenizer,
        vocab_size=len(tokenizer),
        num_experts_per_tok=2,
        eos_token_id=2,
    )


def run(parent: Path, out: Path, notes: Notes | None = None, **options: Any) -> None:
    convert(parent, out, **({"block_size": 4, "max_shard_bytes": LIMIT, "observer": notes or Notes()} | options))


@pytest.fixture(scope="module")
def whole(parent: Path) -> dict[str, bytes]:
    run(parent, parent.parent / "whole")
    found = written(parent.parent / "whole")
    assert len([name for name in found if name.startswith("model-")]) >= 4
    return found


def left(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial")


def die(monkeypatch: pytest.MonkeyPatch, at: int, watched: list[tuple[Any, str]]) -> list[str]:
    """Let the process die before the call number `at` of functions; return the list that the calls are entered in."""
    calls: list[str] = []

    def watch(owner: Any, name: str) -> None:
        real = vars(owner)[name]

        def counted(*args: Any, **options: Any) -> Any:
            calls.append(name)
            if len(calls) == at + 1:
                raise Killed
            return real(*args, **options)

        monkeypatch.setattr(owner, name, counted)

    for owner, name in watched:
        watch(owner, name)
    monkeypatch.setattr(Stage, "abandon", lambda stage: "")
    monkeypatch.setattr(FileLock, "close", lambda lock: lock._file.close())
    return calls


EVENTS = [(os, "fsync"), (os, "rename"), (os, "replace"), (os, "unlink"), (os, "mkdir"), (Stage, "finished")]


@pytest.fixture
def memory() -> Iterator[Path]:
    """Return a folder in memory where there is one: a kill asks nothing of a disk, and its flushes take time."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield Path(folder)


def test_a_kill_at_any_moment_is_made_good(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every flush, rename, deletion and finished file, one after the other."""
    tmp_path = memory
    parent = ling_folder(tmp_path / "parent", dtype=torch.bfloat16)
    run(parent, tmp_path / "whole", max_shard_bytes=50_000)
    whole, kept = written(tmp_path / "whole"), []
    for at in range(1000):
        out = tmp_path / f"{at}" / "out"
        out.parent.mkdir()
        with monkeypatch.context() as patch:
            calls = die(patch, at, EVENTS)
            with contextlib.suppress(Killed):
                run(parent, out, max_shard_bytes=50_000)
        notes = Notes()
        if out.exists():
            # A kill right after the folder got its name leaves the manifest in it, which nobody reads.
            with pytest.raises(CheckpointError, match="output folder is not empty"):
                run(parent, out, max_shard_bytes=50_000)
            (out / PROGRESS).unlink(missing_ok=True)
        else:
            run(parent, out, notes, max_shard_bytes=50_000)
        assert written(out) == whole, f"killed before {calls[-1]}, number {at}"
        assert {each.name for each in out.parent.iterdir()} <= {"out", ".out.lock"}
        kept.append(notes.phases[-1][-1] if notes.phases else -1)
        shutil.rmtree(out.parent)
        if len(calls) <= at:
            break
    shard_count = len([name for name in whole if name.startswith("model-")])
    assert set(range(shard_count + 1)) <= set(kept), "killed with every number of finished files"


def test_pieces_of_a_file_that_was_not_finished_are_written_again(
    parent: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in (0, 5, 23, 40):
        out = tmp_path / f"out{at}"
        with monkeypatch.context() as patch:
            die(patch, at, [(ShardWriter, "put")])
            with pytest.raises(Killed):
                run(parent, out)
        assert left(out).is_dir()
        run(parent, out)
        assert written(out) == whole


def test_a_killed_process_and_the_command_line(
    parent: Path, whole: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code = f"""
import os, signal, sys
from difflm.checkpoints.convert import convert
from difflm.checkpoints.resume import Stage
finished = Stage.finished
def dying(stage, path):
    if len(stage.finished_files) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    finished(stage, path)
Stage.finished = dying
convert(sys.argv[1], sys.argv[2], block_size=4, max_shard_bytes={LIMIT})
"""
    child = subprocess.run([sys.executable, "-c", code, str(parent), str(out)], check=False)
    assert child.returncode == -signal.SIGKILL
    assert not out.exists()
    before = {path.name: path.stat().st_mtime_ns for path in left(out).glob("model-0000[12]*")}
    assert len(before) == 2
    notes = Notes()
    run(parent, out, notes)
    assert written(out) == whole
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before, "kept, not written again"
    assert notes.notes == [
        f"{out}: continuing an interrupted attempt, 2 of {notes.phases[-1][2]} weight files are finished and intact"
    ]
    assert [phase[0] for phase in notes.phases] == ["hashing the source", "verifying what is finished", "writing"]
    _, size, files, done, files_done = notes.phases[-1]
    sizes = {name: len(content) for name, content in whole.items() if name.startswith("model-")}
    assert (size, files) == (sum(sizes.values()), len(sizes))
    assert (done, files_done) == (sum(sizes[name] for name in before), 2)
    assert notes.counts == [size, files]


def interrupted(parent: Path, out: Path, finished: int = 2, call: Callable[..., Any] = run, **options: Any) -> None:
    """Stop a conversion (Ctrl-C) after some finished files."""
    real = Stage.finished

    def stop(stage: Stage, path: Path) -> None:
        if len(stage.finished_files) == finished:
            raise KeyboardInterrupt
        real(stage, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage, "finished", stop)
        with pytest.raises(KeyboardInterrupt):
            call(parent, out, **options)


def test_ctrl_c_says_what_is_kept_and_an_early_one_leaves_nothing(
    parent: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out, notes = tmp_path / "out", Notes()
    interrupted(parent, out, 3, notes=notes)
    assert notes.notes == [f"finished weight files kept in {left(out)}: 3, the same command continues"]
    assert not out.exists()
    run(parent, out)
    assert written(out) == whole
    interrupted(parent, tmp_path / "early", 0)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "block": ({"block_size": 8}, "block_size was 4, is 8"),
    "shift": ({"logit_shift": True}, "logit_shift was False, is True"),
    "clean": ({"clean_attention": "causal"}, "clean_attention was 'block', is 'causal'"),
    "noisy": ({"noisy_attention": "causal"}, "noisy_attention was 'bidirectional', is 'causal'"),
    "mask": (
        {"mask_token": "<spare_0>"},
        r"mask_token_id was \d+, is \d+, mask_token was '<\|mask\|>', is '<spare_0>'",
    ),
    "init": ({"mask_init": "keep", "mask_token": "<spare_0>"}, r"mask_token_id was .*mask_init was 'mean', is 'keep'"),
    "dtype": ({"dtype": "float32"}, "dtype was None, is 'torch.float32'"),
    "licence": ({"licence": "MIT"}, "license was None, is 'MIT'"),
    "recipe": ({"recipe": {"a": [1, 2]}}, r"recipe\.a was None, is \[1, 2\]"),
    "shards": ({"max_shard_bytes": 30_000}, f"max_shard_bytes was {LIMIT}, is 30000"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_option_is_refused_and_named(name: str, parent: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    options, message = CHANGES[name]
    out = tmp_path / "out"
    interrupted(parent, out)
    before = written(left(out))
    with pytest.raises(CheckpointError, match=message) as caught:
        run(parent, out, **options)
    assert str(caught.value).startswith(f"{out}: an interrupted attempt lies in {left(out)}, of something else: ")
    assert str(caught.value).endswith("; repeat what it was, or start anew with --fresh (fresh=True in Python)")
    assert written(left(out)) == before, "untouched"
    run(parent, out, fresh=True, **options)
    assert written(out) != whole
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_another_version_is_refused(parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(parent, tmp_path / "out")
    monkeypatch.setattr(difflm, "__version__", "9.9")
    with pytest.raises(CheckpointError, match=r"version was '.*', is '9\.9'"):
        run(parent, tmp_path / "out")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json"])
def test_another_parent_is_refused(file: str, parent: Path, tmp_path: Path) -> None:
    source = shutil.copytree(parent, tmp_path / "source")
    write_json(source / "generation_config.json", {"temperature": 0.5})
    interrupted(source, tmp_path / "out")
    if file == "model.safetensors":
        content = bytearray((source / file).read_bytes())
        content[-1] ^= 1
        (source / file).write_bytes(content)
    else:
        (source / file).write_text((source / file).read_text() + "\n")
    with pytest.raises(CheckpointError, match=rf"of something else: {file} has another content; repeat"):
        run(source, tmp_path / "out")
    (source / "generation_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"generation_config\.json has another content"):
        run(source, tmp_path / "out")


def test_a_copy_under_another_name_is_the_same_parent(parent: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    interrupted(parent, tmp_path / "out")
    (tmp_path / "moved").mkdir()
    source = shutil.copytree(parent, tmp_path / "moved" / "parent")
    run(source, tmp_path / "out")
    assert written(tmp_path / "out") == whole


@pytest.mark.parametrize("damage", ["flipped", "short", "missing"])
def test_damaged_finished_files_are_written_again_and_said(
    damage: str, parent: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out, notes = tmp_path / "out", Notes()
    interrupted(parent, out)
    file = next(left(out).glob("model-00001-*"))
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flipped" else content[:-5])
    run(parent, out, notes)
    assert written(out) == whole
    assert notes.notes[0].startswith(f"{file}: {'missing' if damage == 'missing' else 'damaged (it'}")
    assert notes.notes[0].endswith("; it is written again")
    assert ", 1 of " in notes.notes[1]


def test_a_manifest_that_is_none_is_refused(parent: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupted(parent, out)
    path = left(out) / PROGRESS
    text = path.read_bytes()
    for content in (text[:-9], text.replace(b'"size": ', b'"size": 1'), b"{}", b"[]", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(
            CheckpointError, match=rf"its manifest {PROGRESS} is damaged \(.*\); start anew with --fresh"
        ):
            run(parent, out)
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"its manifest {PROGRESS} is missing; start anew with --fresh"):
        run(parent, out)
    run(parent, out, fresh=True)
    assert written(out) == whole


def test_a_full_disk_keeps_what_is_finished(
    parent: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "out", shards._write_at
    room = [2 * LIMIT]

    def write_at(file: Any, start: int, content: memoryview) -> None:
        room[0] -= len(content)
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, start, content)

    monkeypatch.setattr(shards, "_write_at", write_at)
    with pytest.raises(CheckpointError) as caught:
        run(parent, out)
    message = str(caught.value)
    assert message.startswith(f"{out}: cannot be written (No space left on device); free space or choose another path")
    assert message.endswith(f"finished weight files kept in {left(out)}: 1, the same command continues")
    monkeypatch.undo()
    run(parent, out)
    assert written(out) == whole


def test_room_is_asked_for_what_is_not_finished(parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(shards, "require_space", lambda folder, needed: asked.append(needed))
    interrupted(parent, tmp_path / "out")
    run(parent, tmp_path / "out")
    total, rest = asked
    assert total == sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert rest == total - sum(path.stat().st_size for path in (tmp_path / "out").glob("model-0000[12]*"))


def test_a_weight_file_is_on_the_disk_before_the_manifest_says_so(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    flush, write = resume.sync, resume.replace_text

    def sync(path: Path) -> None:
        done.append(path.name)
        flush(path)

    def replace_text(path: Path, text: str) -> None:
        done.append(f"manifest of {len(json.loads(text)['files'])}")
        write(path, text)

    monkeypatch.setattr(resume, "sync", sync)
    monkeypatch.setattr(resume, "replace_text", replace_text)
    run(parent, tmp_path / "out")
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    # Files are finished in any order; the stacks of two experts may end in different ones.
    assert done[0] == "manifest of 0"
    assert sorted(done[1:-1:2]) == files
    assert done[2:-1:2] == [f"manifest of {number}" for number in range(1, len(files) + 1)]
    assert done[-1] == "out"


def test_one_process_writes_to_a_target(parent: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    out, real = tmp_path / "out", Stage.begin
    refused: list[str] = []

    def begin(stage: Stage, *args: Any) -> None:
        real(stage, *args)
        for fresh in (False, True):
            with pytest.raises(CheckpointError) as caught:
                convert(parent, out, block_size=4, fresh=fresh)
            refused.append(str(caught.value))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage, "begin", begin)
        run(parent, out)
    assert written(out) == whole
    text = f"{out}: process {os.getpid()} on {os.uname().nodename} is writing it; wait for it or stop it, or choose"
    assert all(each.startswith(text) for each in refused)
    assert len(refused) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_target_that_another_process_finished_meanwhile_is_left_alone(
    parent: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    class Late(FileLock):
        def __init__(self, path: Path) -> None:
            monkeypatch.undo()
            run(parent, out)
            super().__init__(path)

    monkeypatch.setattr(resume, "FileLock", Late)
    with pytest.raises(CheckpointError, match="out: output folder is not empty; choose another path"):
        run(parent, out, block_size=8)
    assert written(out) == whole


def test_a_parent_that_changes_while_it_is_read_is_refused(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shutil.copytree(parent, tmp_path / "source")
    real = Stage.finished

    def finished(stage: Stage, path: Path) -> None:
        real(stage, path)
        file = source / "model.safetensors"
        os.utime(file, ns=(1, file.stat().st_mtime_ns + 1))

    monkeypatch.setattr(Stage, "finished", finished)
    with pytest.raises(CheckpointError, match=r"source/model\.safetensors: was changed while it was read"):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_parent_that_is_not_what_its_manifest_says(parent: Path, tmp_path: Path) -> None:
    source = shutil.copytree(parent, tmp_path / "source")
    write_manifest(source)
    run(source, tmp_path / "good")
    content = bytearray((source / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (source / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged \(its content is not what manifest\.json"):
        run(source, tmp_path / "bad")
    write_json(source / "manifest.json", {"files": "of somebody else's"})
    run(source, tmp_path / "other")


def test_a_parent_from_the_hubs_cache_is_what_its_name_says(parent: Path, tmp_path: Path) -> None:
    source = shutil.copytree(parent, tmp_path / "snapshots")
    (tmp_path / "blobs").mkdir()
    weights = source / "model.safetensors"
    blob = tmp_path / "blobs" / file_sha256(weights)
    weights.rename(blob)
    weights.symlink_to(blob)
    run(source, tmp_path / "good")
    other = blob.with_name("0" * 64)
    blob.rename(other)
    weights.unlink()
    weights.symlink_to(other)
    with pytest.raises(CheckpointError, match=rf"its content is not the hub's\); delete {other} and start again"):
        run(source, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("damage", ["truncated", "longer", "missing"])
def test_nothing_is_written_for_a_parent_with_a_damaged_shard(damage: str, parent: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    source = shutil.copytree(parent, tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    write_tensors(source, tensors, max_shard_bytes=LIMIT)
    last = sorted(source.glob("model-*"))[-1]
    content = last.read_bytes()
    last.unlink()
    if damage != "missing":
        last.write_bytes(content[:-1] if damage == "truncated" else content + b"\0")
    with pytest.raises(CheckpointError, match=last.name):
        run(source, tmp_path / "deep" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def merging(parent: Path, out: Path, notes: Notes | None = None, **options: Any) -> None:
    paths = [parent.parent / "whole", parent.parent / "whole"]
    average_checkpoints(paths, out, max_shard_bytes=LIMIT, observer=notes or Notes(), **options)


def test_merges_resume(parent: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    merging(parent, tmp_path / "whole")
    interrupted(parent, tmp_path / "out", call=merging)
    with pytest.raises(CheckpointError, match=r"weights was \[0\.5, 0\.5\], is \[0\.25, 0\.75\]"):
        merging(parent, tmp_path / "out", weights=[1, 3])
    with pytest.raises(CheckpointError, match=r"of something else: command was 'merge', is 'convert'"):
        run(parent, tmp_path / "out")
    merging(parent, tmp_path / "out")
    assert written(tmp_path / "out") == written(tmp_path / "whole")


def test_without_an_observer_notes_are_warnings(parent: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    interrupted(parent, tmp_path / "out")
    with pytest.warns(UserWarning, match="continuing an interrupted attempt, 2 of"):
        convert(parent, tmp_path / "out", block_size=4, max_shard_bytes=LIMIT)
    assert written(tmp_path / "out") == whole


def test_the_manifest_guards_itself() -> None:
    content = {"a": 1, "b": {"c": [1.5, "x"]}}
    assert unguarded(guarded(content).encode()) == content
    with pytest.raises(ValueError, match="not as it was written"):
        unguarded(json.dumps(content).encode())
