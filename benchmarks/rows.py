"""One line of the table that `make bench` prints."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """What a piece of work takes the plain way and here, measured in the same run; None where there is no such figure.

    row: what was measured. plain, ours: medians over interleaved rounds, in seconds unless `note` names another unit.
    ratio: plain over ours, or what else the row compares (`note` says it). floor: the least that `ours` could be by
    counted operations at the plain way's own speed, in the unit of `ours`. at_least, at_most: what the ratio must show.
    """

    row: str
    plain: float | None
    ours: float | None
    ratio: float | None
    floor: float | None
    at_least: float | None
    at_most: float | None = None
    note: str = ""
