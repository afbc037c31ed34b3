"""The trained network against the formulas, the exported graphs, and itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mt3_export.bundle_writer import export_bundle
from mt3_export.weights import PositionTable, T5Shape, inventory
from mt3_runtime.errors import CheckpointError
from mt3_runtime.loading import load_model
from mt3_runtime.notes.vocabulary import EOS, PAD, Event, EventKind, Vocabulary
from mt3_training.runs.config import PRESETS
from mt3_training.shipping.small_model import for_frames
from tests import needs, reference_t5
from tests.seeded import TINY, seeded_normal, seeded_weights

torch = needs.torch()

from mt3_training.examples.tables import KINDS  # noqa: E402
from mt3_training.networks import losses  # noqa: E402
from mt3_training.networks.network import NEXT_EVENT, Aids, Network, as_weights  # noqa: E402

SMALL = replace(TINY, d_model=64, heads=3, encoder_layers=1, decoder_layers=3)
VOCABULARY = Vocabulary.mt3()


def test_the_small_model_has_seven_million_parameters():
    shape = PRESETS["small"].shape
    assert sum(p.numel() for p in Network(shape).parameters()) == 7_214_592


@pytest.mark.parametrize("shape", [TINY, SMALL, PRESETS["tiny"].shape])
def test_parameters_are_the_canonical_tensors(shape: T5Shape):
    found = {name: tuple(p.shape) for name, p in Network(shape).named_parameters()}
    assert found == inventory(shape)
    assert set(Network(shape).state_dict()) == set(found)


@pytest.mark.parametrize("positions", [PositionTable(255), PositionTable(256)])
def test_weights_survive_the_way_there_and_back(positions):
    weights = seeded_weights(SMALL, positions=positions)
    again = Network.from_weights(weights).to_weights()
    assert again.positions == positions
    assert all(np.array_equal(again.tensors[name], t) for name, t in weights.tensors.items())


def test_weights_are_copies():
    weights = seeded_weights(TINY)
    network = Network.from_weights(weights)
    copy = network.to_weights()
    with torch.no_grad():
        network.decoder.logits_dense.kernel.zero_()
    name = "decoder.logits_dense.kernel"
    assert np.array_equal(copy.tensors[name], weights.tensors[name])
    assert copy.tensors[name].any()


def test_a_diverged_network_has_no_weights():
    network = Network(TINY)
    with torch.no_grad():
        network.encoder.encoder_norm.scale[3] = torch.nan
    with pytest.raises(CheckpointError, match=r"not finite: encoder\.encoder_norm\.scale"):
        network.to_weights()
    with pytest.raises(CheckpointError, match="missing"):
        as_weights({}, TINY)


@pytest.mark.parametrize("shape", [TINY, SMALL])
def test_logits_are_those_of_the_formulas(shape):
    weights = seeded_weights(shape, seed=5)
    features = seeded_normal("features", (2, 33, 512))
    tokens = np.array([[0, 700, 1133, 1134, 1200, 9], [0, 5, 4, 1003, 1390, 1]])
    encoded = reference_t5.encode(weights, features)
    expected = reference_t5.teacher_forced(weights, encoded, tokens)
    network = Network.from_weights(weights).eval()
    with torch.no_grad():
        found = network(torch.from_numpy(features), torch.from_numpy(tokens))
        alone = network.decode(torch.from_numpy(tokens), found.encoded)
    assert expected.std() > 3.0
    np.testing.assert_allclose(found.encoded.numpy(), encoded, atol=1e-4)
    np.testing.assert_allclose(found.logits.numpy(), expected, atol=1e-4)
    assert torch.equal(alone, found.logits)
    assert found.attention is None


def greedy(network, features: torch.Tensor, limit: int) -> list[int]:
    """Token by token, reading everything again at each step."""
    encoded = network.encode(features)
    read = [PAD]
    while len(read) <= limit:
        logits = network.decode(torch.tensor([read]), encoded)[0, -1]
        read.append(int(logits.argmax()))
        if read[-1] == EOS:
            break
    return read[1:]


@pytest.mark.parametrize("frames", [65, 256])
def test_the_exported_bundle_says_what_the_network_says(frames, tmp_path):
    network = Network.from_weights(seeded_weights(seed=21)).eval()
    variant = for_frames(frames, max_tokens=96)
    # Without the grammar: it is the network that is compared.
    variant = replace(variant, decoding=replace(variant.decoding, orderly=False))
    export_bundle(network.to_weights(), variant, tmp_path / "b", source={"digest": "0" * 64})
    features = seeded_normal("spectra", (4, frames, 512))
    with load_model(tmp_path / "b", threads=1) as model, torch.no_grad():
        found = [row.tokens.tolist() for row in model.forward(features)]
        expected = [greedy(network, torch.from_numpy(row[None]), 96) for row in features]
    assert found == expected
    assert max(map(len, found)) > 20
    assert len({tuple(row) for row in found}) == len(found)


def test_a_new_network_does_not_hear_a_constant():
    torch.manual_seed(0)
    network = Network(TINY)
    features = torch.randn(2, 20, 512)
    np.testing.assert_allclose(
        network.encode(features + 11.5).detach(), network.encode(features).detach(), atol=1e-4
    )


def test_dropout_is_for_training_only():
    network = Network(TINY, dropout=0.5)
    features, tokens = torch.randn(1, 9, 512), torch.tensor([[0, 5]])
    assert not torch.equal(network(features, tokens).logits, network(features, tokens).logits)
    network.eval()
    assert torch.equal(network(features, tokens).logits, network(features, tokens).logits)


def test_guided_heads_say_where_they_look():
    network = Network.from_weights(seeded_weights(SMALL))
    features, tokens = torch.randn(2, 15, 512), torch.tensor([[0, 5, 9], [0, 700, 3]])
    found = network(features, tokens, guide=True)
    assert found.attention.shape == (2, 2, 3, 15)
    torch.testing.assert_close(found.attention.exp().sum(-1), torch.ones(2, 2, 3))
    assert torch.equal(found.logits, network(features, tokens).logits)
    layer = network.decoder.layers_1.encoder_decoder_attention  # the middle one
    loss = -found.attention[..., 4].mean()
    loss.backward()
    assert layer.query.kernel.grad[:, :128].any()
    assert not layer.query.kernel.grad[:, 128:].any()


def test_the_frame_wise_heads_begin_with_silence():
    logits, following = Aids(TINY)(torch.zeros(2, 7, TINY.d_model))
    assert logits.shape == (2, 7, 4, 128)
    assert following.shape == (2, 7, NEXT_EVENT)
    assert torch.all(logits == Aids.START_BIAS)


# --- losses --------------------------------------------------------------------------------------


def ids(*events: tuple[EventKind, int]) -> list[int]:
    return [VOCABULARY.encode(Event(*event)) for event in events]


def test_every_id_has_its_kind():
    table = losses.kind_table(VOCABULARY).tolist()
    for kind in EventKind:
        assert {table[i] for i in VOCABULARY.id_range(kind)} == {KINDS.index(kind)}
    assert table[EOS] == KINDS.index("eos")
    assert table[PAD] == table[2] == table[-1] == len(KINDS)


def test_the_token_loss_by_hand():
    targets = torch.tensor([[*ids((EventKind.SHIFT, 7), (EventKind.PITCH, 60)), EOS], [EOS, 0, 0]])
    logits = torch.randn(2, 3, VOCABULARY.size)
    loss, totals = losses.token_loss(logits, targets, losses.kind_table(VOCABULARY))
    log_p = torch.log_softmax(logits, -1)
    each = -log_p.gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(loss, each[0].sum() + each[1, 0])
    counts = dict(zip(KINDS, totals[1].tolist(), strict=True))
    assert {k: n for k, n in counts.items() if n} == {"shift": 1, "pitch": 1, "eos": 2}
    sums = dict(zip(KINDS, totals[0], strict=True))
    torch.testing.assert_close(sums["eos"], each[0, 2] + each[1, 0])
    torch.testing.assert_close(sums["pitch"], each[0, 1])


def test_the_token_loss_does_not_depend_on_padding():
    kinds = losses.kind_table(VOCABULARY)
    targets, logits = torch.tensor([[5, 9, EOS]]), torch.randn(1, 3, VOCABULARY.size)
    wider = torch.nn.functional.pad(targets, (0, 4))
    more = torch.cat([logits, torch.randn(1, 4, VOCABULARY.size)], 1)
    torch.testing.assert_close(
        losses.token_loss(logits, targets, kinds), losses.token_loss(more, wider, kinds)
    )


def test_the_roll_loss_by_hand():
    logits, rolls = torch.randn(2, 3, 4, 128), torch.randint(0, 2, (2, 3, 4, 128))
    p = torch.sigmoid(logits)
    weight = torch.tensor([6.0, 2.0, 6.0, 2.0])[:, None]
    each = -(weight * rolls * torch.log(p) + (1 - rolls) * torch.log(1 - p))
    torch.testing.assert_close(losses.roll_loss(logits, rolls.byte()), each.sum())


def test_the_guide_is_satisfied_by_looking_at_the_event_and_at_the_one_before():
    frames = torch.tensor([[20.0, torch.nan, 27.0]])
    place = torch.arange(40.0)
    # The event 5 frames ahead, and the present: the start, nothing, frame 20.
    event = torch.tensor([15.0, 0.0, 22.0])[:, None]
    present = torch.tensor([0.0, 0.0, 20.0])[:, None]
    heads = [
        torch.log_softmax(-0.5 * ((place - centre) / width) ** 2, -1)
        for centre, width in ((event, 4.0), (present, 1.5))
    ]
    right = torch.stack(heads)[None]
    right[:, :, 1] = -9.0  # nobody teaches this one
    assert abs(float(losses.guide_loss(right, frames))) < 1e-5
    for head in (0, 1):
        shifted = right.clone()
        shifted[:, head] = shifted[:, head].roll(4, -1)
        assert float(losses.guide_loss(shifted, frames)) > 0.3
    assert float(losses.guide_loss(right, torch.full((1, 3), torch.nan))) == 0.0


def test_the_next_event_by_hand():
    # Events in frames 0, 3 and 9 of 10; the distance counts from each frame to a later one.
    frames = torch.tensor([[0.0, torch.nan, 3.0, 3.0, 9.0, torch.nan]])
    distances = [3, 2, 1, 6, 5, 4, 3, 2, 1]
    logits = torch.randn(1, 10, NEXT_EVENT)
    classes = [*(d - 1 for d in distances), NEXT_EVENT - 1]  # after the last one: none
    wanted = -torch.log_softmax(logits, -1)[0, torch.arange(10), classes].sum()
    torch.testing.assert_close(losses.next_event_loss(logits, frames), wanted)
    nothing = torch.full((1, 2), torch.nan)
    wanted = -torch.log_softmax(logits, -1)[0, :, -1].sum()
    torch.testing.assert_close(losses.next_event_loss(logits, nothing), wanted)
