"""The two rules and the rollout that they share."""

import functools

import pytest
import torch
import torch.nn.functional as F

from lnca_arch import NAFCA, CellularAutomaton, LatentNAFCA, ViTCA
from lnca_arch.acceleration.fused_vitca import blockwise_attention
from lnca_arch.automata.vitca import neighbourhood_attention, sinusoidal_positions

PAPERS = {'nafca': NAFCA, 'vitca': ViTCA}
RULES = PAPERS | {'depthwise': functools.partial(NAFCA, perception='depthwise')}


def rule_of(name, *sizes, **more):
    """A rule whose updates are not zero, as they are in a new one."""
    rule = RULES[name](*sizes, **more)
    with torch.no_grad():
        for parameter in rule.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return rule.eval()


@pytest.mark.parametrize('name', PAPERS)
@pytest.mark.parametrize(('steps', 'tolerance'), [(1, 1e-5), (8, 1e-4)])
@torch.no_grad()
def test_golden_states(golden, name, steps, tolerance):
    expected = golden(name)
    config = {key: value for key, value in expected.config.items() if key != 'layer_norm_eps'}
    rule = RULES[name](**config).eval()
    rule.load_state_dict(expected.below('weights'))
    state = rule(expected['input'], steps)
    torch.testing.assert_close(state, expected[f'output_{steps}_steps'], rtol=0, atol=tolerance)


@pytest.mark.parametrize(('name', 'epsilon'), [('nafca', 1e-6), ('vitca', 1e-5)])
def test_layer_norm_epsilon(golden, name, epsilon):
    assert golden(name).config['layer_norm_eps'] == epsilon
    norms = [module for module in rule_of(name, 3, 3, 4).modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 3
    assert {norm.eps for norm in norms} == {epsilon}


@pytest.mark.parametrize(('name', 'count'), [('nafca', 46_769), ('vitca', 97_520), ('depthwise', 46_896)])
def test_parameters_in_latent_space(name, count):
    assert sum(parameter.numel() for parameter in RULES[name](16, 16, 32).parameters()) == count


@pytest.mark.parametrize('name', RULES)
def test_state_layout(name):
    rule = rule_of(name, 3, 2, 4)
    x = torch.rand(2, 3, 5, 6)
    seed = rule.seed(x)
    assert seed.shape == (2, 9, 5, 6)
    assert torch.equal(seed[:, :3], x)
    assert (rule.output(seed) == 0.5).all()
    assert (rule.hidden(seed) == 0).all()
    state = rule(seed, 3)
    assert torch.equal(state[:, :3], x)
    assert not torch.equal(rule.output(state), rule.output(seed))
    assert not torch.equal(rule.hidden(state), rule.hidden(seed))


@pytest.mark.parametrize('name', RULES)
def test_rollout_is_repeated_steps_and_local(name):
    rule = rule_of(name, 3, 3, 4)
    seed = rule.seed(torch.rand(1, 3, 9, 9))
    by_hand = seed
    for _ in range(4):
        by_hand = rule(by_hand, 1)
    torch.testing.assert_close(rule(seed, 4), by_hand)
    assert torch.equal(rule(seed, 0), seed)

    changed = seed.clone()
    changed[0, :3, 4, 4] += 1
    differs = (rule(changed, 2) - rule(seed, 2)).abs().sum(1)[0] > 0
    assert differs[2:7, 2:7].any()
    differs[2:7, 2:7] = False
    assert not differs.any()


@pytest.mark.parametrize('name', RULES)
def test_update_rate_is_one_draw_a_cell(name):
    rule = rule_of(name, 3, 3, 4)
    seed = rule.seed(torch.rand(8, 3, 16, 16))
    changed = (rule(seed, 1, update_rate=0.3) != seed)[:, 3:]
    took_part = changed.any(dim=1)
    assert torch.equal(took_part, changed.all(dim=1))
    assert 0.25 < took_part.float().mean() < 0.35
    assert (rule(seed, 1, update_rate=1.0) != seed)[:, 3:].all()


@pytest.mark.parametrize('name', RULES)
def test_new_rules_start_as_the_reference(name):
    rule = RULES[name](3, 3, 4)
    if name != 'vitca':
        assert (rule.beta == 0).all()
        assert (rule.gamma == 0).all()
    else:
        seed = rule.seed(torch.rand(1, 3, 8, 8))
        assert torch.equal(rule(seed, 5), seed)


def test_each_channel_sees_its_own_neighbours():
    """Of a depthwise rule's convolution; a gate would scale all channels of a cell alike."""
    rule = rule_of('depthwise', 3, 3, 4)
    seen = []
    rule.neighbours.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    rule.reference_rollout(rule.seed(torch.rand(1, 3, 5, 5)), 1)
    ((gated, convolved),) = seen
    channel = torch.randint(gated.shape[1], ()).item()
    alone = F.conv2d(gated[:, channel, None], rule.neighbours.weight[channel, None], padding=1)
    torch.testing.assert_close(convolved[:, channel], alone[:, 0] + rule.neighbours.bias[channel])


def test_nafca_dropout_acts_in_training_only():
    rule = rule_of('nafca', 3, 3, 4, dropout=0.5)
    seed = rule.seed(torch.rand(1, 3, 8, 8))
    assert torch.equal(rule(seed, 1), rule(seed, 1))
    rule.train()
    assert not torch.equal(rule(seed, 1), rule(seed, 1))


@pytest.mark.parametrize('name', RULES)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_is_finite_and_close(name, dtype):
    rule = rule_of(name, 3, 3, 4)
    seed = rule.seed(torch.rand(2, 3, 8, 8))
    expected = rule(seed, 16)
    with torch.autocast('cpu', dtype=dtype):
        state = rule(seed, 16)
    state.float().square().mean().backward()
    assert state.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in rule.parameters())
    assert (state - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize('name', RULES)
def test_half_precision_weights(name):
    rule = rule_of(name, 3, 3, 4).bfloat16()
    state = rule(rule.seed(torch.rand(1, 3, 8, 8).bfloat16()), 8)
    assert state.dtype == torch.bfloat16
    assert state.isfinite().all()


@pytest.mark.parametrize('size', [(1, 1), (1, 7), (4, 4), (6, 7), (9, 5)])
@pytest.mark.parametrize('heads', [1, 3])
@pytest.mark.parametrize('attention', [neighbourhood_attention, blockwise_attention])
def test_attention_against_nine_shifted_copies(size, heads, attention):
    qkv = torch.randn(2, *size, 3 * 12, dtype=torch.float64)
    query, key, value = (t.unflatten(-1, (heads, -1)) for t in qkv.chunk(3, dim=-1))

    def neighbours(t):
        padded = F.pad(t, (0, 0, 0, 0, 1, 1, 1, 1))
        shifted = [padded[:, y : y + size[0], x : x + size[1]] for y in range(3) for x in range(3)]
        return torch.stack(shifted, dim=-2)

    scores = (query.unsqueeze(-2) * neighbours(key)).sum(-1) / (12 // heads) ** 0.5
    expected = (scores.softmax(-1).unsqueeze(-1) * neighbours(value)).sum(-2).flatten(-2)
    torch.testing.assert_close(attention(qkv, heads), expected)


def test_blockwise_attention_never_holds_nine_copies():
    """Of what one call computes, nothing is as large as nine copies of the keys."""
    qkv = torch.randn(1, 64, 64, 3 * 16)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple) else (result,):
                # A view, such as of overlapping blocks, takes no memory of its own.
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.untyped_storage().nbytes() // tensor.element_size())
            return result

    with Watch():
        blockwise_attention(qkv, heads=4)
    assert 64 * 64 * 16 <= largest < 9 * 64 * 64 * 16


def test_positions():
    positions = sinusoidal_positions(5, 8, torch.device('cpu'))
    n = torch.arange(5, dtype=torch.float64)
    torch.testing.assert_close(positions[:, 2], (n * 10000 ** (-2 / 8)).sin().float())
    torch.testing.assert_close(positions[:, 3], (n * 10000 ** (-3 / 8)).cos().float())


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: NAFCA(3, 3, 4, embed_channels=7), 'even'),
        (lambda: LatentNAFCA(perception='all'), 'one of gate, depthwise'),
        (lambda: ViTCA(3, 3, 4, embed_channels=10, heads=4), 'heads must divide'),
        (lambda: NAFCA(3, 3, 4).seed(torch.rand(1, 4, 8, 8)), r'\(N, 3, H, W\)'),
        (lambda: NAFCA(3, 3, 4)(torch.rand(1, 3, 8, 8), 1), r'\(N, 10, H, W\)'),
        (lambda: NAFCA(3, 3, 4)(torch.rand(1, 10, 8, 8), -1), 'steps'),
        (lambda: NAFCA(3, 3, 4)(torch.rand(1, 10, 8, 8), 1, update_rate=0), 'update_rate'),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


class Diffusion(CellularAutomaton):
    """A rule without a fused form."""

    def __init__(self):
        super().__init__(3, 3, 2)
        self.rates = torch.nn.Parameter(torch.rand(5))

    def _update(self, cells, *per_cell):
        image = cells.permute(0, 3, 1, 2)
        means = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode='replicate'), 3, stride=1)
        return self.rates * (means - image).permute(0, 2, 3, 1)[..., 3:]


@pytest.mark.parametrize('activation_checkpointing', [None, 'full'])
def test_a_rule_needs_no_fused_form(activation_checkpointing):
    rule = Diffusion().double()
    rule.activation_checkpointing = activation_checkpointing
    state = rule.seed(torch.rand(2, 3, 60, 50, dtype=torch.float64))
    expected = rule.reference_rollout(state, 3)
    gradients = torch.autograd.grad(expected.square().sum(), rule.rates)
    torch.testing.assert_close(rule(state, 3), expected)
    torch.testing.assert_close(torch.autograd.grad(rule(state, 3).square().sum(), rule.rates), gradients)
    with torch.no_grad():
        torch.testing.assert_close(rule(state, 3), expected)


def test_a_subclass_does_not_inherit_the_fused_form():
    class Doubled(NAFCA):
        def _update(self, cells, *per_cell):
            return 2 * super()._update(cells, *per_cell)

    rule = Doubled(3, 3, 4, embed_channels=16).eval()
    state = rule.seed(torch.rand(1, 3, 5, 6))
    with torch.no_grad():
        torch.testing.assert_close(rule(state, 2), rule.reference_rollout(state, 2))
        assert not torch.allclose(rule(state, 2), NAFCA.reference_rollout(rule, state, 1))
