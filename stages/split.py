"""split: decide, once and on record, which crops train, validate and test.

reads   data/crops, datasets/<dataset>.yaml; under protocol external also the card of the data set that trains
writes  data/split.csv       id, fold, subset; label where labels are shuffled
        metrics/split.json   sizes, class balance, duplicates, proof that no group is shared, frames that are alike
params  dataset, seed, split
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from typer import Option

from lesionlab.errors import InputError
from lesionlab.params import current_overlay, read_params
from lesionlab.stage import run


def main(
    crops: Annotated[Path, Option(help="folder of the crop stage")],
    split: Annotated[Path, Option(help="CSV file to write")],
    metrics: Annotated[Path, Option(help="JSON file to write")],
    training: Annotated[Path | None, Option(help="crops of the data set that trains, for protocol external")] = None,
) -> None:
    from lesionlab.data.cards import check_apart, grouped_by, read_card, resolve_split
    from lesionlab.data.splits import assign_folds, crop_digests, describe_external, describe_split, external_split
    from lesionlab.data.thumbnails import by_subset, describe_likeness, likeness
    from lesionlab.files import read_images, read_index, read_json, read_thumbnails, write_json, write_table

    params = read_params()
    if (params.split.protocol == "external") != (training is not None):
        raise InputError(
            "params.yaml: split.protocol external and the option --training go together; studies/external uses them"
        )
    card = read_card(params.dataset)
    settings = resolve_split(params.split, card)
    index, rule = read_index(crops), read_json(crops / "reading.json")["groups"]
    images, thumbnails = read_images(crops), read_thumbnails(crops, index)
    index = index.assign(digest=crop_digests(images))
    if training is None:
        table = assign_folds(index, settings, params.seed)
        description = describe_split(index, table, settings, grouped=rule != "none", seed=params.seed)
        thumbnails = by_subset(index, table["subset"], thumbnails)
    else:
        trained, size = read_index(training), read_images(training).shape[1]
        if size != images.shape[1]:
            raise InputError(f"{crops}: crops are {images.shape[1]} px, {training} has {size}; set model.image_size")
        datasets = (read_params(overlay=replace(current_overlay(), cell=None)).dataset, params.dataset)
        check_apart(*datasets)
        table = external_split(index, trained, settings)
        description = describe_external(index, table, trained, settings, datasets=datasets, seed=params.seed)
        thumbnails = by_subset(index, table["subset"], thumbnails) | {"train": read_thumbnails(training, trained)}
    description["proof"] |= describe_likeness(thumbnails)
    description["grouped_by"] = grouped_by(rule)
    write_table(split, table)
    write_json(metrics, description)
    sizes = ", ".join(f"{part['crops']} {name}" for name, part in description["subsets"].items())
    print(f"split: {sizes} crops; protocol {description['protocol']}; {likeness(description['proof'])}")


if __name__ == "__main__":
    run(main, __doc__)
