"""Terminal views of what happens: blocks as they denoise, training runs, copies of weights, tokens by role."""

from difflm.display.copying import copy_observer
from difflm.display.denoising import Canvas, show_denoising, show_events
from difflm.display.progress import training_observer
from difflm.display.replay import replay_steps, step_lines
from difflm.display.sweep import show_points, sweep_watcher

__all__ = [
    "Canvas",
    "copy_observer",
    "replay_steps",
    "show_denoising",
    "show_events",
    "show_points",
    "step_lines",
    "sweep_watcher",
    "training_observer",
]
