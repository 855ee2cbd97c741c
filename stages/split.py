"""split: decide, once and on record, which crops train, validate and test.

reads   data/crops, datasets/<dataset>.yaml
writes  data/split.csv       id, fold, subset; label where labels are shuffled
        metrics/split.json   sizes, class balance, duplicates, proof that no group is shared
params  dataset, seed, split
"""

from pathlib import Path
from typing import Annotated

from typer import Option

from lesionlab.params import read_params
from lesionlab.stage import run


def main(
    crops: Annotated[Path, Option(help="folder of the crop stage")],
    split: Annotated[Path, Option(help="CSV file to write")],
    metrics: Annotated[Path, Option(help="JSON file to write")],
) -> None:
    from lesionlab.data.cards import read_card
    from lesionlab.data.splits import assign_folds, crop_digests, describe_split
    from lesionlab.files import read_images, read_index, write_json, write_table

    params = read_params()
    index = read_index(crops).assign(digest=crop_digests(read_images(crops)))
    table = assign_folds(index, params.split, params.seed)
    grouped = read_card(params.dataset).group_disjoint
    description = describe_split(index, table, params.split, grouped=grouped, seed=params.seed)
    write_table(split, table)
    write_json(metrics, description)


if __name__ == "__main__":
    run(main, __doc__)
