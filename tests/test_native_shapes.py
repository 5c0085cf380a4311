"""Models of many shapes in the native kernels, what is rounded between products, and threads that really share."""

import os
import sys
from contextlib import suppress
from pathlib import Path

import native_models as native
import pytest
import tiny
import torch

from service.slot_cache import SlotCache

NUM_SLOTS = 4


def slots(made) -> SlotCache:
    config = made.model.config
    return SlotCache(
        num_layers=config.num_hidden_layers, num_slots=NUM_SLOTS, num_heads=config.num_key_value_heads,
        num_positions=tiny.NUM_POSITIONS, head_dim=config.head_dim, dtype=torch.bfloat16, device=torch.device("cpu"),
    )  # fmt: skip


def ids(num_rows: int, num_tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_tokens)
    return torch.randint(3, native.VOCAB_SIZE, (num_rows, num_tokens), generator=generator)


@torch.inference_mode()
def our_logits(made, ids_BT) -> torch.Tensor:
    rows = list(range(len(ids_BT)))
    return made.blocks.logits(ids_BT, slots(made), rows, [0] * len(rows), all_logits=True)


@torch.inference_mode()
def their_logits(folder: Path, dtype: str, ids_BT) -> torch.Tensor:
    made = native.load(folder, dtype=dtype, native_kernels=False)
    return made.model(ids_BT, use_cache=False).logits.float()


def assert_as_near_as_transformers(folder: Path) -> None:
    """To logits of fp32, as transformers' of bf16 are."""
    ids_BT = ids(3, 70)
    exact, usual = (their_logits(folder, dtype, ids_BT) for dtype in ("float32", "bfloat16"))
    found = our_logits(native.load(folder), ids_BT)
    assert (found - exact).norm() < 1.2 * (usual - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize(
    ("heads", "key_heads", "width"),
    [(3, 1, 64), (4, 1, 64), (6, 2, 128), (2, 1, 128), (2, 2, 32), (2, 1, 256), (6, 2, 96), (16, 1, 32)],
)
def test_heads_of_every_width_that_share_in_every_way(tmp_path, heads, key_heads, width):
    native.save_model(tmp_path, num_attention_heads=heads, num_key_value_heads=key_heads, head_dim=width)
    assert_as_near_as_transformers(tmp_path)


def test_what_norms_add_to_the_mean_square_is_the_models(tmp_path):
    """So much of it that its lack would show."""
    native.save_model(tmp_path, rms_norm_eps=0.5)
    assert_as_near_as_transformers(tmp_path)


@pytest.mark.parametrize("part", ["attention", "mlp"])
def test_a_block_rounds_where_transformers_rounds(tmp_path, part):
    """The first block at the first position, where attention is the value itself: sums in another order then change
    the last bit here and there, and nothing else does. One of its halves is taken out by weights of 0."""
    native.save_model(tmp_path, num_hidden_layers=1, hidden_size=192, initializer_range=0.3)
    theirs = native.load(tmp_path, native_kernels=False)
    layer = theirs.model.model.layers[0]
    silent = layer.mlp.down_proj if part == "attention" else layer.self_attn.o_proj
    with torch.no_grad():
        silent.weight.zero_()
    theirs.model.save_pretrained(tmp_path)
    ours = native.load(tmp_path)
    seen, ids_BT = [], ids(NUM_SLOTS, 1)
    for made in (ours, theirs):
        hook = made.model.model.layers[0].register_forward_hook(
            lambda _module, _args, out: seen.append(out[0] if isinstance(out, tuple) else out)
        )
        with torch.inference_mode():
            our_logits(ours, ids_BT) if made is ours else made.model(ids_BT, use_cache=False)
        hook.remove()
    found, wanted = (resid_B1D.flatten() for resid_B1D in seen)
    apart = (found.view(torch.int16).int() - wanted.view(torch.int16).int()).abs()
    assert (apart == 0).float().mean() > 0.97
    torch.testing.assert_close(found, wanted, rtol=2.0**-6, atol=2.0**-6)


# --- threads ---


def _own_id() -> str:
    return Path("/proc/thread-self").readlink().name


def nanoseconds() -> dict[str, int]:
    """That each thread of this process has run."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has ended
            found[task.name] = int((task / "schedstat").read_text().split()[0])
    return found


def num_helping(work) -> int:
    """Other threads that ran for a twentieth of the time that this one did, or longer."""
    before = nanoseconds()
    work()
    ran = {task: after - before.get(task, 0) for task, after in nanoseconds().items()}
    own = ran.pop(_own_id())
    return sum(each > own / 20 for each in ran.values())


def wait_for_sleep() -> None:
    """Until all other threads sleep, as workers do between passes."""
    while any(
        task.name != _own_id() and (task / "stat").read_text().rsplit(")", 1)[1].split()[0] == "R"
        for task in Path("/proc/self/task").iterdir()
    ):
        os.sched_yield()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="a second thread would only take turns")
def test_threads_share_the_work_are_woken_for_it_and_are_no_more_than_are_allowed(tmp_path, monkeypatch):
    native.save_model(tmp_path)
    made, ids_BT = native.load(tmp_path), ids(1, 200)
    for num_threads in (2, 1, 3, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda num=num_threads: num)
        our_logits(made, ids_BT[:, :2])  # starts threads, or lets them know
        wait_for_sleep()
        assert num_helping(lambda: [our_logits(made, ids_BT) for _ in range(40)]) == num_threads - 1
