"""crop: cut images of one size from raw frames, around lesions and beside them.

reads   data/raw, datasets/<dataset>.yaml
writes  data/crops/images.npy  (n, size, size, 3) uint8 RGB
        data/crops/index.csv   id, label, group, frame, x, y, width, height, official, hash,
                               frame_digest, and what the card's layout.columns names
        data/crops/lesions.npy  where frames have masks: (n, cells, cells) uint8, the part of each cell of 8 pixels
                               that lesion covers, in 255ths
        data/crops/thumbnails.npy  (frames, 16, 16) uint8 grey, in the order of index.csv
        data/crops/reading.json  which of the card's layouts the files fit, and what their groups go by
        metrics/crop.json      counts, and the broken images that were left out
        pictures/crops.png       contact sheet
params  dataset, seed, crop, model.image_size
"""

from pathlib import Path
from typing import Annotated

from typer import Option

from lesionlab.params import read_params
from lesionlab.stage import run


def main(
    raw: Annotated[Path, Option(help="folder that the download stage filled")],
    crops: Annotated[Path, Option(help="folder to write the files above to")],
    metrics: Annotated[Path, Option(help="JSON file to write")],
    sheet: Annotated[Path, Option(help="PNG file to write")],
) -> None:
    from lesionlab.data.cards import read_card, resolve_model
    from lesionlab.data.crops import crop_all, describe_crops, draw_sheet
    from lesionlab.files import write_json

    params = read_params()
    card = read_card(params.dataset)
    size = resolve_model(params.model, card).image_size
    index, skipped = crop_all(raw, crops, card, params.crop, size, params.seed)
    write_json(metrics, describe_crops(index, skipped))
    draw_sheet(sheet, crops, index, card.classes, params.seed)


if __name__ == "__main__":
    run(main, __doc__)
