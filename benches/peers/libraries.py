"""The ways to write the cases that are compared: one class each.

Every class does what its library's users write, in the fastest form that we know; where there are several, each is
there. Where norms, clip and mean need different calls, one name stands for all of them. A mean is given what was decided
before: the share that each row has in it.
"""
import contextlib
import ctypes
import os
import platform
import time

import numpy as np

from cases import MAX_NORM


class Missing(Exception):
    """Why a library cannot run here."""


class Peer:
    """A library, and how it does the stages on host memory that it shares with the batch."""

    library = ""
    version = ""
    backend = "cpu"
    method = "host"
    device = ""
    driver = None
    stages = ("norms", "clip", "mean")

    def load(self, batch):
        """Takes the data of a case; nothing here is timed."""
        self.batch = batch

    def unload(self):
        """Lets go of the data, so that the next library has the memory."""
        for name in ("batch", "original", "work", "shares", "rows", "parameters"):
            self.__dict__.pop(name, None)

    def norms(self):
        raise NotImplementedError

    def clip(self):
        raise NotImplementedError

    def mean(self):
        raise NotImplementedError

    def wait(self, result):
        """Returns when the result is there."""

    def timed(self):
        """Runs the case: the result, seconds from the call to its end, and seconds by the device's clock or None."""
        work = getattr(self, self.batch.case.stage)
        start = time.perf_counter()
        result = work()
        self.wait(result)
        return result, time.perf_counter() - start, None

    def values(self, result):
        """The result as NumPy sees it; by default a clip happens in place."""
        return self.batch.work if self.batch.case.stage == "clip" else np.asarray(result)

    def restore(self):
        self.batch.restore()


def processor():
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def on_threads(threads):
    """The device of a record, as byzclip writes it."""
    return f"{processor()} x {threads} thread{'' if threads == 1 else 's'}"


def every_thread():
    return len(os.sched_getaffinity(0))


class Byzclip(Peer):
    """Ours, by way of benches/peers/rust/src/c.rs: what peers take turns with."""

    library = "byzclip"
    device = on_threads(every_thread())

    def __init__(self, path):
        self.library_c = ctypes.CDLL(path)
        rows = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
        self.library_c.byzclip_norms.argtypes = [*rows, ctypes.c_void_p]
        self.library_c.byzclip_clip.argtypes = [*rows, ctypes.c_float]
        self.library_c.byzclip_decide.argtypes = [*rows, ctypes.c_float, ctypes.c_void_p]
        self.library_c.byzclip_decide.restype = ctypes.c_void_p
        self.library_c.byzclip_mean.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self.library_c.byzclip_mean.restype = ctypes.POINTER(ctypes.c_float)
        for function in (self.library_c.byzclip_discard, self.library_c.byzclip_release):
            function.argtypes, function.restype = [ctypes.c_void_p], None
        self.decided = None

    def load(self, batch):
        super().load(batch)
        if batch.case.stage == "mean":
            self.decided = self._found(self.library_c.byzclip_decide(*self._rows(), MAX_NORM, batch.weights.ctypes.data))

    def unload(self):
        super().unload()
        if self.decided:
            self.library_c.byzclip_release(self.decided)
        self.decided = None

    def norms(self):
        norms = np.empty(self.batch.shape.clients, np.float32)
        self._call(self.library_c.byzclip_norms, norms.ctypes.data)
        return norms

    def clip(self):
        self._call(self.library_c.byzclip_clip, MAX_NORM)

    def mean(self):
        mean = self._found(self.library_c.byzclip_mean(self.decided, self.batch.work.ctypes.data))
        # Where byzclip has it, until restore().
        return np.ctypeslib.as_array(mean, (self.batch.shape.params,))

    def restore(self):
        super().restore()
        if self.decided:
            self.library_c.byzclip_discard(self.decided)

    def _rows(self):
        return self.batch.work.ctypes.data, self.batch.shape.clients, self.batch.shape.params

    def _call(self, function, last):
        if function(*self._rows(), last) != 0:
            raise RuntimeError("byzclip failed; see stderr")

    def _found(self, pointer):
        if not pointer:
            raise RuntimeError("byzclip failed; see stderr")
        return pointer


# NumPy: one thread, but for what it leaves to a BLAS.


class NumpyNorm(Peer):
    """The obvious code: norms along an axis, and a product with a column of factors."""

    library = "numpy linalg.norm + multiply"
    version = np.__version__
    device = on_threads(1)

    def norms(self):
        return np.linalg.norm(self.batch.work, axis=1)

    def clip(self):
        factors = np.minimum(np.float32(1), np.float32(MAX_NORM) / self.norms())
        np.multiply(self.batch.work, factors[:, None], out=self.batch.work)

    def mean(self):
        return (self.batch.work * self.batch.shares[:, None]).sum(axis=0)


class NumpyVecdot(NumpyNorm):
    """No temporary of the batch's size, and only rows above the bound are written."""

    library = "numpy vecdot + rows"
    # Products are the BLAS's, which takes more threads for long rows.
    device = on_threads(every_thread())

    def norms(self):
        return np.sqrt(np.vecdot(self.batch.work, self.batch.work))

    def clip(self):
        norms = self.norms()
        for row in np.flatnonzero(norms > np.float32(MAX_NORM)):
            self.batch.work[row] *= np.float32(MAX_NORM) / norms[row]

    def mean(self):
        return self.batch.shares @ self.batch.work


def numpy_peers():
    return [NumpyNorm(), NumpyVecdot()]


# PyTorch.


class Torch(Peer):
    """On the CPU a tensor over the batch; on CUDA a copy, and events beside the clock of the host."""

    def __init__(self, torch, cuda):
        self.torch, self.cuda = torch, cuda
        self.version = torch.__version__
        if cuda:
            self.backend, self.method = "cuda", "device"
            self.device = torch.cuda.get_device_name()
            self.driver = f"CUDA {torch.version.cuda}"
        else:
            self.device = on_threads(torch.get_num_threads())

    def load(self, batch):
        super().load(batch)
        if self.cuda:
            self.original = self.torch.from_numpy(batch.original).cuda()
            self.work = self.original.clone()
        else:
            self.work = self.torch.from_numpy(batch.work)
        if batch.case.stage == "mean":
            self.shares = self.torch.from_numpy(batch.shares).to(self.work.device)

    def wait(self, result):
        if self.cuda:
            self.torch.cuda.synchronize()

    def timed(self):
        if not self.cuda:
            return super().timed()
        begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        work = getattr(self, self.batch.case.stage)
        self.torch.cuda.synchronize()
        start = time.perf_counter()
        begin.record()
        result = work()
        end.record()
        self.torch.cuda.synchronize()
        return result, time.perf_counter() - start, begin.elapsed_time(end) / 1e3

    def values(self, result):
        if self.batch.case.stage != "clip":
            return result.cpu().numpy()
        return self.work.cpu().numpy() if self.cuda else self.batch.work

    def restore(self):
        if self.cuda:
            self.work.copy_(self.original)
            self.torch.cuda.synchronize()
        else:
            self.batch.restore()


class TorchVectorNorm(Torch):
    """Norms along a dimension, and a product with a column of clamped factors: all rows are written."""

    library = "torch vector_norm + mul_"

    def norms(self):
        return self.torch.linalg.vector_norm(self.work, dim=1)

    def clip(self):
        self.work.mul_((MAX_NORM / self.norms()).clamp_(max=1.0).unsqueeze_(1))

    def mean(self):
        return self.shares @ self.work


class TorchRenorm(Torch):
    """The one call that clips rows; its factor is bound / (norm + 1e-7)."""

    library = "torch renorm_"
    stages = ("clip",)

    def clip(self):
        self.work.renorm_(2, 0, MAX_NORM)


class TorchRows(Torch):
    """A list of rows, as a server has it that keeps one tensor a client."""

    def load(self, batch):
        super().load(batch)
        self.rows = list(self.work.unbind(0))


class TorchForeach(TorchRows):
    """One call for all rows, twice; the factors come to the host in between."""

    library = "torch _foreach_norm + _foreach_mul_"
    stages = ("norms", "clip")

    def norms(self):
        return self.torch.stack(self.torch._foreach_norm(self.rows))

    def clip(self):
        factors = (MAX_NORM / self.norms()).clamp_(max=1.0)
        self.torch._foreach_mul_(self.rows, factors.tolist())


class TorchClipGradNorm(TorchRows):
    """A call for each row; its factor is bound / (norm + 1e-6)."""

    library = "torch clip_grad_norm_ per row"
    stages = ("clip",)

    def load(self, batch):
        super().load(batch)
        self.parameters = []
        for row in self.rows:
            parameter = self.torch.nn.Parameter(row)
            parameter.grad = row
            self.parameters.append(parameter)

    def clip(self):
        clip_grad_norm = self.torch.nn.utils.clip_grad_norm_
        for parameter in self.parameters:
            clip_grad_norm(parameter, MAX_NORM)


def torch_peers(cuda):
    try:
        import torch
    except (ImportError, OSError) as error:
        raise Missing(f"{error}; pip install torch") from error
    if cuda and not torch.cuda.is_available():
        raise Missing("torch finds no CUDA device")
    classes = (TorchVectorNorm, TorchRenorm, TorchForeach, TorchClipGradNorm)
    return [peer(torch, cuda) for peer in classes]


# JAX: results are new arrays, unless the argument is given away.


class Jax(Peer):
    """Compiled before it is timed, by the run that is verified."""

    library = "jax jit"
    donate = False

    def __init__(self, jax, device):
        self.jax, self.jnp, self.place = jax, jax.numpy, device
        self.version = jax.__version__
        if device.platform == "cpu":
            self.device = on_threads(every_thread())
        else:
            self.backend, self.method, self.device = "cuda", "device", device.device_kind
        self.compiled = {
            "norms": jax.jit(self.norms_of),
            "clip": jax.jit(self.clip_of, donate_argnums=(0,) if self.donate else ()),
            "mean": jax.jit(self.mean_of),
        }

    def norms_of(self, rows):
        return self.jnp.linalg.norm(rows, axis=1)

    def clip_of(self, rows):
        return rows * self.jnp.minimum(1.0, MAX_NORM / self.norms_of(rows))[:, None]

    def mean_of(self, rows, shares):
        # Else a GPU may round what it multiplies to 11 bits.
        return self.jnp.matmul(shares, rows, precision="highest")

    def load(self, batch):
        super().load(batch)
        self.original = self.jax.device_put(batch.original, self.place)
        if batch.case.stage == "mean":
            self.shares = self.jax.device_put(batch.shares, self.place)
        self.restore()

    def norms(self):
        return self.compiled["norms"](self.work)

    def clip(self):
        return self.compiled["clip"](self.work)

    def mean(self):
        return self.compiled["mean"](self.work, self.shares)

    def wait(self, result):
        result.block_until_ready()

    def values(self, result):
        if self.donate and self.batch.case.stage == "clip" and not self.work.is_deleted():
            raise RuntimeError("got a copy of an argument that was given away; expected a clip in place")
        return np.asarray(result)

    def restore(self):
        # A function that was given its argument needs another one.
        self.work = self.jnp.copy(self.original) if self.donate else self.original
        self.work.block_until_ready()


class JaxDonated(Jax):
    """The result takes the argument's memory."""

    library = "jax jit donated"
    stages = ("clip",)
    donate = True


class Optax(Jax):
    """The usual transformation, over rows by vmap; divides by the norm, then multiplies."""

    library = "optax clip_by_global_norm vmap"
    stages = ("clip",)
    donate = True

    def __init__(self, optax, jax, device):
        self.optax = optax
        super().__init__(jax, device)
        self.version = optax.__version__

    def clip_of(self, rows):
        transform = self.optax.clip_by_global_norm(MAX_NORM)
        return self.jax.vmap(lambda row: transform.update(row, transform.init(row))[0])(rows)


def jax_device(cuda):
    # It would take most of a GPU's memory at once, from the libraries beside it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        import jax
    except (ImportError, OSError) as error:
        raise Missing(f"{error}; pip install jax") from error
    try:
        return jax, jax.devices("cuda" if cuda else "cpu")[0]
    except RuntimeError as error:
        raise Missing(f"jax finds no {'CUDA device' if cuda else 'CPU'}: {str(error).splitlines()[0]}") from error


def jax_peers(cuda):
    jax, device = jax_device(cuda)
    return [Jax(jax, device), JaxDonated(jax, device)]


def optax_peers(cuda):
    jax, device = jax_device(cuda)
    try:
        import optax
    except (ImportError, OSError) as error:
        raise Missing(f"{error}; pip install optax") from error
    return [Optax(optax, jax, device)]


# CuPy: on CUDA only.


class CupyNorm(Peer):
    """The obvious code: norms along an axis, and a product with a column of factors."""

    library = "cupy linalg.norm + multiply"
    backend, method = "cuda", "device"

    def __init__(self, cupy):
        self.cupy = cupy
        self.version = cupy.__version__
        self.device = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
        self.driver = f"CUDA {cupy.cuda.runtime.runtimeGetVersion()}"

    def load(self, batch):
        super().load(batch)
        self.original = self.cupy.asarray(batch.original)
        self.work = self.original.copy()
        if batch.case.stage == "mean":
            self.shares = self.cupy.asarray(batch.shares)

    def norms(self):
        return self.cupy.linalg.norm(self.work, axis=1)

    def clip(self):
        self.work *= self.cupy.minimum(np.float32(1), np.float32(MAX_NORM) / self.norms())[:, None]

    def mean(self):
        return self.shares @ self.work

    def timed(self):
        begin, end = (self.cupy.cuda.Event() for _ in range(2))
        work = getattr(self, self.batch.case.stage)
        self.cupy.cuda.Device().synchronize()
        start = time.perf_counter()
        begin.record()
        result = work()
        end.record()
        end.synchronize()
        wall = time.perf_counter() - start
        return result, wall, self.cupy.cuda.get_elapsed_time(begin, end) / 1e3

    def values(self, result):
        return self.cupy.asnumpy(self.work if self.batch.case.stage == "clip" else result)

    def restore(self):
        self.cupy.copyto(self.work, self.original)
        self.cupy.cuda.Device().synchronize()


class CupyReduction(CupyNorm):
    """The norm as one kernel: no temporary of the batch's size."""

    library = "cupy ReductionKernel + multiply"
    stages = ("norms", "clip")

    def __init__(self, cupy):
        super().__init__(cupy)
        self.reduction = cupy.ReductionKernel("T x", "T y", "x * x", "a + b", "y = sqrt(a)", "0", "row_norm")

    def norms(self):
        return self.reduction(self.work, axis=1)


def cupy_peers():
    try:
        import cupy
    except (ImportError, OSError) as error:
        raise Missing(f"{error}; pip install cupy-cuda13x, or the one for your CUDA") from error
    try:
        if cupy.cuda.runtime.getDeviceCount() == 0:
            raise Missing("cupy finds no CUDA device")
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise Missing(f"cupy finds no CUDA device: {error}") from error
    return [CupyNorm(cupy), CupyReduction(cupy)]


# What is tried, in the order of the tables.
FAMILIES = {
    "numpy": numpy_peers,
    "torch cpu": lambda: torch_peers(cuda=False),
    "torch cuda": lambda: torch_peers(cuda=True),
    "jax cpu": lambda: jax_peers(cuda=False),
    "jax cuda": lambda: jax_peers(cuda=True),
    "optax cpu": lambda: optax_peers(cuda=False),
    "optax cuda": lambda: optax_peers(cuda=True),
    "cupy cuda": cupy_peers,
}
