"""The mean of what several networks said of the same crops, fold by fold, and which of the means counts."""

import pandas as pd

from lesionlab.studies.predictions import Predictions, mean_of, point_metrics

TEST_FIGURES = ("accuracy", "balanced_accuracy", "f1", "roc_auc")


def figures_of_means(members: dict[str, list[Predictions]]) -> pd.DataFrame:
    """A row for each member alone and for the mean of the first two, of the first three and so on, and fold.

    members: of each name what it predicted, a fold an item. Columns: networks, fold, val_accuracy, TEST_FIGURES.
    Raises InputError when members saw other crops or classes.
    """
    names = list(members)
    rows = [[name] for name in names] + [names[:count] for count in range(2, len(names) + 1)]
    cells = []
    for row in rows:
        for fold, parts in enumerate(zip(*(members[name] for name in row), strict=True)):
            mean = mean_of(list(parts))
            test = point_metrics(mean.test)
            cells.append(
                {
                    "networks": " + ".join(row),
                    "fold": fold,
                    "val_accuracy": point_metrics(mean.val)["accuracy"],
                    **{name: test[name] for name in TEST_FIGURES},
                }
            )
    return pd.DataFrame(cells)


def chosen(cells: pd.DataFrame, declared: bool = False) -> pd.DataFrame:
    """Of each fold the row of highest validation accuracy, of equal ones the one of fewest networks.

    Each fold chooses by itself: crops that validate there test in another. declared: the folds of the mean of all
    networks, which was named before its figures were known.
    """
    if declared:
        return cells[cells["networks"] == cells["networks"].iloc[-1]]
    return cells.loc[cells.groupby("fold")["val_accuracy"].idxmax()]
