"""`mobile-export eval --tasks`: zero-shot tasks on the artifact, and on the float checkpoint beside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mobile_export.cli.say import say, table, warn
from mobile_export.errors import MissingTool, UsageError
from mobile_export.manifest import Manifest

if TYPE_CHECKING:
    from mobile_export.verify.zero_shot import Answers, TaskScore, ZeroShot

PAPER = "paper"  # all eight of them


def measure_tasks(folder: Path, manifest: Manifest, tasks: str, against: str | None, limit: int | None) -> ZeroShot:
    """Score an artifact, and a checkpoint where one is named, on tasks separated by commas.

    Raises:
        MissingTool: lm-eval is not installed.
        InputError, UsageError: as the steps say.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when `datasets` is imported: nothing is downloaded unasked
    os.environ.setdefault("TQDM_DISABLE", "1")  # our progress is one line
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise MissingTool("--tasks", "needs lm-eval, which is not installed", 'pip install "mobile-export[eval]"') from None
    from mobile_export.cli.verify import runtime_of, weights_for
    from mobile_export.verify.continuations import artifact_continuations, whole_continuations
    from mobile_export.verify.lm_eval_model import LogitsModel, Vocabulary
    from mobile_export.verify.oracle import float32_oracle
    from mobile_export.verify.prompt import read_tokenizer
    from mobile_export.verify.zero_shot import answer, compare, load_tasks

    say("reading the tasks")
    loaded = load_tasks(_names(tasks))
    vocabulary = Vocabulary(read_tokenizer(folder), manifest.bos_id, manifest.adds_bos, tuple(manifest.eos_ids))
    wanted: Answers | None = None
    if against is not None:
        say("loading the checkpoint")
        _, logits = float32_oracle(weights_for(folder, manifest, against), manifest.max_context)
        float_model = LogitsModel(whole_continuations(logits), vocabulary, manifest.max_context, say)
        wanted = answer(float_model, loaded, limit)
    say("loading the artifact")
    asked = artifact_continuations(runtime_of(folder / manifest.file, manifest), manifest)
    model = LogitsModel(asked, vocabulary, manifest.max_context, say)
    found = compare(answer(model, loaded, limit), wanted, model.truncated)
    if found.truncated:
        what = f"{found.truncated:,} answers had questions longer than the artifact's {manifest.max_context} positions"
        warn(f"{what}: cut on the left, as lm-eval does; export with a larger --max-context")
    return found


def _names(tasks: str) -> list[str]:
    from mobile_export.verify.published import TASKS

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise UsageError("--tasks", "names no task", "write names of lm-eval's tasks, a .yaml file, or paper")
    return list(dict.fromkeys(task for name in names for task in (TASKS if name == PAPER else (name,))))


def lost_more(found: ZeroShot, limit: float | None) -> list[str]:
    """The limit on what may be lost, in points, where it does not hold, as a phrase. NaN holds none."""
    if limit is None or found.average_drop is None or 100 * found.average_drop <= limit:
        return []
    return [f"accuracy drop {100 * found.average_drop:.2f} points, limit {limit:g}"]


def page(found: ZeroShot, file: Path, against: str | None, broken: list[str]) -> str:
    """The figures as text, and where tasks of the paper were run, its table with rows for both models."""
    compared = found.average_drop is not None
    header = ("task", "metric", "questions", "accuracy", *(("in float32", "drop, points") if compared else ()))
    lines = [f"{file}, answers of its own runtime", table(header, [_line(score) for score in found.tasks], left=2)]
    if len(found.tasks) > 1:
        lines.append(f"average {_percent(found.average)}" + (f", {_drop(found)}" if compared else ""))
    elif compared:
        lines.append(_drop(found))
    rows = _beside_the_paper(found, file.resolve().parent.name, against)
    return "\n".join([*lines, *rows, *(f"over limit {phrase}" for phrase in broken)])


def _line(score: TaskScore) -> tuple[str, ...]:
    own = f"{_percent(score.accuracy)} +- {_percent(score.accuracy_error)}"
    plain = (score.task, score.metric, f"{score.questions:,}", own)
    if score.drop is None or score.drop_error is None or score.reference_accuracy is None:
        return plain
    return *plain, _percent(score.reference_accuracy), f"{_percent(score.drop)} +- {_percent(score.drop_error)}"


def _drop(found: ZeroShot) -> str:
    assert found.average_drop is not None
    assert found.average_drop_error is not None
    return f"drop {100 * found.average_drop:.2f} +- {100 * found.average_drop_error:.2f} points from float32"


def _beside_the_paper(found: ZeroShot, name: str, against: str | None) -> list[str]:
    from mobile_export.verify.published import TASKS, published

    ours = {score.task: score for score in found.tasks if score.task in TASKS}
    if not ours:
        return []
    held = published()
    rows = [
        (row.model, row.parameters, *(f"{row.accuracy[task]:.1f}" for task in TASKS), f"{row.average:.1f}", row.source)
        for row in held.rows
    ]
    accuracies = {name: {task: score.accuracy for task, score in ours.items()}}
    if against is not None:
        float_row = {task: score.reference_accuracy for task, score in ours.items() if score.reference_accuracy is not None}
        accuracies = {f"{Path(against).name}, float32": float_row, **accuracies}
    for model, accuracy in accuracies.items():
        average = _percent(sum(accuracy.values()) / len(accuracy)) if len(accuracy) == len(TASKS) else "-"
        cells = (_percent(accuracy[task]) if task in accuracy else "-" for task in TASKS)
        rows.append((model, "", *cells, average, "this run"))
    header = ("model", "parameters", *TASKS.values(), "Avg.", "source")
    sources = [f"{source.title}, {source.where}" for source in held.sources]
    note = "No source names its prompts: rows of one compare with each other, and with another's only roughly."
    return ["", table(header, rows), *sources, note]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
