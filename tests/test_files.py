"""Files appear whole or not at all."""
import pytest
import torch
from portrait_diffusion.files import (
    PARTIAL_PREFIX,
    atomic_path,
    remove_partial_files,
    save_tensors,
    write_bytes,
    write_text,
)


def test_the_target_appears_at_the_end_and_nothing_is_left(tmp_path):
    path = tmp_path / "deep" / "a.tar.gz"
    with atomic_path(path) as partial:
        assert partial.parent == path.parent and partial.suffix == ".gz" and partial.name.startswith(PARTIAL_PREFIX)
        partial.write_text("half")
        assert not path.exists()
        partial.write_text("whole")
    assert path.read_text() == "whole" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a.txt"
    write_text(path, "one")
    with pytest.raises(error):
        with atomic_path(path) as partial:
            partial.write_text("half")
            assert path.read_text() == "one"
            raise error
    assert path.read_text() == "one" and list(tmp_path.iterdir()) == [path]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        with atomic_path(tmp_path / "a.txt"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_as_one(tmp_path, monkeypatch):
    """safetensors wraps what the system says; the command line answers OSError."""
    import errno

    import safetensors.torch

    def full(*arguments, **keywords):
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    save_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2)}, {"kind": "x"})
    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        save_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(2)}, {})
    assert caught.value.errno == errno.ENOSPC and caught.value.filename.endswith("a.safetensors")
    monkeypatch.undo()
    assert safetensors.torch.load_file(tmp_path / "a.safetensors")["a"].tolist() == [1, 1]
    assert len(list(tmp_path.iterdir())) == 1


def test_contents_are_written_as_they_are(tmp_path):
    path = tmp_path / "a"
    write_text(path, "a longer text than the next\n")
    write_text(path, "é\n\r\n")
    assert path.read_bytes() == b"\xc3\xa9\n\r\n"
    write_bytes(path, bytes(range(256)))
    assert path.read_bytes() == bytes(range(256))


def test_what_a_killed_process_left_is_removed(tmp_path):
    kept = tmp_path / "views" / "a.txt"
    write_text(kept, "one")
    (tmp_path / "views" / f"{PARTIAL_PREFIX}1-a.txt").write_text("left")
    (tmp_path / f"{PARTIAL_PREFIX}2-b.mp4").write_text("too")
    assert remove_partial_files(tmp_path) == 2 and remove_partial_files(tmp_path) == 0
    assert kept.read_text() == "one" and [path.name for path in tmp_path.rglob("*.*")] == ["a.txt"]
