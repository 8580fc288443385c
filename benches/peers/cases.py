"""Shapes, cases, data, expected results and records: what src/bench has, for libraries that Python calls.

The data is that of `src/bench/cases.rs`, bit for bit (`test_cases.py` holds it), so figures of one case are figures of
the same work.
"""
import dataclasses
import statistics

import numpy as np

FORMAT = "byzclip-bench-1"

# The bound of every case, and how much larger the rows are that are clipped: cases.rs.
MAX_NORM = 2.0
LARGE = np.float32(50.0)

# The share of rows that are clipped in the mean: mod.rs.
CLIPPED_IN_MEAN = 0.2

# Elements that are filled or checked at a time; they stay in a core's cache.
PART = 1 << 17

# Runs that a median is taken of at least.
RUNS = 9


@dataclasses.dataclass(frozen=True)
class Shape:
    """Clients and parameters of a dense batch."""

    clients: int
    params: int

    @staticmethod
    def parse(text):
        clients, cross, params = text.partition("x")
        if not (cross and clients.isdecimal() and params.isdecimal() and int(clients) and int(params)):
            raise ValueError(f"got {text!r}; expected clients x params such as 64x1000000, both at least 1")
        return Shape(int(clients), int(params))

    def __str__(self):
        return f"{self.clients}x{self.params}"


SHAPES = [Shape.parse(text) for text in ("64x100000", "64x1000000", "1024x10000", "10x11173962", "100000x100")]


@dataclasses.dataclass(frozen=True)
class Case:
    """Norms, or a clip or mean of which this share of rows is above the bound."""

    stage: str
    clipped: float

    def large(self, shape):
        """Which rows are above the bound: that share, spread evenly."""
        below = np.floor(np.arange(shape.clients + 1) * self.clipped + 1e-9)
        return np.diff(below) > 0

    def written(self, shape):
        """The rows that a clip has to write."""
        return np.flatnonzero(self.large(shape)) if self.stage == "clip" else np.empty(0, np.int64)

    def bytes(self, shape):
        """What one pass has to move: a row that is written is read and written once, a mean is written."""
        return 4 * shape.params * (shape.clients + len(self.written(shape)) + (self.stage == "mean"))

    def told_share(self):
        """The share of rows above the bound, where a record tells it."""
        return None if self.stage == "norms" else self.clipped

    def __str__(self):
        return "norms" if self.stage == "norms" else f"{self.stage} {self.clipped * 100:g} %"


def cases(shares):
    return [Case("norms", 0.0), *(Case("clip", share) for share in shares), Case("mean", CLIPPED_IN_MEAN)]


def weights(clients):
    """What rows weigh in a mean: 100 to 599 samples each."""
    return (100 + np.arange(clients) % 500).astype(np.float32)


def error(terms):
    """How far a right result may be from float64, relatively: a sum of n terms in float32 errs by about sqrt(n) of
    2^-24 where roundings are independent. Four times that and eight roundings more."""
    return (4 * terms**0.5 + 8) * 2.0**-24


def signed_unit(first, count):
    """`count` numbers in [-1, 1) from the finalizer of SplitMix64, from this index on."""
    z = np.arange(first, first + count, dtype=np.uint64) * np.uint64(0x9E37_79B9_7F4A_7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    z = (z ^ (z >> np.uint64(31))) >> np.uint64(40)
    return z.astype(np.float32) / np.float32(1 << 23) - np.float32(1)


class Batch:
    """The data of a case, what runs work on, and what has to come out, in float64."""

    def __init__(self, shape):
        self.shape = shape
        self.original = np.empty((shape.clients, shape.params), np.float32)
        self.work = np.empty_like(self.original)

    def fill(self, case):
        self.case = case
        self.written = case.written(self.shape)
        params = self.shape.params
        size = np.full(self.shape.clients, np.sqrt(np.float32(3) / np.float32(params)), np.float32)
        size[case.large(self.shape)] *= LARGE
        flat = self.original.reshape(-1)
        for first in range(0, flat.size, PART):
            values = signed_unit(first, min(PART, flat.size - first))
            rows = np.arange(first, first + values.size) // params
            np.multiply(values, size[rows], out=flat[first : first + values.size])
        np.copyto(self.work, self.original)
        squares = np.zeros(self.shape.clients)
        for rows, columns in self._parts():
            part = self.original[rows, columns].astype(np.float64)
            squares[rows] += np.einsum("ij,ij->i", part, part)
        self.norms = np.sqrt(squares)
        if case.stage == "mean":
            self._fill_mean()

    def _fill_mean(self):
        """What is decided before a mean: weights, and each row's share, its weight times its factor by the sum of weights. And
        what has to come out."""
        self.weights = weights(self.shape.clients)
        samples = self.weights.astype(np.float64)
        shares = samples * np.minimum(1.0, MAX_NORM / self.norms) / samples.sum()
        self.shares = shares.astype(np.float32)
        self.mean = np.zeros(self.shape.params)
        for rows, columns in self._parts():
            self.mean[columns] += shares[rows] @ self.original[rows, columns].astype(np.float64)
        # By the size of a typical coordinate, because the terms of one may cancel; four times, because those of another may not.
        typical = np.sqrt(np.square(shares * self.norms).sum() / self.shape.params)
        self.mean_error = 4 * typical * error(self.shape.clients)

    def restore(self):
        """What a clip has written, from the original."""
        if len(self.written) == self.shape.clients:
            np.copyto(self.work, self.original)
        elif len(self.written):
            self.work[self.written] = self.original[self.written]

    def error(self):
        """How far right norms and clipped values may be off, relatively."""
        return error(self.shape.params)

    def check(self, got):
        """Says what is wrong with a result, or nothing."""
        return {"norms": self._check_norms, "clip": self._check_values, "mean": self._check_mean}[self.case.stage](got)

    def _check_norms(self, got):
        if got.shape != self.norms.shape:
            return f"got norms of shape {got.shape}; expected {self.norms.shape}"
        # Written so that NaN is found.
        close = np.abs(got.astype(np.float64) - self.norms) <= self.error() * self.norms
        if close.all():
            return None
        row = int(np.argmin(close))
        return f"row {row}: got the norm {got[row]!r}; expected {self.norms[row]!r} within {self.error():.1e}"

    def _check_values(self, got):
        if got.shape != self.original.shape or got.dtype != np.float32:
            return f"got {got.dtype} values of shape {got.shape}; expected float32 of {self.original.shape}"
        factors = np.minimum(1.0, MAX_NORM / self.norms)
        for rows, columns in self._parts():
            original, part = self.original[rows, columns], got[rows, columns]
            factor = factors[rows, None]
            expected = original.astype(np.float64) * factor
            # A row that is not clipped is to be what it was, in every bit.
            close = np.where(
                factor < 1,
                np.abs(part - expected) <= self.error() * np.abs(expected),
                part.view(np.uint32) == original.view(np.uint32),
            )
            if not close.all():
                row, column = np.unravel_index(int(np.argmin(close)), close.shape)
                place = f"row {rows.start + row}, element {columns.start + column}"
                return (
                    f"{place}: got {part[row, column]!r}; expected {expected[row, column]!r} within "
                    f"{self.error():.1e}, and the same bits where the row is not clipped"
                )
        return None

    def _check_mean(self, got):
        if got.shape != self.mean.shape or got.dtype != np.float32:
            return f"got a mean of {got.dtype} of shape {got.shape}; expected float32 of {self.mean.shape}"
        close = np.abs(got - self.mean) <= self.mean_error
        if close.all():
            return None
        i = int(np.argmin(close))
        return f"element {i}: got the mean {got[i]!r}; expected {self.mean[i]!r} within {self.mean_error:.1e}"

    def spoiled(self, got):
        """The result with one value off by four times the tolerance."""
        got = got.copy()
        if self.case.stage == "mean":
            got[0] += np.float32(4 * self.mean_error)
            return got
        # In a clipped row, where there is one: only there a tolerance holds.
        first = (int(self.written[0]) if len(self.written) else 0,) + (0,) * (got.ndim - 1)
        got[first] *= np.float32(1 + 4 * self.error())
        return got

    def _parts(self):
        """Slices of rows and columns of about PART elements."""
        columns = min(self.shape.params, PART)
        rows = max(1, PART // columns)
        for row in range(0, self.shape.clients, rows):
            for column in range(0, self.shape.params, columns):
                yield (
                    slice(row, min(row + rows, self.shape.clients)),
                    slice(column, min(column + columns, self.shape.params)),
                )


def record(peer, batch, wall, device, ratios=()):
    """A line of the schema byzclip-bench-1; `wall` and `device` are seconds of runs, `ratios` those of turns, theirs by
    ours."""
    case, shape = batch.case, batch.shape
    bytes_ = case.bytes(shape)
    median = statistics.median(wall) if wall else None
    return {
        "format": FORMAT,
        "library": peer.library,
        "version": peer.version,
        "method": peer.method,
        "backend": peer.backend,
        "device": peer.device,
        "driver": peer.driver,
        "clients": shape.clients,
        "params": shape.params,
        "dtype": "f32",
        "case": case.stage,
        "clipped": case.told_share(),
        "scope": 1.0,
        "runs": len(wall),
        "median_s": median,
        "min_s": min(wall, default=None),
        "max_s": max(wall, default=None),
        "bytes": bytes_,
        "gb_per_s": bytes_ / median / 1e9 if wall else None,
        "share": None,
        "by_ours": statistics.median(ratios) if ratios else None,
        "device_median_s": statistics.median(device) if device else None,
        "submit_median_s": None,
        "verified": True,
    }
