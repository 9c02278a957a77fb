"""Triton kernels that apply all steps of a rollout to the cells of one image."""

from typing import Any

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError:  # PyTorch installs it where it can be used
    triton = None

nafca_kernel: Any
vitca_kernel: Any

if triton:
    # Not specialized for these values, so that the kernel that runs is the one that was verified.
    _rollout = triton.jit(do_not_specialize=['steps', 'height', 'width'])

    @triton.jit
    def _offsets(height, width, CELLS: tl.constexpr, CHANNELS: tl.constexpr, PADDED: tl.constexpr):
        """Return the offsets of an image's cells in the state, and a mask of those that exist."""
        cell, channel = tl.arange(0, CELLS)[:, None], tl.arange(0, PADDED)[None, :]
        first = tl.program_id(0).to(tl.int64) * height * width * CHANNELS
        return first + cell * CHANNELS + channel, (cell < height * width) & (channel < CHANNELS)

    @triton.jit
    def _normalize(x, COUNT: tl.constexpr, PADDED: tl.constexpr, EPS: tl.constexpr):
        """Apply a layer norm to the first COUNT of PADDED channels; the others stay zero."""
        channel = tl.arange(0, PADDED)[None, :]
        centred = tl.where(channel < COUNT, x - tl.sum(x, axis=1)[:, None] / COUNT, 0.0)
        return centred / tl.sqrt(tl.sum(centred * centred, axis=1)[:, None] / COUNT + EPS)

    @triton.jit
    def _linear(x, weights, biases, INS: tl.constexpr, OUTS: tl.constexpr):
        """Apply the linear map at two pointers; also return the pointers to the parameters that follow."""
        weight = tl.load(weights + tl.arange(0, INS)[:, None] * OUTS + tl.arange(0, OUTS)[None, :])
        bias = tl.load(biases + tl.arange(0, OUTS))[None, :]
        return tl.dot(x.to(weight.dtype), weight, input_precision='tf32x3') + bias, weights + INS * OUTS, biases + OUTS

    @_rollout
    def nafca_kernel(
        state,
        weights,
        biases,
        steps,
        height,
        width,
        CELLS: tl.constexpr,
        CHANNELS: tl.constexpr,
        C: tl.constexpr,
        HALF: tl.constexpr,
        PARTS: tl.constexpr,
        PART: tl.constexpr,
        TAPS: tl.constexpr,
        EPS: tl.constexpr,
    ):
        """Apply ``gate_update`` of :mod:`lnca_arch.acceleration.fused_nafca` with the parameters of its ``pack``."""
        offsets, exists = _offsets(height, width, CELLS, CHANNELS, C)
        x = tl.load(state + offsets, mask=exists, other=0.0)

        # For each cell and tap, the neighbour that contributes it, and whether it exists.
        cell, tap = tl.arange(0, CELLS)[:, None], tl.arange(0, TAPS)[None, :]
        row, column = cell // width + tap // 3 - 1, cell % width + tap % 3 - 1
        inside = (tap < 9) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        neighbour = tl.where(inside, row * width + column, 0)

        for _ in range(steps):
            normalized = _normalize(x, CHANNELS, C, EPS)
            first, w, b = _linear(normalized, weights, biases, C, HALF)
            second, w, b = _linear(normalized, w, b, C, HALF)
            gated = first * second
            of_gated, w, b = _linear(gated, w, b, HALF, TAPS)
            of_normalized, w, b = _linear(normalized, w, b, C, TAPS)
            taps = tl.gather(of_gated + of_normalized, neighbour, axis=0)
            attention = tl.sum(tl.where(inside, taps, 0.0), axis=1)[:, None]
            of_gated, w, b = _linear(gated, w, b, HALF, C)
            of_normalized, w, b = _linear(normalized, w, b, C, C)
            y = x + (of_gated + of_normalized) * attention + tl.load(b + tl.arange(0, C))[None, :]
            b += C

            normalized = _normalize(y, CHANNELS, C, EPS)
            for _part in tl.static_range(PARTS):
                first, w, b = _linear(normalized, w, b, C, PART)
                second, w, b = _linear(normalized, w, b, C, PART)
                transition, w, b = _linear(first * second, w, b, PART, C)
                y += transition
            update, w, b = _linear(_normalize(y, CHANNELS, C, EPS), w, b, C, C)
            x += update
        tl.store(state + offsets, x, mask=exists)

    @_rollout
    def vitca_kernel(
        state,
        weights,
        biases,
        positions,
        steps,
        height,
        width,
        CELLS: tl.constexpr,
        CHANNELS: tl.constexpr,
        C: tl.constexpr,
        EMBED: tl.constexpr,
        E: tl.constexpr,
        HEADS: tl.constexpr,
        SCALE: tl.constexpr,
        D: tl.constexpr,
        MLP: tl.constexpr,
        EPS: tl.constexpr,
    ):
        """Apply ``fused_update`` of :mod:`lnca_arch.acceleration.fused_vitca` with the parameters of its ``pack``.

        The scores of all pairs of cells are computed, and those of cells that are not neighbours masked: for so few
        cells one product on the tensor cores is faster.
        """
        offsets, exists = _offsets(height, width, CELLS, CHANNELS, C)
        x = tl.load(state + offsets, mask=exists, other=0.0)
        cell, channel = tl.arange(0, CELLS)[:, None], tl.arange(0, E)[None, :]
        known = (cell < height * width) & (channel < EMBED)
        position = tl.load(positions + cell * EMBED + channel, mask=known, other=0.0)

        other = tl.arange(0, CELLS)[None, :]
        near = (tl.abs(cell // width - other // width) <= 1) & (tl.abs(cell % width - other % width) <= 1)
        near = near & (other < height * width)
        # Neighbours beyond the border have score 0 and value 0.
        beyond = 9 - tl.sum(near.to(tl.int32), axis=1)[:, None]

        for _ in range(steps):
            token, w, b = _linear(x, weights, biases, C, E)
            token += position
            normalized = _normalize(token, EMBED, E, EPS)
            for _head in tl.static_range(HEADS):
                query, w, b = _linear(normalized, w, b, E, D)
                key, w, b = _linear(normalized, w, b, E, D)
                value, w, b = _linear(normalized, w, b, E, D)
                factor = weights.dtype.element_ty
                scores = tl.dot((query * SCALE).to(factor), tl.trans(key).to(factor), input_precision='tf32x3')
                scores = tl.where(near, scores, float('-inf'))
                highest = tl.max(scores, axis=1)[:, None]
                highest = tl.where(beyond > 0, tl.maximum(highest, 0.0), highest)
                shares = tl.exp(scores - highest)
                total = tl.sum(shares, axis=1)[:, None] + tl.where(beyond > 0, beyond * tl.exp(-highest), 0.0)
                attended = tl.dot((shares / total).to(factor), value.to(factor), input_precision='tf32x3')
                projected, w, b = _linear(attended, w, b, D, E)
                token += projected
            hidden, w, b = _linear(_normalize(token, EMBED, E, EPS), w, b, E, MLP)
            hidden = 0.5 * hidden * (1.0 + tl.erf(hidden * 0.7071067811865476))
            transition, w, b = _linear(hidden, w, b, MLP, E)
            token += transition
            update, w, b = _linear(_normalize(token, EMBED, E, EPS), w, b, E, C)
            x += update
        tl.store(state + offsets, x, mask=exists)
else:
    nafca_kernel = vitca_kernel = None
