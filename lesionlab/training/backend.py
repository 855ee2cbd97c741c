"""Start Keras the same way in every stage: quiet, with a fixed number of threads, on record."""

import contextlib
import os
import platform
from collections.abc import Iterator


def start_keras(threads: int) -> None:
    """Set what must be set before TensorFlow's first operation.

    Results change with the number of threads, with oneDNN and with XLA: threads are set, oneDNN is left on, XLA is not
    used, and `environment` records all three.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    with _without_greetings():
        import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        try:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(1)
        except RuntimeError as error:  # the process, a test for example, has used TensorFlow already
            if tf.config.threading.get_intra_op_parallelism_threads() != threads:
                raise RuntimeError("start_keras must come before TensorFlow's first operation") from error


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

    record = {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
        "numpy": np.__version__,
        "threads": threads,
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1"),
        "xla": "off",
        "dtype": keras.config.dtype_policy().name,
    }
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        record["tensorflow"] = tf.__version__
    return record
