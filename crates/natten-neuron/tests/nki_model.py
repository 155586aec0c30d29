"""A small numpy model of the NKI 0.6.0 calls that printed kernels use, written from AWS's documentation.

It knows nothing of the simulator in Rust: tests run printed kernels on both and compare. `python nki_model.py MODULE
DIRECTORY` imports the printed module, runs its `launch` on the arrays that DIRECTORY/inputs.json names, and writes the
results beside them.
"""
import importlib.util
import json
import math
import pathlib
import sys
import types

import numpy as np


class DType:
    def __init__(self, name):
        self.name = name

    def round(self, x):
        x = np.asarray(x, np.float32)
        if self.name == "bfloat16":
            bits = x.view(np.uint32)
            rounded = bits + 0x7FFF + ((bits >> 16) & 1)
            out = (rounded & 0xFFFF0000).astype(np.uint32).view(np.float32)
            return np.where(np.isfinite(x), out, x)
        if self.name == "float16":
            with np.errstate(over="ignore"):
                return x.astype(np.float16).astype(np.float32)
        if self.name == "uint8":
            return np.clip(np.rint(x), 0, 255).astype(np.float32)
        return x


class View:
    """Some elements of a tensor, as indices into its flat storage."""

    def __init__(self, tensor, index):
        self.tensor, self.index = tensor, index

    @property
    def data(self):
        return self.tensor.storage[self.index]

    def put(self, value):
        assert value.size == self.index.size, (value.shape, self.index.shape)
        self.tensor.storage[self.index] = self.tensor.dtype.round(value).reshape(self.index.shape)

    def tile(self):
        """[partitions, elements]."""
        return self.data.reshape(self.index.shape[0], -1)


class Tensor:
    def __init__(self, shape, dtype, buffer, data=None):
        self.shape, self.dtype, self.buffer = tuple(shape), dtype, buffer
        if buffer in ("sbuf", "psum"):
            assert len(shape) >= 2 and shape[0] <= 128, shape
        self.storage = np.full(math.prod(shape), np.nan, np.float32)
        if data is not None:
            self.storage[:] = dtype.round(np.asarray(data, np.float32).reshape(-1))

    def __getitem__(self, key):
        places = np.arange(self.storage.size).reshape(self.shape)
        for part, extent in zip(key, self.shape):
            assert 0 <= part.start < part.stop <= extent, (key, self.shape)
        return View(self, places[key])

    def ap(self, pattern, offset=0):
        index = np.array(offset)
        for stride, count in pattern:
            index = index[..., None] + stride * np.arange(count)
        assert index.max() < self.storage.size
        return View(self, index)


def _operand(value):
    return value.tile() if isinstance(value, View) else np.float32(value)


nl = types.ModuleType("nki.language")
for _name in ("float32", "bfloat16", "float16", "uint8"):
    setattr(nl, _name, DType(_name))
nl.sbuf, nl.psum, nl.shared_hbm = "sbuf", "psum", "shared_hbm"
nl.ndarray = lambda shape, dtype, buffer: Tensor(shape, dtype, buffer)
nl.add, nl.subtract, nl.multiply = np.add, np.subtract, np.multiply
nl.maximum, nl.minimum = np.maximum, np.minimum
nl.less, nl.less_equal, nl.greater, nl.greater_equal = np.less, np.less_equal, np.greater, np.greater_equal
nl.equal, nl.not_equal = np.equal, np.not_equal
nl.logical_and, nl.logical_or = np.logical_and, np.logical_or
nl.copy, nl.exp, nl.log, nl.tanh, nl.sqrt, nl.abs = np.positive, np.exp, np.log, np.tanh, np.sqrt, np.abs
nl.square = np.square
nl.rsqrt = lambda x: 1 / np.sqrt(x)
nl.relu = lambda x: np.maximum(x, 0)
nl.sigmoid = lambda x: 0.5 * (1 + np.tanh(x.astype(np.float64) / 2))
nl.softplus = lambda x: np.logaddexp(x, np.float32(0))
nl.erf = np.vectorize(math.erf, otypes=[np.float32])

nisa = types.ModuleType("nki.isa")
nisa.engine = types.SimpleNamespace(tensor="tensor", vector="vector", scalar="scalar", gpsimd="gpsimd", sync="sync")
nisa.reduce_cmd = types.SimpleNamespace(reset_reduce="reset_reduce", idle="idle")


def call(function):
    setattr(nisa, function.__name__, function)
    return function


@call
def dma_copy(dst, src):
    assert "psum" not in (dst.tensor.buffer, src.tensor.buffer)
    dst.put(src.data)


@call
def nc_matmul(dst, stationary, moving, accumulate):
    a, b = stationary.tile(), moving.tile()
    assert dst.tensor.buffer == "psum" and a.shape[0] == b.shape[0] and a.shape[1] <= 128 and b.shape[1] <= 512
    product = a.T @ b
    dst.put(dst.tile() + product if accumulate else product)


@call
def nc_transpose(dst, data, engine):
    assert dst.tensor.buffer == "psum" and engine == "tensor" and max(data.tile().shape) <= 128
    dst.put(data.tile().T)


@call
def activation(dst, op, data, bias=None, scale=1.0, reduce_op=None, reduce_res=None, reduce_cmd="idle"):
    x = data.tile() * _operand(scale)
    result = op(x + _operand(bias) if bias is not None else x).astype(np.float32)
    dst.put(result)
    if reduce_res is not None:
        assert reduce_op is nl.add and reduce_cmd == "reset_reduce"
        reduce_res.put(result.sum(axis=1, dtype=np.float32))


@call
def tensor_reduce(dst, op, data, axis, negate=False):
    assert axis == 1
    result = op.reduce(data.tile(), axis=1)
    dst.put(-result if negate else result)


@call
def tensor_tensor(dst, data1, data2, op, engine):
    dst.put(op(data1.tile(), data2.tile()))


@call
def tensor_scalar(dst, data, op0, operand0, reverse0=False, op1=None, operand1=None, reverse1=False, engine=None):
    result = data.tile()
    for op, operand, reverse in ((op0, operand0, reverse0), (op1, operand1, reverse1)):
        if op is not None:
            operand = _operand(operand)
            result = op(operand, result) if reverse else op(result, operand)
    dst.put(result)


@call
def tensor_scalar_reduce(dst, data, op0, operand0, reduce_op, reduce_res):
    result = op0(data.tile(), _operand(operand0))
    dst.put(result)
    reduce_res.put(reduce_op.reduce(result, axis=1))


@call
def scalar_tensor_tensor(dst, data, op0, operand0, op1, operand1):
    dst.put(op1(op0(data.tile(), _operand(operand0)), operand1.tile()))


@call
def tensor_copy(dst, src, engine):
    dst.put(src.tile())


@call
def tensor_copy_predicated(dst, src, predicate):
    dst.put(np.where(predicate.tile() != 0, src.tile(), dst.tile()))


@call
def affine_select(dst, pattern, channel_multiplier, on_true_tile, on_false_value, cmp_op, offset):
    index = np.array(offset)
    for step, count in pattern:
        index = index[..., None] + step * np.arange(count)
    tile = on_true_tile.tile()
    value = index.reshape(1, -1) + channel_multiplier * np.arange(tile.shape[0])[:, None]
    dst.put(np.where(cmp_op(value, 0), tile, np.float32(on_false_value)))


@call
def reciprocal(dst, data):
    dst.put(1 / data.tile())


@call
def memset(dst, value, engine):
    dst.put(np.full(dst.index.shape, value, np.float32))


def main(module, directory):
    nki = types.ModuleType("nki")
    nki.jit, nki.isa, nki.language = lambda kernel: kernel, nisa, nl
    sys.modules.update({"nki": nki, "nki.isa": nisa, "nki.language": nl})
    spec = importlib.util.spec_from_file_location("printed", module)
    printed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(printed)
    directory = pathlib.Path(directory)
    inputs = json.loads((directory / "inputs.json").read_text())
    tensors = {
        name: np.fromfile(directory / f"{name}.in", np.float32).reshape(shape) for name, shape in inputs["tensors"].items()
    }
    types_of = {kernel: [getattr(nl, dtype) for dtype in dtypes] for kernel, dtypes in inputs["dtypes"].items()}

    def run(kernel, *arguments):
        dtypes = types_of[kernel.__name__]
        bound = [Tensor(np.shape(x), dtype, "shared_hbm", x) for x, dtype in zip(arguments, dtypes, strict=True)]
        with np.errstate(all="ignore"):
            outputs = kernel(*bound)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return tuple(output.storage.reshape(output.shape) for output in outputs)

    for name, result in printed.launch(tensors, run).items():
        np.asarray(result, np.float32).tofile(directory / f"{name}.out")
    # The module's own comparison, with float64 and on numbers of its own.
    printed.check(run)


if __name__ == "__main__":
    main(*sys.argv[1:])
