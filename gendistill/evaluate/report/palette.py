"""The colours of page and picture: on screen, on a dark screen, on paper. Told apart without red and green, too."""

from __future__ import annotations

PALETTE = {
    "paper": ("#fdfdfb", "#15181c", "#ffffff"),
    "raised": ("#f5f4f0", "#1e2227", "#f1f0ec"),
    "ink": ("#1d2126", "#e9e7e2", "#000000"),
    "soft": ("#5c636b", "#a2a7ae", "#444444"),
    "rule": ("#e3e1da", "#2d3238", "#cccccc"),
    "strong-rule": ("#bdbab1", "#525860", "#888888"),
    "blue": ("#0067a8", "#4aa8ec", "#0067a8"),
    "sky": ("#45a3dc", "#94d0f5", "#45a3dc"),
    "green": ("#00875f", "#2fbf92", "#00875f"),
    "purple": ("#bd6a9c", "#dd94bf", "#bd6a9c"),
    "grey": ("#7d828a", "#9096a0", "#777777"),
    "orange": ("#d08a00", "#eab04a", "#c98500"),
    "red": ("#c9500b", "#f07f45", "#c9500b"),
    "yellow": ("#a89c14", "#d8cd55", "#948a10"),
    "brown": ("#7a4a2b", "#b98a66", "#7a4a2b"),
    "violet": ("#5a4fc0", "#a49bf5", "#5a4fc0"),
}
MEDIA = ("all", "(prefers-color-scheme: dark)", "print")
CLASSES = ("blue", "orange", "green", "red", "violet", "sky", "yellow", "purple", "brown", "grey")  # of images
