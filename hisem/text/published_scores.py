"""What has been published for the benchmarks' test splits (reference section 7), to print beside a model's scores."""

from __future__ import annotations

from dataclasses import dataclass

from hisem.text.metrics import Protocol


@dataclass(frozen=True)
class PublishedRow:
    """One captioner's scores, times 100 as printed; None where none is published."""

    captioner: str
    bleu_1: float | None
    bleu_2: float | None
    bleu_3: float | None
    bleu_4: float
    meteor: float
    rouge_l: float
    cider_d: float
    s_m: float

    def values(self) -> list[float | None]:
        """The eight scores in the order of the tables."""
        return [
            *(self.bleu_1, self.bleu_2, self.bleu_3, self.bleu_4),
            self.meteor,
            self.rouge_l,
            self.cider_d,
            self.s_m,
        ]


@dataclass(frozen=True)
class PublishedTable:
    """The published scores on one benchmark: all of its test split, protocol `ids`."""

    benchmark: str
    tiles: int | None
    """Tiles of the test split, where the source says so."""
    rows: tuple[PublishedRow, ...]

    @property
    def title(self) -> str:
        """What, on what, and how, for a heading."""
        tiles = f", {self.tiles:,} tiles" if self.tiles else ""
        return f"published, {self.benchmark} test{tiles}, protocol ids"

    def differences(self, split: str, protocol: Protocol, tiles: int) -> list[str]:
        """Why scores of so many tiles of a split are not comparable with these; empty where they are."""
        found = []
        if split != "test":
            found.append(f"the split is {split}, not test")
        elif self.tiles and tiles != self.tiles:
            found.append(f"{tiles:,} of the {self.tiles:,} test tiles are scored")
        if protocol != "ids":
            found.append(f"the protocol is {protocol}, not ids")
        return found


PUBLISHED = {
    "LEVIR-CC": PublishedTable(
        "LEVIR-CC",
        1929,
        (
            PublishedRow("HiSem", 86.60, 78.74, 71.73, 65.82, 40.39, 75.77, 138.86, 80.21),
            PublishedRow("HiSem, BDAM only", 86.07, 78.16, 71.17, 65.42, 39.94, 75.14, 137.47, 79.50),
            PublishedRow("HiSem, HASD only", 83.31, 75.43, 68.40, 62.70, 38.02, 72.33, 129.09, 75.54),
            PublishedRow("HiSem, neither", 84.51, 76.73, 69.89, 64.32, 38.79, 73.68, 131.84, 77.16),
            PublishedRow("RSICCformer", 84.72, 76.27, 68.87, 62.77, 39.61, 74.12, 134.12, 77.66),
            PublishedRow("Chg2Cap", 86.14, 78.08, 70.66, 64.39, 40.03, 75.12, 136.61, 79.04),
            PublishedRow("RSCaMa", 85.79, 77.99, 71.04, 65.24, 39.91, 75.24, 136.56, 79.24),
            PublishedRow("KCFI", 86.34, 77.31, 70.89, 65.30, 39.42, 75.47, 138.25, 79.61),
        ),
    ),
    "WHU-CDC": PublishedTable(
        "WHU-CDC",
        None,
        (
            PublishedRow("HiSem", None, None, None, 76.52, 48.77, 82.00, 158.35, 91.41),
            PublishedRow("CTMTNet", None, None, None, 69.00, 45.39, 79.23, 149.40, 85.76),
        ),
    ),
}
"""By benchmark."""
