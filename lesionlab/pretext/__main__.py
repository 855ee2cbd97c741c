"""pretext: make the bundled weights, from generated pictures alone.

reads   nothing
writes  OUT.weights.h5  mobilenet_0.25 without its top
        OUT.json        the command, its settings, the file's SHA-256 and figures on pictures not trained on

With the defaults about 2 GB of memory, and 23 minutes on two busy cores.
"""

import shlex
import time
from pathlib import Path
from typing import Annotated

from typer import Option

from lesionlab.errors import InputError
from lesionlab.files import file_digest, whole_file, write_json
from lesionlab.models.backbones import find_backbone
from lesionlab.stage import run
from lesionlab.training.backend import environment, start_keras

BACKBONE = "mobilenet_0.25"
SUFFIX = ".weights.h5"
HELD_OUT = 2048  # pictures that are measured and not trained on, at most


def main(
    out: Annotated[Path, Option(help=f"weight file to write, NAME{SUFFIX}")],
    pictures: Annotated[int, Option(min=1, help="number of generated pictures")] = 61440,
    epochs: Annotated[int, Option(min=1, help="times that each is seen")] = 12,
    batch_size: Annotated[int, Option(min=1, help="pictures a step")] = 64,
    learning_rate: Annotated[float, Option(help="at its height")] = 8e-3,
    seed: Annotated[int, Option(help="of everything that is drawn")] = 42,
    threads: Annotated[int, Option(min=1, help="threads of TensorFlow, processes that draw")] = 2,
) -> None:
    """Draw the pictures, train, write the weights and their record. Raises InputError for a wrong option."""
    if not out.name.endswith(SUFFIX):
        raise InputError(f"--out {out}: must end in {SUFFIX}, which Keras asks for")
    if batch_size > pictures:
        raise InputError(f"--batch-size {batch_size}: there are only {pictures} pictures")
    start = time.monotonic()
    start_keras(threads)  # before anything that imports Keras
    import keras

    from lesionlab.pretext.training import SIZE, fit, make_pictures, measure

    # TensorFlow adds in another order where layers have other names, as they have in a process that built some before.
    keras.utils.clear_session()
    backbone = find_backbone(BACKBONE)
    training = make_pictures(pictures, seed, "train", threads)
    network = backbone.build(SIZE)
    model = fit(network, backbone, training, epochs, batch_size, learning_rate, seed)
    figures = measure(model, backbone, make_pictures(min(HELD_OUT, pictures), seed, "held out", 1))

    options = {
        "pictures": pictures,
        "epochs": epochs,
        "batch-size": batch_size,
        "learning-rate": learning_rate,
        "seed": seed,
        "threads": threads,
    }
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    with whole_file(out) as temporary:
        named = temporary.with_name(temporary.name + SUFFIX)  # Keras insists on the ending
        network.save_weights(named)
        named.replace(temporary)
    shown = out.name if out.is_absolute() else str(out)  # no path of one machine
    record = {
        "backbone": backbone.name,
        "command": shlex.join(["python", "-m", "lesionlab.pretext", "--out", shown, *words]),
        **options,
        "image_size": SIZE,
        "sha256": file_digest(out),
        "held_out": figures,
        "environment": environment(threads),
    }
    write_json(out.with_name(out.name.removesuffix(SUFFIX) + ".json"), record)
    minutes = (time.monotonic() - start) / 60
    print(f"{out}: {minutes:.1f} min; " + ", ".join(f"{key} {value:.3f}" for key, value in figures.items()))


if __name__ == "__main__":
    run(main, __doc__, stage=False)
