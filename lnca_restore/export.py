"""Export of networks to ONNX and with torch.export."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lnca_arch.networks.automaton_network import AutomatonNetwork
from lnca_utils.atomic import atomic_file
from lnca_utils.errors import InstallationError, LNCAError

# Height and width of the example image, as multiples of the network's stride. The exported sizes are dynamic.
EXAMPLE_ROWS, EXAMPLE_COLUMNS, EXAMPLE_BATCH = 8, 6, 2


class _Seed(nn.Module):
    def __init__(self, network: AutomatonNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor for tensor in self.network.seed(image) if tensor is not None)


class _Step(nn.Module):
    def __init__(self, network: AutomatonNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, state: Tensor) -> Tensor:
        return self.network.automaton.reference_rollout(state, 1)


class _Render(nn.Module):
    def __init__(self, network: AutomatonNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, state: Tensor, skip: Tensor | None = None) -> Tensor:
        return self.network.render(state, skip).clamp(0, 1)


class _Whole(nn.Module):
    def __init__(self, network: AutomatonNetwork, steps: int) -> None:
        super().__init__()
        self.render = _Render(network)
        self.steps = steps

    def forward(self, image: Tensor) -> Tensor:
        network = self.render.network
        state, skip = network.seed(image)
        return self.render(network.automaton.reference_rollout(state, self.steps), skip)


def export_program(network: nn.Module, path: Path | str, steps: int | None = None) -> None:
    """Export a network to a ``.pt2`` file for :func:`torch.export.load`.

    The exported program maps images ``(N, C, H, W)`` in [0, 1] to restored images. Batch size, height and width are
    dynamic. Height and width must be multiples of the network's stride, and at least twice the stride.

    Args:
        network: a network with an automaton and update rate 1.
        path: path of the file.
        steps: number of steps of the automaton. Default: the network's.

    Raises:
        LNCAError: if the network has no automaton, or another update rate.
    """
    network = _check(network)
    with torch.no_grad():
        program = torch.export.export(
            _Whole(network, network.steps if steps is None else steps),
            (_image(network),),
            dynamic_shapes=({0: _BATCH, **_sides(network.stride)},),
        )
    with atomic_file(path) as temporary:
        torch.export.save(program, temporary)


def export_onnx(network: nn.Module, path: Path | str, steps: int | Literal['input'] | None = None) -> None:
    """Export a network to ONNX.

    The model has the input ``image``, ``(N, C, H, W)`` in [0, 1], and the output ``restored`` of the same shape. Batch
    size, height and width are dynamic; height and width must be multiples of the network's stride. The steps of the
    automaton are a ``Loop`` node.

    Args:
        network: a network with an automaton and update rate 1.
        path: path of the file.
        steps: number of steps of the automaton, or ``'input'`` to add an int64 input ``steps`` to the model. Default:
            the network's.

    Raises:
        LNCAError: if the network has no automaton, or another update rate.
        InstallationError: if the extra ``onnx`` is not installed.
    """
    network = _check(network)
    try:
        import onnx
        import onnxscript  # noqa: F401  used by torch.onnx
    except ModuleNotFoundError:
        raise InstallationError('ONNX is an extra: pip install -e ".[onnx]"') from None
    with torch.no_grad():
        image = _image(network)
        seeded = _Seed(network)(image)
        grid = _sides(1)
        skip = [{0: _BATCH, **_sides(network.stride // 2)} for _ in seeded[1:]]
        parts = [
            _to_onnx(_Seed(network), (image,), [{0: _BATCH, **_sides(network.stride)}]),
            _to_onnx(_Step(network), seeded[:1], [{0: _BATCH, **grid}]),
            _to_onnx(_Render(network), seeded, [{0: _BATCH, **grid}, *skip]),
        ]
    model = _join(parts, network.steps if steps is None else steps)
    onnx.checker.check_model(model, full_check=True)
    with atomic_file(path) as temporary:
        onnx.save(model, str(temporary))


def _join(parts: list[Any], steps: int | Literal['input']) -> Any:
    """Join the models seed, step and render into one, with a loop over step."""
    import onnx
    from onnx import TensorProto, compose, helper

    seed, step, render = (
        compose.add_prefix(part, prefix) for part, prefix in zip(parts, ('seed.', 'step.', 'render.'), strict=True)
    )
    image = seed.graph.input[0]
    state, *skip = (output.name for output in seed.graph.output)
    # The body of a loop takes the iteration, the condition and the state; it returns the condition and the state.
    go_on = helper.make_tensor_value_info('step.condition', TensorProto.BOOL, [])
    still = helper.make_node('Identity', ['step.condition'], ['step.still'])
    body = helper.make_graph(
        [still, *step.graph.node],
        'step',
        [helper.make_tensor_value_info('step.turn', TensorProto.INT64, []), go_on, step.graph.input[0]],
        [helper.make_tensor_value_info('step.still', TensorProto.BOOL, []), step.graph.output[0]],
        step.graph.initializer,
    )
    inputs, initializers = [image], [*seed.graph.initializer, *render.graph.initializer]
    if steps == 'input':
        inputs.append(helper.make_tensor_value_info('steps', TensorProto.INT64, []))
    else:
        initializers.append(helper.make_tensor('steps', TensorProto.INT64, [], [steps]))
    # The inputs of render are outputs of the loop and of seed.
    inputs_of_render = dict(zip((value.name for value in render.graph.input), ['last state', *skip], strict=True))
    rendering = [_rename_inputs(node, inputs_of_render) for node in render.graph.node]
    restored = render.graph.output[0]
    nodes = [
        *seed.graph.node,
        helper.make_node('Loop', ['steps', '', state], ['last state'], body=body),
        *rendering,
        helper.make_node('Identity', [restored.name], ['restored']),
    ]
    restored.name = 'restored'
    nodes[0:0] = [helper.make_node('Identity', ['image'], [image.name])]
    named = onnx.ValueInfoProto()
    named.CopyFrom(image)
    named.name = 'image'
    graph = helper.make_graph(nodes, 'lnca', [named, *inputs[1:]], [restored], initializers)
    return helper.make_model(graph, opset_imports=seed.opset_import, ir_version=seed.ir_version)


def _rename_inputs(node: Any, names: dict[str, str]) -> Any:
    for index, name in enumerate(node.input):
        node.input[index] = names.get(name, name)
    return node


def _to_onnx(module: nn.Module, arguments: tuple[Tensor, ...], shapes: list[dict[int, Any]]) -> Any:
    program = torch.onnx.export(module.eval(), arguments, dynamo=True, dynamic_shapes=tuple(shapes), verbose=False)
    assert program is not None  # dynamo=True returns one
    return program.model_proto


def _check(network: nn.Module) -> AutomatonNetwork:
    """Return a network, or raise LNCAError if it cannot be exported."""
    if not isinstance(network, AutomatonNetwork) or network.update_rate != 1:
        raise LNCAError(
            f'{type(network).__name__}: only networks with an automaton and update rate 1 can be exported; use '
            'torch.export or torch.onnx for others'
        )
    return network


def _image(network: AutomatonNetwork) -> Tensor:
    device = next(network.parameters()).device
    sides = EXAMPLE_ROWS * network.stride, EXAMPLE_COLUMNS * network.stride
    return torch.rand(EXAMPLE_BATCH, network.image_channels, *sides, device=device)


_BATCH = torch.export.Dim('batch', min=1, max=1 << 16)
# torch.export specialises on sides of 1.
_ROWS, _COLUMNS = (torch.export.Dim(name, min=2, max=1 << 16) for name in ('rows', 'columns'))


def _sides(multiple: int) -> dict[int, torch.export.Dim]:
    """Return dynamic dimensions for height and width, with ``multiple`` pixels per cell."""
    if multiple == 1:
        return {2: _ROWS, 3: _COLUMNS}
    return {2: multiple * _ROWS, 3: multiple * _COLUMNS}
