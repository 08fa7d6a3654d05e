"""What a compiled program does to memory, read from its HLO: kernels, bytes and collectives."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_BITS = {"pred": 8, "u4": 4, "s4": 4, "bf16": 16, "token": 0}
_COLLECTIVES = (
    "all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter",
)  # fmt: skip
# These move nothing: they name, or wait for, what others do.
_FREE = (
    "after-all", "async-update", "bitcast", "constant", "get-tuple-element", "opt-barrier",
    "parameter", "partition-id", "replica-id", "tuple",
)  # fmt: skip


@dataclasses.dataclass
class Traffic:
    """What one run of a program moves.

    hbm: bytes read from and written to the memory of the device. Every kernel is taken to read each of
      its operands once and to write each result once; what stays in on-chip memory is left out.
    kernels: programs that are started, one after the other, copies among them.
    copies: those of them that only copy.
    scalars: those of them whose results are single numbers.
    collectives: of each kind how many there are, and the bytes of their results on one device; of a
      reduce-scatter those of what it adds up.
    """

    hbm: float = 0.0
    kernels: int = 0
    copies: int = 0
    scalars: int = 0
    collectives: dict[str, tuple[int, float]] = dataclasses.field(default_factory=dict)


class _Array(NamedTuple):
    """One array of a result: its elements, its bytes, and whether it lies in the device's memory."""

    size: int
    nbytes: float
    in_hbm: bool


class _Instruction(NamedTuple):
    name: str
    shape: str
    operation: str
    operands: list[str]
    attributes: str


def traffic(text: str) -> Traffic:
    """What the program with this HLO (`compiled.as_text()`) moves in one run."""
    computations, entry = _computations(text)
    found = Traffic()
    _count_kernels(computations, entry, 1, found)
    collectives: collections.defaultdict[str, list[float]] = collections.defaultdict(lambda: [0, 0])
    every = _collectives(computations, entry, 1)
    # Where others run meanwhile, its start, what it runs beside and its end each name it.
    of_channels = {channel: each for channel, *each in reversed([*every])}
    for kind, nbytes, times in of_channels.values():
        collectives[kind][0] += times
        collectives[kind][1] += times * nbytes
    found.collectives = {kind: (int(n), size) for kind, (n, size) in collectives.items()}
    return found


def _count_kernels(
    computations: dict[str, list[_Instruction]], name: str, times: int, found: Traffic
) -> None:
    shapes = {each.name: each.shape for each in computations[name]}
    for each in computations[name]:
        if each.operation in _FREE or each.operation.endswith("-done"):
            continue
        if each.operation == "while":
            _count_kernels(computations, _called(each), times * _trips(each), found)
            continue
        if each.operation == "call":
            _count_kernels(computations, _called(each), times, found)
            continue
        if each.operation == "custom-call" and "ConcatBitcast" in each.attributes:
            continue
        results = _arrays(each.shape)
        found.kernels += times
        if each.operation.endswith("slice-start"):  # Its operand is far larger than what is read.
            result = results[-2]
            found.hbm += times * result.nbytes * (1 + result.in_hbm)
            continue
        if each.operation.startswith("copy"):
            found.copies += times
            results = results[:1]
        elif each.operation.endswith("-start"):
            results = results[-1:]
        found.scalars += times * all(result.size <= 1 for result in results)
        operands = [
            x for name in set(each.operands) if name in shapes for x in _arrays(shapes[name])
        ]
        found.hbm += times * sum(x.nbytes for x in (*results, *operands) if x.in_hbm)


def _collectives(
    computations: dict[str, list[_Instruction]], name: str, times: int
) -> Iterator[tuple[Any, str, float, int]]:
    """The channel of each collective, its kind, the bytes of its result and how often it runs."""
    shapes = {each.name: each.shape for each in computations.get(name, ())}
    for each in computations.get(name, ()):
        kind = each.operation.removesuffix("-start")
        if kind in _COLLECTIVES:
            results = _arrays(each.shape)
            if each.operation == "all-gather-start":  # Its operands are among its results.
                results = results[len(results) // 2 :]
            if kind == "reduce-scatter":
                results = [x for operand in each.operands for x in _arrays(shapes.get(operand, ""))]
            is_scatter = "all-reduce-scatter" in name
            nbytes = sum(result.nbytes for result in results)
            channel = re.search(r"channel_id=(\d+)", each.attributes)
            of_one = channel[1] if channel else object()
            yield of_one, "reduce-scatter" if is_scatter else kind, nbytes, times
        elif each.operation == "while":
            yield from _collectives(computations, _called(each), times * _trips(each))
        elif each.operation in ("fusion", "call", "async-start"):
            yield from _collectives(computations, _called(each), times)


def _called(instruction: _Instruction) -> str:
    found = re.search(
        r"(?:body|to_apply|calls|called_computation)=%?([\w.\-]+)", instruction.attributes
    )
    return found[1] if found else ""


def _trips(loop: _Instruction) -> int:
    found = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
    return int(found[1]) if found else 1


def _arrays(shape: str) -> list[_Array]:
    """The arrays of a shape, which may be a tuple."""
    found = []
    for dtype, sizes, layout in re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", shape):
        bits = _BITS.get(dtype) or int((re.search(r"\d+", dtype) or "0")[0])
        size = math.prod(int(each) for each in sizes.split(",") if each)
        # S(1) and on: the memories beside that of the device.
        found.append(_Array(size, size * bits / 8, not re.search(r"S\([1-9]\)", layout)))
    return found


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """The instructions of each computation by its name, and the name of the first one to run."""
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*->.*\{\s*$", line):
            current = computations[head[2]] = []
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (found := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)", line)):
            shape, rest = _split_shape(found[2])
            if operation := re.match(r"([\w\-]+)\(", rest):
                end = _closing(rest, operation.end() - 1)
                operands = re.findall(r"%([\w.\-]+)", rest[operation.end() : end])
                attributes = rest[end + 1 :]
                current.append(_Instruction(found[1], shape, operation[1], operands, attributes))
    return computations, entry


def _split_shape(text: str) -> tuple[str, str]:
    """The shape that an instruction begins with, and the rest of it."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    return text[:end], text[end:].lstrip()


def _closing(text: str, start: int) -> int:
    """The place of the parenthesis that closes the one at start."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return len(text)
