"""What one line of the table of `make bench` holds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One comparison; None where a figure could not be measured, for the reason in `note`.

    row: what was measured. plain, ours: medians over interleaved rounds, in seconds unless `note` names another unit.
    ratio: how many times less ours takes (for rows with `at_most`: how many times more). floor: the same ratio as
    counted operations allow. at_least, at_most: what the ratio must be. part: the part of the bench that measured it.
    """

    row: str
    plain: float | None
    ours: float | None
    ratio: float | None
    floor: float | None
    at_least: float | None
    at_most: float | None = None
    note: str = ""
    part: str = ""
