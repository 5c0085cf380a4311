"""train_checkpoint: whole or not at all, two kept, and the newest readable one found."""

import pytest
import torch
from full_disk import room_for

from discovery.errors import TrainError
from discovery.train_checkpoint import (
    checkpoint_path,
    checkpoint_paths,
    drop_old_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)


def write(folder, *steps):
    for step in steps:
        save_checkpoint({"step": step, "weights": torch.full((1000,), float(step))}, checkpoint_path(folder, step))


def test_it_comes_back_as_it_was(tmp_path):
    write(tmp_path, 7)
    path, state = newest_checkpoint(tmp_path)
    assert path == checkpoint_path(tmp_path, 7) and state["step"] == 7
    assert torch.equal(state["weights"], torch.full((1000,), 7.0))
    assert newest_checkpoint(tmp_path / "nothing") is None


def test_the_last_two_are_kept(tmp_path):
    write(tmp_path, 10, 20, 100, 30)
    left = tmp_path / "checkpoints" / "step-00000200.ckpt.k1ll_3d0.partial"
    left.mkdir()
    (left / "step-00000200.ckpt").write_bytes(b"half of it")
    drop_old_checkpoints(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] and checkpoint_paths(tmp_path) == [
        checkpoint_path(tmp_path, 30),
        checkpoint_path(tmp_path, 100),
    ]
    assert not list((tmp_path / "checkpoints").glob("*.partial"))


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_a_truncated_one_is_named_and_the_one_before_it_used(tmp_path, share, capsys):
    write(tmp_path, 10, 20)
    path = checkpoint_path(tmp_path, 20)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(TrainError, match=r"step-00000020.ckpt is truncated or damaged"):
        load_checkpoint(path)
    found = newest_checkpoint(tmp_path)
    assert found[1]["step"] == 10
    assert "step-00000020.ckpt is truncated" in capsys.readouterr().err


def test_a_changed_byte_is_seen(tmp_path):
    write(tmp_path, 10)
    path = checkpoint_path(tmp_path, 10)
    data = bytearray(path.read_bytes())
    data[data.index(torch.tensor(10.0).numpy().tobytes() * 10) + 500] ^= 1  # within the weights
    path.write_bytes(data)
    with pytest.raises(TrainError, match="checksum"):
        load_checkpoint(path)


def test_if_none_can_be_read_nothing_begins_anew(tmp_path):
    write(tmp_path, 10, 20)
    for path in checkpoint_paths(tmp_path):
        path.write_bytes(b"")
    with pytest.raises(TrainError, match=r"step-00000020.*; .*step-00000010.*delete .*checkpoints to begin anew"):
        newest_checkpoint(tmp_path)


def test_a_full_disk_is_named_and_nothing_lost(tmp_path):
    write(tmp_path, 10)
    path = checkpoint_path(tmp_path, 20)
    wanted = (
        r"step-00000020.ckpt can't be written: File too large; step-00000010.ckpt is kept, and the same command goes on"
    )
    with room_for(checkpoint_path(tmp_path, 10).stat().st_size // 2), pytest.raises(TrainError, match=wanted):
        write(tmp_path, 20)
    assert not path.exists() and newest_checkpoint(tmp_path)[1]["step"] == 10
    first = checkpoint_path(tmp_path / "new", 10)
    wanted = r"ckpt can't be written: File too large; there is none before it, and the same command begins anew"
    with room_for(500), pytest.raises(TrainError, match=wanted):
        save_checkpoint({"weights": torch.zeros(1000)}, first)
    write(tmp_path, 20)  # there is room again
    assert newest_checkpoint(tmp_path)[1]["step"] == 20
