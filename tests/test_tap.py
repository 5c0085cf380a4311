"""The tap sees the residual of every token, changes it for the blocks that follow, and says so when it did not."""

import pytest
import tiny
import torch
from torch import Tensor, nn

from sae_runtime.errors import TapError
from sae_runtime.hook_point import HookPoint
from sae_runtime.tap import Tap, decoder_layers

IDS_BT = torch.tensor([[0, 5, 9, 70, 31], [0, 44, 3, 8, 120]])
NUM_TOKENS = IDS_BT.numel()


class AddOne(nn.Module):
    """A block that adds 1, and returns the residual alone or first in a tuple."""

    def __init__(self, *, in_tuple: bool = False) -> None:
        super().__init__()
        self.in_tuple = in_tuple

    def forward(self, hidden_states: Tensor, mask: Tensor | None = None) -> Tensor | tuple[Tensor, str, Tensor | None]:
        return (hidden_states + 1, "cache", mask) if self.in_tuple else hidden_states + 1


class Blocks(nn.Module):
    """The shape of a Llama: `model.layers`, called with the residual as an argument or by keyword."""

    def __init__(self, *, in_tuple: bool = False, by_keyword: bool = False, repeats: int = 1) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList([AddOne(in_tuple=in_tuple) for _ in range(2)])
        self.by_keyword, self.repeats = by_keyword, repeats
        self.outputs: list[object] = []

    def forward(self, x: Tensor) -> Tensor:
        for layer in [*self.model.layers] * self.repeats:
            out = layer(hidden_states=x, mask=x * 0) if self.by_keyword else layer(x, x * 0)
            self.outputs.append(out)
            x = out[0] if isinstance(out, tuple) else out
        return x


@pytest.fixture
def tapped(model):
    """Makes taps on the shared model, and takes them off again."""
    taps: list[Tap] = []

    def make(point: str = "layers.1.output") -> Tap:
        taps.append(Tap(model.model, HookPoint.parse(point), tiny.D_MODEL))
        return taps[-1]

    yield make
    for tap in taps:
        tap.remove()


def forward(model, **settings: object):
    with torch.inference_mode():
        return model.model(IDS_BT, **settings)


def add(amount: float):
    return lambda resid_BTD: resid_BTD + amount


# --- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "point", [f"layers.{i}.{side}" for i in range(tiny.NUM_LAYERS) for side in ("input", "output")]
)
def test_reads_the_hidden_states_of_transformers(model, tapped, point):
    tap = tapped(point)
    with tap.step(NUM_TOKENS) as record:
        hidden = forward(model, output_hidden_states=True).hidden_states
    index = tap.hook_point.hidden_state_index
    resid = record.resid_BTD
    if index == tiny.NUM_LAYERS:  # the last of them is normed
        resid = model.model.model.norm(resid)
    assert torch.equal(resid, hidden[index])
    assert all(not torch.equal(resid, other) for i, other in enumerate(hidden) if i != index)
    assert record.num_tokens == NUM_TOKENS
    assert record.edited_BTD is None


def test_a_blocks_output_is_the_next_blocks_input(model, tapped):
    output, following = tapped("layers.1.output"), tapped("layers.2.input")
    with output.step(NUM_TOKENS) as left, following.step(NUM_TOKENS) as entered:
        forward(model)
    assert torch.equal(left.resid_BTD, entered.resid_BTD)


def test_reading_changes_no_logits(model, tapped):
    plain = forward(model).logits
    with tapped().step(NUM_TOKENS):
        read = forward(model).logits
    assert torch.equal(read, plain)


def test_counts_the_tokens_of_each_step_anew(model, tapped):
    tap = tapped()
    for num_tokens in (1, 3, 2):
        with tap.step(2 * num_tokens) as record, torch.inference_mode():
            model.model(IDS_BT[:, :num_tokens])
        assert record.num_tokens == 2 * num_tokens
        assert record.resid_BTD.shape == (2, num_tokens, tiny.D_MODEL)


# --- editing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["layers.1.output", "layers.2.input"])
def test_the_following_blocks_read_the_edited_residual(model, tapped, point):
    tap, following = tapped(point), tapped("layers.2.output")
    with tap.step(NUM_TOKENS, add(0.5)) as record:
        logits = forward(model).logits
    # By hand: block 1 called inside a wrapper that adds the same.
    block = model.model.model.layers[1]
    handle = block.register_forward_hook(lambda _module, _args, output: output + 0.5)
    with following.step(NUM_TOKENS) as after:
        wanted = forward(model)
    handle.remove()
    assert torch.equal(logits, wanted.logits)
    with tap.step(NUM_TOKENS, add(0.5)), following.step(NUM_TOKENS) as again:
        forward(model)
    assert torch.equal(again.resid_BTD, after.resid_BTD)
    assert torch.equal(record.edited_BTD, record.resid_BTD + 0.5)


def test_readings_are_taken_before_the_edit(model, tapped):
    tap = tapped()
    with tap.step(NUM_TOKENS) as plain:
        forward(model)
    with tap.step(NUM_TOKENS, add(3.0)) as edited:
        forward(model)
    assert torch.equal(edited.resid_BTD, plain.resid_BTD)
    assert torch.equal(edited.edited_BTD, plain.resid_BTD + 3.0)


def test_an_edit_ends_with_its_step(model, tapped):
    tap, plain = tapped(), forward(model).logits
    with tap.step(NUM_TOKENS, add(1.0)):
        assert not torch.equal(forward(model).logits, plain)
    assert torch.equal(forward(model).logits, plain)
    with tap.step(NUM_TOKENS):
        assert torch.equal(forward(model).logits, plain)


def test_an_edited_row_leaves_its_neighbours_alone(model, tapped):
    def edit(resid_BTD: Tensor) -> Tensor:
        edited_BTD = resid_BTD.clone()
        edited_BTD[0] += 2.0
        return edited_BTD

    plain = forward(model).logits
    with tapped().step(NUM_TOKENS, edit):
        steered = forward(model).logits
    assert torch.equal(steered[1], plain[1])
    assert not torch.equal(steered[0], plain[0])


@pytest.mark.parametrize(
    ("edit", "got"),
    [
        (lambda x: x[:, :-1], r"got \[2, 4, 32\] and torch\.float32"),
        (lambda x: x[..., :1], r"got \[2, 5, 1\] and torch\.float32"),
        (lambda x: x.to(torch.float64), r"got \[2, 5, 32\] and torch\.float64"),
    ],
)
def test_an_edit_of_another_shape_or_dtype_is_refused(model, tapped, edit, got):
    tap = tapped()
    wanted = r"an edit must keep shape \[2, 5, 32\] and torch\.float32, " + got
    with pytest.raises(TapError, match=wanted), tap.step(NUM_TOKENS, edit):
        forward(model)
    with tap.step(NUM_TOKENS) as record:
        forward(model)
    assert record.num_tokens == NUM_TOKENS


# --- blocks of other make -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_tuple", [False, True])
@pytest.mark.parametrize("by_keyword", [False, True])
@pytest.mark.parametrize("point", ["layers.0.output", "layers.1.input"])
def test_residuals_in_tuples_and_keywords(in_tuple, by_keyword, point):
    model, x = Blocks(in_tuple=in_tuple, by_keyword=by_keyword), torch.zeros(1, 3, 4)
    tap = Tap(model, HookPoint.parse(point), 4)
    with tap.step(3, add(10.0)) as record:
        out = model(x)
    assert torch.equal(record.resid_BTD, x + 1)
    assert torch.equal(record.edited_BTD, x + 11)
    assert torch.equal(out, x + 12)


def test_the_rest_of_a_tuple_is_passed_on():
    model, x = Blocks(in_tuple=True), torch.ones(1, 3, 4)
    tap = Tap(model, HookPoint(0), 4)
    with tap.step(3, add(10.0)):
        model(x)
    first = model.outputs[0]
    assert isinstance(first, tuple)
    assert first[1] == "cache"
    assert torch.equal(first[2], x * 0)


@pytest.mark.parametrize("by_keyword", [False, True])
def test_the_other_arguments_of_an_edited_input_are_passed_on(by_keyword):
    model, x = Blocks(in_tuple=True, by_keyword=by_keyword), torch.ones(1, 3, 4)
    with Tap(model, HookPoint(0, "input"), 4).step(3, add(10.0)):
        model(x)
    assert torch.equal(model.outputs[0][2], x * 0)


def test_a_residual_of_another_width_is_refused():
    model = Blocks()
    tap = Tap(model, HookPoint(0), 8)
    with pytest.raises(TapError, match=r"residual must have shape \[B, T, 8\], got \[1, 3, 4\]"), tap.step(3):
        model(torch.zeros(1, 3, 4))


def test_a_residual_without_a_batch_is_refused():
    model = Blocks()
    tap = Tap(model, HookPoint(0), 4)
    with pytest.raises(TapError, match=r"residual must have shape \[B, T, 4\], got \[3, 4\]"), tap.step(3):
        model(torch.zeros(3, 4))


# --- proof that it ran ----------------------------------------------------------------------------------------------


def test_a_tap_that_did_not_run_is_an_error(tapped):
    with pytest.raises(TapError, match=r"tap at layers\.1\.output must see 10 tokens, got 0"), tapped().step(10):
        pass


@pytest.mark.parametrize("num_tokens", [NUM_TOKENS - 1, NUM_TOKENS + 1])
def test_another_number_of_tokens_is_an_error(model, tapped, num_tokens):
    tap = tapped()
    with pytest.raises(TapError, match=f"must see {num_tokens} tokens, got {NUM_TOKENS}"), tap.step(num_tokens):
        forward(model)


def test_running_twice_is_an_error(model, tapped):
    tap = tapped()
    with pytest.raises(TapError, match=r"tap at layers\.1\.output ran twice in one step"), tap.step(NUM_TOKENS):
        forward(model)
        forward(model)


def test_a_block_used_twice_in_one_pass_is_an_error():
    model = Blocks(repeats=2)
    tap = Tap(model, HookPoint(0), 4)
    with pytest.raises(TapError, match="ran twice"), tap.step(3):
        model(torch.zeros(1, 3, 4))


def test_steps_do_not_nest_and_the_outer_one_goes_on(model, tapped):
    tap = tapped()
    with tap.step(NUM_TOKENS, add(1.0)) as record:
        with pytest.raises(TapError, match="must not nest"), tap.step(NUM_TOKENS):
            raise AssertionError("the inner step must not begin")
        forward(model)
    assert record.num_tokens == NUM_TOKENS
    assert record.edited_BTD is not None


def test_passes_outside_of_a_step_leave_no_trace(model, tapped):
    tap = tapped()
    with tap.step(NUM_TOKENS) as record:
        forward(model)
    seen = record.resid_BTD
    with torch.inference_mode():
        model.model(IDS_BT[:, :2])
    assert record.resid_BTD is seen
    assert record.num_tokens == NUM_TOKENS
    with tap.step(2 * 2) as later, torch.inference_mode():
        model.model(IDS_BT[:, :2])
    assert later.num_tokens == 4


@pytest.mark.parametrize("where", ["before", "after"])
def test_an_exception_in_the_step_passes_through_and_leaves_the_tap_usable(model, tapped, where):
    tap = tapped()
    with pytest.raises(ZeroDivisionError), tap.step(NUM_TOKENS, add(1.0)):
        if where == "after":
            forward(model)
        raise ZeroDivisionError
    plain = forward(model).logits
    with tap.step(NUM_TOKENS) as record:
        assert torch.equal(forward(model).logits, plain)
    assert record.num_tokens == NUM_TOKENS


def test_an_exception_in_the_edit_passes_through_and_leaves_the_tap_usable(model, tapped):
    def fail(_resid_BTD: Tensor) -> Tensor:
        raise ZeroDivisionError

    tap = tapped()
    with pytest.raises(ZeroDivisionError), tap.step(NUM_TOKENS, fail):
        forward(model)
    with tap.step(NUM_TOKENS) as record:
        forward(model)
    assert record.edited_BTD is None


# --- putting it on and taking it off --------------------------------------------------------------------------------


def test_a_removed_tap_sees_and_changes_nothing(model, tapped):
    tap, plain = tapped(), forward(model).logits
    tap.remove()
    with pytest.raises(TapError, match="got 0"), tap.step(NUM_TOKENS, add(5.0)):
        assert torch.equal(forward(model).logits, plain)


def test_removal_leaves_other_taps_on(model, tapped):
    first, second = tapped(), tapped()
    first.remove()
    with second.step(NUM_TOKENS) as record:
        forward(model)
    assert record.num_tokens == NUM_TOKENS


@pytest.mark.parametrize("side", ["input", "output"])
def test_taps_leave_no_hooks_behind(side):
    model = Blocks()
    block = model.model.layers[0]
    for _ in range(3):
        Tap(model, HookPoint(0, side), 4).remove()
    assert not block._forward_hooks
    assert not block._forward_pre_hooks


def test_a_layer_the_model_does_not_have_is_refused(model):
    with pytest.raises(TapError, match=r"hook point layers\.4\.output must name one of the model's 4 layers"):
        Tap(model.model, HookPoint(4), tiny.D_MODEL)


def test_a_model_without_layers_is_refused():
    with pytest.raises(TapError, match=r"Linear has no model\.layers"):
        Tap(nn.Linear(2, 2), HookPoint(0), 2)


def test_finds_the_blocks_in_order(model):
    layers = decoder_layers(model.model)
    assert len(layers) == tiny.NUM_LAYERS
    assert [layer.self_attn.layer_idx for layer in layers] == list(range(tiny.NUM_LAYERS))
