"""``trainer_state.json``, which the Trainer of Hugging Face writes with each checkpoint.

Its ``log_history`` has what was logged at each step, without times. Each checkpoint contains the whole history before
it, so of the checkpoints of one training the last one is imported.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from server.errors import ImportFileError
from server.imports.impostor import check_contents
from server.imports.json_lines import JsonLines, flattened
from server.imports.logged_run import LoggedRun, Note
from server.imports.options import ReadOptions
from server.imports.run_groups import RunGroups
from server.imports.run_names import name_of

NAME = "trainer_state.json"
SETTINGS = (
    *("max_steps", "num_train_epochs", "train_batch_size", "logging_steps", "eval_steps", "save_steps"),
    *("best_metric", "best_model_checkpoint", "total_flos"),
)
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def open_file(path: Path, options: ReadOptions, note: Note, root: Path | None = None) -> list[LoggedRun]:
    """Return the run of a state. ``root`` is the folder that is imported. Raises `ImportFileError`."""
    check_contents(path)
    state = _decoded(path)
    history = state.get("log_history")
    if not isinstance(history, list) or not all(isinstance(item, dict) for item in history):
        raise ImportFileError(path, None, "it has no list log_history; it is not a state of the Trainer")
    flat = [flattened(item) for item in history]
    parser = JsonLines(path, options, note)
    parser.choose(flat)
    groups = RunGroups(path, parser.run_columns, options)
    for number, item in enumerate(flat, 1):
        place = f"item {number} of log_history"
        entry = parser.entry(place, item)
        if entry is not None:
            groups.add(place, entry, parser.texts)
    config = {name: state[name] for name in SETTINGS if state.get(name) is not None}
    folder = path.resolve().parent
    name = folder.parent.name if _CHECKPOINT.fullmatch(folder.name) else name_of(path, root)
    return groups.runs(name, tags=("huggingface",), step_column=parser.step_key, config=config)


def is_superseded(path: Path) -> bool:
    """Return whether a later checkpoint of the same training has this state as well, or its output folder has."""
    here = _CHECKPOINT.fullmatch(path.parent.name)
    if here is None:
        return False
    folder = path.parent.parent
    if (folder / NAME).is_file():
        return True
    others = (_CHECKPOINT.fullmatch(other.parent.name) for other in folder.glob(f"checkpoint-*/{NAME}"))
    return any(int(other[1]) > int(here[1]) for other in others if other is not None)


def _decoded(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ImportFileError(
            path, None, f"it is not JSON ({error}); if it was cut off, copy or download it again"
        ) from error
    if not isinstance(found, dict):
        raise ImportFileError(path, None, "it is not an object with a log_history; it is not a state of the Trainer")
    return found
