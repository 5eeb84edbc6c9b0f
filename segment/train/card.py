"""The card of a model that went on from another: what it has learnt from, whose terms hold."""

from pathlib import Path
from typing import Any

from minicnn.files import atomic_write, digest
from segment.model import BUNDLED, ModelInfo, model_file, model_name
from segment.run_folder import CARD


def card_of(init: str | None) -> str:
    """The card of the model that a training began with; a sentence where it has none."""
    file = model_file(init)
    card = file.with_name("README.md" if file == BUNDLED else CARD)
    if card.is_file():
        return card.read_text(encoding="utf-8")
    return f"No card lies beside {file.name}: ask whoever gave it to you what it has learnt from.\n"


def write_card(path: Path, best: Path, info: ModelInfo, init: str | None, scores: Any) -> None:
    """Write what is known of the run's model, and below it the whole card of the first one."""
    pooled, about = scores["pooled"], info.trained
    rows = {
        "file": f"{best.name}, sha256 begins with `{digest(best)[:16]}`",
        "began as": f"`{model_name(init)}`",
        "then learnt from": ", ".join(about["data"]),
        "split": about["split"],
        "pixel size": f"{info.pixel_size:.3g} m" if info.pixel_size else "unknown",
        "thresholds": f"{info.threshold:.3f} of masks, {info.outline_threshold:.3f} of outlines",
        "IoU, F1 of buildings": f"{pooled['iou']:.3f}, {pooled['objects']['f1']:.3f}",
        "what was scored": about.get("scored", "the test part, which it has not seen"),
    }
    lines = ["# A model that finds buildings", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    lines += ["", "**Licences.** Those of all data hold: of " + ", ".join(about["data"]), ""]
    lines[-2] += " (state them here), and of what the first model has learnt from, see below."
    first = card_of(init).splitlines()
    lines += ["# The model it began with", "", *(f"#{x}" if x[:1] == "#" else x for x in first)]
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
