"""Start Keras the same way in every stage: quiet, with a fixed number of threads, on record."""

import contextlib
import os
import platform
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # as Linux names them, of x86 and (the last) of ARM


def choose_kernels() -> None:
    """Have TensorFlow use oneDNN's convolutions. It reads this once, when it is imported.

    By itself it takes them only on some processors. Its own give a crop other last bits at another place in a batch
    where the processor has AVX2 but not AVX-512, so that what is cached would not be what is computed anew.
    Raises RuntimeError where TensorFlow has chosen already.
    """
    if "tensorflow" in sys.modules and "TF_ENABLE_ONEDNN_OPTS" not in os.environ:
        raise RuntimeError("start_keras or choose_kernels must come before TensorFlow is imported")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def start_keras(threads: int, dtype: str = "float32") -> None:
    """Set what must be set before TensorFlow's first operation.

    Results change with the number of threads, with oneDNN, with XLA and with the processor's vector instructions:
    threads are set, oneDNN is used, XLA is not, and `environment` records all four. `threads` is how many work on one
    operation, which decides how sums are split. As many operations run at once, which changes no result: the two
    gradients of a layer do not wait for each other.
    dtype: float32, mixed_bfloat16 (bfloat16 between layers, float32 weights) or auto: the latter where the hardware
    has it. It holds for every network built from here on.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    choose_kernels()
    with _without_greetings():
        import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        try:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(threads)
        except RuntimeError as error:  # the process, a test for example, has used TensorFlow already
            if tf.config.threading.get_intra_op_parallelism_threads() != threads:
                raise RuntimeError("start_keras must come before TensorFlow's first operation") from error
    elif keras.backend.backend() == "torch":
        import torch

        torch.set_num_threads(threads)
    if dtype == "auto":
        dtype = "mixed_bfloat16" if bfloat16_in_hardware() else "float32"
    keras.config.set_dtype_policy(dtype)


def bfloat16_in_hardware() -> bool:
    """Whether the device that Keras computes on multiplies bfloat16 natively.

    GPU: as the backend says (NVIDIA: compute capability 8.0 or above). Processor: x86 with AVX512_BF16 or AMX_BF16, ARM
    with BF16.
    """
    import keras

    if device() == "CPU":
        return bfloat16_in_processor()
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        gpu = tf.config.list_physical_devices("GPU")[0]
        return tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) >= (8, 0)
    if backend == "torch":
        import torch

        return torch.cuda.is_bf16_supported(including_emulation=False)
    return True


def device() -> str:
    """What Keras computes on: GPU (or another accelerator of JAX) or CPU."""
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        found = bool(tf.config.list_physical_devices("GPU"))
    elif backend == "torch":
        import torch

        found = torch.cuda.is_available()
    else:
        import jax

        found = jax.default_backend() != "cpu"
    return "GPU" if found else "CPU"


def bfloat16_in_processor() -> bool:
    """Whether the processor multiplies bfloat16, whatever Keras computes on."""
    return bool(BFLOAT16 & _processor_flags())


def vector_instructions() -> str:
    """What the kernels of convolutions are made of here, which decides how sums round: AVX512, AVX2 or neither."""
    flags = _processor_flags()
    kind = "AVX512" if "avx512f" in flags else "AVX2" if "avx2" in flags else platform.machine()
    return f"{kind} with bfloat16" if bfloat16_in_processor() else kind


def _processor_flags() -> set[str]:
    """What /proc/cpuinfo says that the first processor can do; nothing where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith(("flags", "Features"))), set())


@contextlib.contextmanager
def _without_greetings() -> Iterator[None]:
    """Hide what TensorFlow prints while it is loaded, before its log level counts; errors still raise."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def environment(threads: int) -> dict[str, str | int]:
    """What a model's bytes depend on beside parameters and data."""
    import keras
    import numpy as np

    backend = keras.backend.backend()
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "keras": keras.__version__,
        "backend": backend,
        "numpy": np.__version__,
        "threads": "chosen by JAX" if backend == "jax" else threads,
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "chosen by TensorFlow"),
        "xla": "off",
        "instructions": vector_instructions(),
        "dtype": keras.config.dtype_policy().name,
        backend: import_module(backend).__version__,
        "device": device(),
    }
