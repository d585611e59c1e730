"""Compiled kernels for sparse fully connected layers on the CPU.

Activations are float32 ``[units, b]``, one row per unit. The number of columns ``b`` is the batch size, padded to a
multiple of `WIDTH`. A layer stores the weights that it keeps by output unit: those of unit ``o`` are
``values[rows[o]:rows[o + 1]]``, and they come from the input units ``columns[rows[o]:rows[o + 1]]``.

The inner loops are written in LLVM's vector types, through numba's ``@intrinsic``. Written in Python they take twice as
long, because LLVM does not keep their accumulators in registers. Every sum has a fixed order. Results therefore do not
depend on the width of the processor's vectors, and those of a column do not depend on the other columns.

Numba compiles a kernel when it is first called (3 s for all of them) and caches it on disk; later processes load the
cached kernels in less than a second.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

#: The number of floats in a vector.
WIDTH = 16
_FLOATS = ir.VectorType(ir.FloatType(), WIDTH)
_BYTES = ir.VectorType(ir.IntType(8), WIDTH)
_INDEX = ir.IntType(64)

Floats = NDArray[np.float32]
Integers = NDArray[Any]
F = TypeVar("F", bound=Callable[..., Any])


class _Emitter:
    """Emits the LLVM instructions of one intrinsic. Its methods take the position of an array among the arguments."""

    def __init__(self, context: Any, build: Any, signature: Any, values: Any) -> None:
        self.build = build
        self._arrays = {
            place: context.make_array(kind)(context, build, value)
            for place, (kind, value) in enumerate(zip(signature.args, values, strict=True))
            if isinstance(kind, types.Array)
        }
        kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
        self._fma = cgutils.get_or_insert_function(build.module, kind, f"llvm.fma.v{WIDTH}f32")

    def at(self, array: int, *indices: Any) -> Any:
        """Return the address of an element of a contiguous array of one or two dimensions."""
        place, *rest = indices
        for index in rest:
            width = cgutils.unpack_tuple(self.build, self._arrays[array].shape)[1]
            place = self.build.add(self.build.mul(place, width), index)
        return self.build.gep(self._arrays[array].data, [place])

    def element(self, array: int, index: Any) -> Any:
        """Load an element of an array of one dimension."""
        return self.build.load(self.at(array, index))

    def load(self, address: Any, k: int = 0, kind: ir.VectorType = _FLOATS) -> Any:
        """Load the vector number `k` after an address, which need not be aligned."""
        return self.build.load(self._vector_at(address, k, kind), align=1)

    def store(self, value: Any, address: Any, k: int = 0) -> None:
        """Store a vector as number `k` after an address, which need not be aligned."""
        self.build.store(value, self._vector_at(address, k, value.type), align=1)

    def _vector_at(self, address: Any, k: int, kind: ir.VectorType) -> Any:
        return self.build.gep(self.build.bitcast(address, kind.as_pointer()), [ir.Constant(_INDEX, k)])

    def spread(self, scalar: Any) -> Any:
        """Return a vector whose elements are all equal to a scalar."""
        empty = ir.Constant(_FLOATS, ir.Undefined)
        first = self.build.insert_element(empty, scalar, ir.Constant(ir.IntType(32), 0))
        return self.build.shuffle_vector(first, empty, _order([0] * WIDTH))

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """Return ``a * b + c``, rounded once."""
        return self.build.call(self._fma, [a, b, c])

    def total(self, vector: Any) -> Any:
        """Return the sum of a vector's elements: halves are added until one element is left."""
        width = WIDTH
        while width > 1:
            width //= 2
            empty = ir.Constant(vector.type, ir.Undefined)
            low = self.build.shuffle_vector(vector, empty, _order(range(width)))
            high = self.build.shuffle_vector(vector, empty, _order(range(width, 2 * width)))
            vector = self.build.fadd(low, high)
        return self.build.extract_element(vector, ir.Constant(ir.IntType(32), 0))


def _order(indices: Any) -> Any:
    numbers = list(indices)
    return ir.Constant(ir.VectorType(ir.IntType(32), len(numbers)), numbers)


def _emitted(emit: Callable[..., None], *kinds: Any) -> Any:
    """Return what numba expects of an intrinsic without a result: its signature, and a function that emits its code."""

    def code(context: Any, build: Any, signature: Any, values: Any) -> Any:
        emit(_Emitter(context, build, signature, values), *values)
        return context.get_dummy_value()

    return types.void(*kinds), code


def _loop(emitter: _Emitter, start: Any, stop: Any) -> Any:
    return cgutils.for_range_slice(emitter.build, start, stop, ir.Constant(_INDEX, 1), _INDEX)


def _make_weighted_sum(vectors: int) -> Any:
    def emit(e: _Emitter, _values: Any, _columns: Any, _x: Any, _out: Any, *scalars: Any) -> None:
        start, stop, unit, column, bias, floor = scalars
        sums = [cgutils.alloca_once_value(e.build, e.spread(bias)) for _ in range(vectors)]
        with _loop(e, start, stop) as (j, _):
            weight = e.spread(e.element(0, j))
            inputs = e.at(2, e.build.zext(e.element(1, j), _INDEX), column)
            for k, total in enumerate(sums):
                e.build.store(e.fma(weight, e.load(inputs, k), e.build.load(total)), total)
        floors = e.spread(floor)
        for k, total in enumerate(sums):
            value = e.build.load(total)
            # An ordered comparison with nan is false, so nan is kept.
            value = e.build.select(e.build.fcmp_ordered("<", value, floors), floors, value)
            e.store(value, e.at(3, unit, column), k)

    @intrinsic
    def weighted_sum(_, values, columns, x, out, start, stop, unit, column, bias, floor):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        """Set ``out[unit, column:]`` to ``max(floor, bias + sum of values * x)`` over the weights start..stop."""
        return _emitted(emit, values, columns, x, out, start, stop, unit, column, bias, floor)

    return weighted_sum


def _make_weight_gradients(vectors: int) -> Any:
    def emit(e: _Emitter, _columns: Any, _x: Any, _slope: Any, _gradients: Any, *scalars: Any) -> None:
        start, stop, unit, column = scalars
        slopes = [e.load(e.at(2, unit, column), k) for k in range(vectors)]
        with _loop(e, start, stop) as (j, _):
            inputs = e.at(1, e.build.zext(e.element(0, j), _INDEX), column)
            total = e.build.fmul(slopes[0], e.load(inputs, 0))
            for k in range(1, vectors):
                total = e.fma(slopes[k], e.load(inputs, k), total)
            e.build.store(e.build.fadd(e.element(3, j), e.total(total)), e.at(3, j))

    @intrinsic
    def weight_gradients(_, columns, x, slope, gradients, start, stop, unit, column):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        """Add ``slope[unit] @ x[columns[j]]`` to ``gradients[j]``, for the weights start..stop."""
        return _emitted(emit, columns, x, slope, gradients, start, stop, unit, column)

    return weight_gradients


def _make_input_gradients(vectors: int) -> Any:
    def emit(e: _Emitter, _values: Any, _columns: Any, _slope: Any, _x_slope: Any, *scalars: Any) -> None:
        start, stop, unit, column = scalars
        slopes = [e.load(e.at(2, unit, column), k) for k in range(vectors)]
        with _loop(e, start, stop) as (j, _):
            weight = e.spread(e.element(0, j))
            target = e.at(3, e.build.zext(e.element(1, j), _INDEX), column)
            for k in range(vectors):
                e.store(e.fma(weight, slopes[k], e.load(target, k)), target, k)

    @intrinsic
    def input_gradients(_, values, columns, slope, x_slope, start, stop, unit, column):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        """Add ``values[j] * slope[unit]`` to ``x_slope[columns[j]]``, for the weights start..stop."""
        return _emitted(emit, values, columns, slope, x_slope, start, stop, unit, column)

    return input_gradients


@intrinsic
def _through_activation(_, out, slope, bias_gradients, unit, vectors, floor):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Compute one unit of `through_activation`."""

    def emit(e: _Emitter, *values: Any) -> None:
        unit, vectors, floor = values[3:]
        zero = ir.Constant(_INDEX, 0)
        floors, zeros = e.spread(floor), ir.Constant(_FLOATS, [0.0] * WIDTH)
        total = cgutils.alloca_once_value(e.build, zeros)
        with _loop(e, zero, vectors) as (k, _):
            column = e.build.mul(k, ir.Constant(_INDEX, WIDTH))
            at = e.at(1, unit, column)
            is_off = e.build.fcmp_ordered("<=", e.load(e.at(0, unit, column)), floors)
            value = e.build.select(is_off, zeros, e.load(at))
            e.store(value, at)
            e.build.store(e.build.fadd(e.build.load(total), value), total)
        e.build.store(e.total(e.build.load(total)), e.at(2, unit))

    return _emitted(emit, out, slope, bias_gradients, unit, vectors, floor)


@intrinsic
def _load_tile(_, images, rows, column, pixel, scale, shift, x):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Fill a tile of `x`, WIDTH pixels by WIDTH columns, from uint8 images that are transposed and normalized."""

    def emit(e: _Emitter, *values: Any) -> None:
        column, pixel = values[2], values[3]
        offsets = [ir.Constant(_INDEX, k) for k in range(WIDTH)]
        tile = [e.load(e.at(0, e.element(1, e.build.add(column, k)), pixel), kind=_BYTES) for k in offsets]
        half = WIDTH // 2
        for _ in range(WIDTH.bit_length() - 1):  # after log2(WIDTH) perfect shuffles the tile is transposed
            pairs = [(tile[k], tile[k + half]) for k in range(half)]
            tile = [e.build.shuffle_vector(a, b, _zipped(part)) for a, b in pairs for part in (0, half)]
        for k, row in zip(offsets, tile, strict=True):
            at = e.build.add(pixel, k)
            numbers = e.build.uitofp(row, _FLOATS)
            numbers = e.build.fmul(numbers, e.spread(e.element(4, at)))  # rounded twice, as in `Dataset`
            e.store(e.build.fadd(numbers, e.spread(e.element(5, at))), e.at(6, at, column))

    return _emitted(emit, images, rows, column, pixel, scale, shift, x)


def _zipped(start: int) -> Any:
    return _order(n for k in range(start, start + WIDTH // 2) for n in (k, k + WIDTH))


_weighted_sum_1, _weighted_sum_2, _weighted_sum_4 = map(_make_weighted_sum, (1, 2, 4))
_weight_gradients_1, _weight_gradients_2, _weight_gradients_4 = map(_make_weight_gradients, (1, 2, 4))
_input_gradients_1, _input_gradients_2, _input_gradients_4 = map(_make_input_gradients, (1, 2, 4))


def _compiled(function: F) -> F:
    """Compile a function that releases the GIL. The machine code is cached on disk if a cache folder is writable."""
    try:
        return njit(cache=True, nogil=True, error_model="numpy")(function)  # type: ignore[no-any-return]
    except RuntimeError:  # "cannot cache function: no locator available for file ..."
        return njit(nogil=True, error_model="numpy")(function)  # type: ignore[no-any-return]


@_compiled
def forward(
    rows: Integers, columns: Integers, values: Floats, bias: Floats, x: Floats, out: Floats, floor: np.float32
) -> None:
    """Compute a layer's outputs, ``max(floor, W @ x + bias)``; a floor of 0 is ReLU, and -inf is no activation."""
    batch, column = x.shape[1], 0
    while column < batch:
        left = batch - column
        for unit in range(out.shape[0]):
            start, stop, b = rows[unit], rows[unit + 1], bias[unit]
            if left >= 4 * WIDTH:
                _weighted_sum_4(values, columns, x, out, start, stop, unit, column, b, floor)
            elif left >= 2 * WIDTH:
                _weighted_sum_2(values, columns, x, out, start, stop, unit, column, b, floor)
            else:
                _weighted_sum_1(values, columns, x, out, start, stop, unit, column, b, floor)
        column += 4 * WIDTH if left >= 4 * WIDTH else 2 * WIDTH if left >= 2 * WIDTH else WIDTH


@_compiled
def weight_gradients(rows: Integers, columns: Integers, x: Floats, slope: Floats, gradients: Floats) -> None:
    """Compute the gradients of a layer's kept weights.

    Args:
        rows: see the module's docstring.
        columns: see the module's docstring.
        x: the layer's inputs, ``[inputs, b]``.
        slope: the gradients of the outputs before the activation, ``[outputs, b]``.
        gradients: set to the gradients, ``[kept weights]``.
    """
    batch, column = x.shape[1], 0
    gradients[:] = np.float32(0.0)
    while column < batch:
        left = batch - column
        for unit in range(slope.shape[0]):
            start, stop = rows[unit], rows[unit + 1]
            if left >= 4 * WIDTH:
                _weight_gradients_4(columns, x, slope, gradients, start, stop, unit, column)
            elif left >= 2 * WIDTH:
                _weight_gradients_2(columns, x, slope, gradients, start, stop, unit, column)
            else:
                _weight_gradients_1(columns, x, slope, gradients, start, stop, unit, column)
        column += 4 * WIDTH if left >= 4 * WIDTH else 2 * WIDTH if left >= 2 * WIDTH else WIDTH


@_compiled
def input_gradients(rows: Integers, columns: Integers, values: Floats, slope: Floats, x_slope: Floats) -> None:
    """Set `x_slope`, ``[inputs, b]``, to the gradients of a layer's inputs; see `weight_gradients`."""
    batch, column = slope.shape[1], 0
    x_slope[:] = np.float32(0.0)
    while column < batch:
        left = batch - column
        for unit in range(slope.shape[0]):
            start, stop = rows[unit], rows[unit + 1]
            if left >= 4 * WIDTH:
                _input_gradients_4(values, columns, slope, x_slope, start, stop, unit, column)
            elif left >= 2 * WIDTH:
                _input_gradients_2(values, columns, slope, x_slope, start, stop, unit, column)
            else:
                _input_gradients_1(values, columns, slope, x_slope, start, stop, unit, column)
        column += 4 * WIDTH if left >= 4 * WIDTH else 2 * WIDTH if left >= 2 * WIDTH else WIDTH


@_compiled
def add_bias(out: Floats, bias: Floats, floor: np.float32) -> None:
    """Add each unit's bias to its outputs, and replace values below the floor by the floor."""
    for unit in range(out.shape[0]):
        for column in range(out.shape[1]):
            value = out[unit, column] + bias[unit]
            out[unit, column] = floor if value < floor else value


@_compiled
def through_activation(out: Floats, slope: Floats, floor: np.float32, bias_gradients: Floats) -> None:
    """Multiply the gradients of a layer's outputs by the derivative of its activation, and add up those of each unit.

    Args:
        out: the layer's outputs, ``[outputs, b]``.
        slope: their gradients, replaced by the gradients before the activation.
        floor: the floor that the activation applied.
        bias_gradients: set to the gradients of the biases, ``[outputs]``.
    """
    for unit in range(out.shape[0]):
        _through_activation(out, slope, bias_gradients, unit, out.shape[1] // WIDTH, floor)


@_compiled
def cross_entropy(logits: Floats, labels: Integers, count: int, slope: Floats) -> float:
    """Return the mean cross-entropy of a batch in nats, and set `slope` to the gradients of the logits.

    Args:
        logits: ``[classes, b]``.
        labels: ``[count]`` int64.
        count: the number of columns that are examples; the gradients of the others are 0.
        slope: ``[classes, b]``.
    """
    classes, total = logits.shape[0], np.float64(0.0)
    share = np.float32(1.0) / np.float32(count)
    for column in range(logits.shape[1]):
        if column >= count:
            for unit in range(classes):
                slope[unit, column] = np.float32(0.0)
            continue
        highest = logits[0, column]
        for unit in range(1, classes):
            highest = max(highest, logits[unit, column])
        mass = np.float32(0.0)
        for unit in range(classes):
            power = np.exp(logits[unit, column] - highest)
            slope[unit, column] = power
            mass += power
        for unit in range(classes):
            slope[unit, column] = slope[unit, column] / mass * share
        label = labels[column]
        slope[label, column] -= share
        total += np.log(mass) - (logits[label, column] - highest)
    return total / count


@_compiled
def score(logits: Floats, labels: Integers, count: int) -> tuple[float, int]:
    """Return the sum of the cross-entropies of a batch in nats, and the number of examples classified correctly."""
    total, correct = np.float64(0.0), 0
    for column in range(count):
        best = 0
        for unit in range(1, logits.shape[0]):
            if logits[unit, column] > logits[best, column]:
                best = unit
        mass = np.float32(0.0)
        for unit in range(logits.shape[0]):
            mass += np.exp(logits[unit, column] - logits[best, column])
        label = labels[column]
        total += np.log(mass) - (logits[label, column] - logits[best, column])
        correct += best == label
    return total, correct


@_compiled
def adam(
    weights: Floats, gradients: Floats, mean: Floats, square: Floats, step: int, rate: float, weight_decay: float
) -> None:
    """Make one update of Adam (Kingma & Ba 2015) in place, with betas .9 and .999, and eps 1e-8 as in torch.

    Args:
        weights: ``[n]``.
        gradients: ``[n]``.
        mean: the running mean of the gradients, ``[n]``.
        square: the running mean of the squared gradients, ``[n]``.
        step: the number of this update, from 1.
        rate: the learning rate.
        weight_decay: the L2 penalty.
    """
    size = np.float32(rate / (1.0 - 0.9**step))
    root = np.float32(1.0 / np.sqrt(1.0 - 0.999**step))
    decay, eps = np.float32(weight_decay), np.float32(1e-8)
    for i in range(weights.shape[0]):
        g = gradients[i] + decay * weights[i]
        mean[i] = mean[i] + np.float32(0.1) * (g - mean[i])
        square[i] = np.float32(0.999) * square[i] + np.float32(0.001) * g * g
        weights[i] -= size * mean[i] / (np.sqrt(square[i]) * root + eps)


@_compiled
def sgd(
    weights: Floats, gradients: Floats, velocity: Floats, rate: float, momentum: float, weight_decay: float
) -> None:
    """Make one update of stochastic gradient descent with momentum in place, as torch defines it; see `adam`."""
    size, keep, decay = np.float32(rate), np.float32(momentum), np.float32(weight_decay)
    for i in range(weights.shape[0]):
        velocity[i] = keep * velocity[i] + gradients[i] + decay * weights[i]
        weights[i] -= size * velocity[i]


@_compiled
def load_images(images: NDArray[np.uint8], rows: Integers, scale: Floats, shift: Floats, x: Floats) -> None:
    """Set `x` to the transposed, normalized pixels of a batch of uint8 images.

    Args:
        images: ``[n, pixels]``, with at least `WIDTH` pixels.
        rows: the images of the batch, ``[b]`` int64; `b` is a multiple of `WIDTH`.
        scale: the factor of each pixel, ``[pixels]``.
        shift: the number added to each pixel after scaling, ``[pixels]``.
        x: ``[pixels, >= b]``; further columns are left unchanged.
    """
    pixels = images.shape[1]
    for column in range(0, rows.shape[0], WIDTH):
        for pixel in range(0, pixels - WIDTH + 1, WIDTH):
            _load_tile(images, rows, column, pixel, scale, shift, x)
        if pixels % WIDTH:
            _load_tile(images, rows, column, pixels - WIDTH, scale, shift, x)
