"""Learning curves of one training."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from lesionlab.pictures import MODEL_COLOURS, save_figure


def draw_history(path: Path, history: pd.DataFrame, stage: str, kept_epoch: int) -> None:
    """Loss and accuracy by epoch: training dashed, validation solid, the epoch that was kept dotted.

    The loss of attention, where it was taught, is of training crops alone: masks of others are not looked at.
    """
    names = [name for name in ("loss", "accuracy", "attention_loss") if name in history]
    figure, axes = plt.subplots(1, len(names), figsize=(4.5 * len(names), 3.4))
    for axis, name in zip(axes, names, strict=True):
        axis.plot(history["epoch"], history[name], color=MODEL_COLOURS[stage], linestyle="--", label="training")
        if f"val_{name}" in history:
            axis.plot(history["epoch"], history[f"val_{name}"], color=MODEL_COLOURS[stage], label="validation")
        axis.axvline(kept_epoch, color="#999999", linestyle=":", label="kept")
        axis.set(xlabel="epoch", ylabel=name.replace("_", " "), title=stage)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    save_figure(figure, path)
