"""download: fetch what the pipeline starts from, checked against checksums; nothing else goes online.

reads   datasets/<dataset>.yaml; for weights `bundled`: lesionlab/pretext/bundled/
writes  images:   data/raw/       the files of the data set, unpacked; SOURCES.json says what they were
        weights:  data/weights/   the backbone's weight file; weights.json says which, with its SHA-256
params  dataset, download; images: seed (a phantom is drawn with it); weights: model
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from lesionlab.params import read_params
from lesionlab.stage import run


def main(
    what: Annotated[Literal["images", "weights"], typer.Argument(help="what to fetch")],
    out: Annotated[Path, typer.Option(help="the folder to write")],
) -> None:
    from lesionlab.data.cards import read_card, resolve_model
    from lesionlab.data.download import download_images
    from lesionlab.data.weights import fetch_weights
    from lesionlab.models.backbones import find_backbone

    params = read_params()
    card = read_card(params.dataset)
    if what == "images":
        download_images(card, params.download, params.seed, out)
    else:
        model = resolve_model(params.model, card)
        fetch_weights(find_backbone(model.backbone), model.weights, out, params.download.mirror)


if __name__ == "__main__":
    run(main, __doc__)
