"""The C kernels one by one against torch, and the library: made once, named by its recipe, refused with the reason."""

import math
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import native_models as parts
import numpy as np
import pytest
import torch

from sae_runtime import encoder_screen, native_blocks, native_sae, packed_weights
from sae_runtime.kernels import native
from sae_runtime.native_blocks import MOST_TOKENS, matrix, product
from sae_runtime.packed_weights import pack, pack_bfloat16

WEIGHTS = {
    4: pack(parts.q4_1(80, 192)),
    8: pack(parts.q8_0(80, 192)),
    16: pack_bfloat16(parts.q4_1(80, 192)),
}
LOOSE = -(-MOST_TOKENS // 3)
"""Not a multiple of anything that tokens are taken by."""


def residuals(num_tokens: int, width: int = 192, seed: int = 3) -> torch.Tensor:
    return torch.randn(num_tokens, width, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def multiply(packed, x_MK) -> torch.Tensor:
    return product(parts.library(), matrix(packed), x_MK)


@pytest.mark.parametrize("bits", WEIGHTS)
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 4, 5, 7, LOOSE, MOST_TOKENS + 3])
def test_a_product_is_that_of_the_packed_weights(bits, num_tokens):
    assert WEIGHTS[bits].bits == bits
    x_MK = residuals(num_tokens)
    wanted = parts.exact(WEIGHTS[bits], x_MK)
    # Sums of 192 in fp32.
    torch.testing.assert_close(multiply(WEIGHTS[bits], x_MK).double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", WEIGHTS)
def test_what_a_token_gets_does_not_depend_on_its_company(bits):
    x_MK = residuals(MOST_TOKENS + 5)
    alone = torch.cat([multiply(WEIGHTS[bits], x_MK[m : m + 1]) for m in range(len(x_MK))])
    for size in (2, 3, 5, 8, LOOSE, len(x_MK)):
        together = torch.cat([multiply(WEIGHTS[bits], piece) for piece in torch.split(x_MK, size)])
        assert torch.equal(together, alone)


@pytest.mark.parametrize("bits", WEIGHTS)
def test_what_is_not_finite_stays_with_its_token(bits):
    x_MK = residuals(6)
    clean = multiply(WEIGHTS[bits], x_MK)
    x_MK[2, 17], x_MK[4, 100] = math.nan, math.inf
    spoilt = multiply(WEIGHTS[bits], x_MK)
    assert not spoilt[[2, 4]].isfinite().any()
    assert torch.equal(spoilt[[0, 1, 3, 5]], clean[[0, 1, 3, 5]])


def test_norms_are_finite_where_the_numbers_are():
    x_MD = residuals(5)
    x_MD[1] = 3e38  # whose squares are beyond fp32
    x_MD[2, 7], x_MD[3, 0] = math.nan, -math.inf
    found = np.empty(5)
    parts.library().telltale_norms(x_MD.data_ptr(), 5, 192, found.ctypes.data)
    assert np.isfinite(found).tolist() == [True, True, False, False, True]
    np.testing.assert_allclose(found[[0, 1, 4]], x_MD[[0, 1, 4]].double().norm(dim=-1).numpy(), rtol=1e-12)


@pytest.mark.parametrize("width", [5, 16, 259, 4099])
def test_the_most_likely_token_is_the_first_of_the_largest(width):
    logits = torch.randn(6, width + 3, generator=torch.Generator().manual_seed(width))[:, :width]
    logits[1, -1] = logits[1].max()  # if that is another, the same twice
    logits[2, 0], logits[3, -1], logits[4, width // 2] = math.nan, math.inf, -math.inf
    tokens, logprobs, finite = (np.empty(6, dtype=kind) for kind in (np.int64, np.float32, np.bool_))
    given = logits.data_ptr(), 6, width, logits.stride(0), tokens.ctypes.data
    parts.library().telltale_most_likely(*given, None, finite.ctypes.data, 2)
    without = tokens.tolist(), finite.tolist()
    parts.library().telltale_most_likely(*given, logprobs.ctypes.data, finite.ctypes.data, 2)
    assert (tokens.tolist(), finite.tolist()) == without
    assert finite.tolist() == [True, True, False, False, False, True]
    for m in (0, 1, 5):
        assert tokens[m] == int((logits[m] == logits[m].max()).nonzero()[0])
        assert logprobs[m] == pytest.approx(float(logits[m].log_softmax(-1).max()), abs=2e-6)


def test_callers_at_once_and_more_threads_than_cores_change_nothing(monkeypatch):
    """Threads are one caller's at a time; the others compute alone."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    wide, x_MK = pack_bfloat16(parts.q4_1(1280, 192)), residuals(3)
    parts.library()
    wanted = multiply(wide, x_MK)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: multiply(wide, x_MK), range(400)))
    assert all(torch.equal(result, wanted) for result in results)


# --- the library ---


def test_bounds_that_are_written_twice_are_the_same():
    """The C source has arrays of these sizes, and Python refuses what they have no room for."""
    enums = re.findall(r"enum \{([^}]*)\}", "".join(source.read_text() for source in native.sources()))
    in_c = {name: int(number) for text in enums for name, number in re.findall(r"(\w+) = (\d+)", text)}
    in_python = {
        name.lstrip("_"): value
        for module in (encoder_screen, native_blocks, native_sae, packed_weights)
        for name, value in vars(module).items()
        if isinstance(value, int) and name.lstrip("_") in in_c
    }
    assert in_python.keys() >= {
        "TILE", "GROUP", "MOST_TOKENS", "WIDEST_HEAD", "MOST_SHARING", "WIDEST_MODEL", "ADDED", "INPUTS_AT_ONCE",
        "SCREEN_BYTES"
    }  # fmt: skip
    assert in_python == {name: in_c[name] for name in in_python}


def test_the_library_is_compiled_once(tmp_path, monkeypatch):
    parts.library()
    native.load.cache_clear()
    native.load(tmp_path)
    (made,) = (tmp_path / "kernels").iterdir()
    native.load.cache_clear()
    monkeypatch.setattr(native, "build", lambda _: pytest.fail("compiled again"))
    native.load(tmp_path)
    assert [made] == list((tmp_path / "kernels").iterdir())


@pytest.mark.parametrize("changed", ["native.c", "products.h"])
def test_another_recipe_is_another_library(tmp_path, monkeypatch, changed):
    before = native.library_name()
    copy_sources(tmp_path, monkeypatch)
    assert native.library_name() == before
    (tmp_path / changed).write_bytes((tmp_path / changed).read_bytes() + b"\n")
    assert native.library_name() != before


def copy_sources(folder, monkeypatch) -> None:
    for source in native.sources():
        shutil.copy(source, folder)
    monkeypatch.setattr(native, "SOURCE", folder / native.SOURCE.name)


def test_one_that_lies_beside_the_source_is_taken(tmp_path, monkeypatch):
    parts.library()
    copy_sources(tmp_path, monkeypatch)
    native.load.cache_clear()
    native.build(tmp_path / native.library_name())
    monkeypatch.setattr(native, "build", lambda _: pytest.fail("compiled again"))
    native.load(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    native.load.cache_clear()


@pytest.fixture
def load_anew(tmp_path):
    parts.library()
    native.load.cache_clear()
    yield lambda: native.load(tmp_path)
    native.load.cache_clear()


def test_no_compiler(load_anew, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(native.shutil, "which", lambda _name: None)
    with pytest.raises(native.NativeKernelsMissing, match="no C compiler: install gcc"):
        load_anew()


def test_a_compiler_that_is_not_there_is_named(load_anew, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    with pytest.raises(native.NativeKernelsMissing, match="no C compiler no-such-compiler, which the variable CC"):
        load_anew()


def test_a_compiler_that_is_no_command(load_anew, monkeypatch):
    monkeypatch.setenv("CC", "gcc '-O2")
    with pytest.raises(native.NativeKernelsMissing, match='the variable CC is no command, "gcc \'-O2": No closing'):
        load_anew()


def test_a_compiler_with_arguments(load_anew, monkeypatch, tmp_path):
    """The usual form of CC."""
    made = tmp_path / "my compiler"
    made.write_text('#!/bin/sh\nfirst=$1; shift\ntest "$first" = -DOURS=1 && exec cc "$@"\n')
    made.chmod(0o755)
    monkeypatch.setenv("CC", f"'{made}' -DOURS=1")
    assert load_anew().telltale_blocks


@pytest.mark.usefixtures("load_anew")
def test_a_cache_that_can_not_be_looked_into(tmp_path):
    cache = tmp_path / ("a" * 300)
    assert not native.is_compiled(cache)
    with pytest.raises(native.NativeKernelsMissing, match="can't be made: File name too long"):
        native.load(cache)


def test_a_fault_without_words_of_the_system(load_anew, monkeypatch):
    def fail(*_, **__):
        raise OSError("no such luck")

    monkeypatch.setattr(native.subprocess, "run", fail)
    with pytest.raises(native.NativeKernelsMissing, match="can't be made: no such luck"):
        load_anew()


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["a", "b"], 2), (["--folder"], 2), (["--help"], 0)])
def test_the_command_shows_its_usage_and_makes_nothing(arguments, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        native.main(arguments)
    assert ended.value.code == code
    assert "usage: python -m sae_runtime.kernels.native [-h] FOLDER" in "".join(capsys.readouterr())
    assert list(tmp_path.iterdir()) == []


def test_what_the_command_says_of_a_place_that_can_not_be_written():
    with pytest.raises(SystemExit, match="can't be made"):
        native.main(["/dev/null/a"])


def test_the_command_makes_the_library(tmp_path):
    parts.library()
    native.main([str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == [native.library_name()]


def test_a_compiler_that_fails(load_anew, monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "false")
    with pytest.raises(native.NativeKernelsMissing, match="failed with code 1"):
        load_anew()
    assert list((tmp_path / "kernels").iterdir()) == []


def test_a_damaged_library_is_compiled_anew(load_anew, tmp_path, caplog):
    (tmp_path / "kernels").mkdir()
    damaged = tmp_path / "kernels" / native.library_name()
    damaged.write_bytes(b"no library")
    assert load_anew().telltale_blocks
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith(f"{damaged} can't be loaded, and the kernels are compiled anew: ")
    assert said.count(str(damaged)) == 1
    assert damaged.stat().st_size > 1000


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_library_that_was_cut_short_is_compiled_anew(load_anew, tmp_path, caplog, share):
    """Loading it would end the process."""
    cut = tmp_path / "kernels" / native.library_name()
    native.build(cut)
    num_bytes = cut.stat().st_size
    cut.write_bytes(cut.read_bytes()[: int(share * num_bytes)])
    assert load_anew().telltale_blocks
    reason = f"it must have {num_bytes} bytes, got {int(share * num_bytes)}"
    assert f"{cut} can't be loaded, and the kernels are compiled anew: {reason}" in caplog.text
    assert cut.stat().st_size == num_bytes


@pytest.fixture
def beside(monkeypatch, tmp_path):
    """Where a library beside the source lies, cut short; not to be replaced there."""
    (tmp_path / "source").mkdir()
    copy_sources(tmp_path / "source", monkeypatch)
    beside = tmp_path / "source" / native.library_name()
    native.build(beside)
    beside.write_bytes(beside.read_bytes()[:5000])
    build = native.build

    def build_elsewhere(path):
        if path == beside:
            raise native.NativeKernelsMissing(f"{path} can't be made: Read-only file system")
        build(path)

    monkeypatch.setattr(native, "build", build_elsewhere)
    return beside


def test_in_place_of_a_damaged_one_that_can_not_be_replaced_the_cache_has_one(load_anew, beside, tmp_path, monkeypatch):
    assert load_anew().telltale_blocks
    assert (tmp_path / "kernels" / beside.name).is_file()
    assert beside.stat().st_size == 5000
    native.load.cache_clear()
    monkeypatch.setattr(native, "build", lambda _: pytest.fail("compiled again"))
    assert load_anew().telltale_blocks


def test_a_library_that_was_half_compiled_when_its_process_was_killed_is_dropped(load_anew, tmp_path):
    left = tmp_path / "kernels" / f"{native.library_name()}.abcdefgh.partial"
    left.mkdir(parents=True)
    load_anew()
    assert [path.name for path in (tmp_path / "kernels").iterdir()] == [native.library_name()]


def test_a_library_that_can_not_be_loaded_even_so(load_anew, monkeypatch):
    monkeypatch.setattr(native, "build", lambda path: path.parent.mkdir() or path.write_bytes(b"no library"))
    with pytest.raises(native.NativeKernelsMissing, match="compiled anew and can't be loaded"):
        load_anew()


def test_another_processor(load_anew, monkeypatch):
    found = torch.cpu.get_capabilities()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found | {"avx512_bf16": False})
    with pytest.raises(native.NativeKernelsMissing, match="this processor has no avx512bf16"):
        load_anew()
