"""Zero-shot tasks: what share of questions an artifact answers rightly, by lm-eval, beside its float checkpoint."""

from __future__ import annotations

import difflib
import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import yaml
from lm_eval.api.model import LM
from lm_eval.defaults import DEFAULT_OTHER_SEED
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from mobile_export.errors import InputError, UsageError

ACCURACIES = ("acc_norm", "acc", "exact_match")  # of several, the first: choices weighed by their length where a task does so
YAML = (".yaml", ".yml")

Answers = Mapping[str, tuple[str, Mapping[int, float]]]  # task -> its accuracy's name, question -> 1 if right, else 0


@dataclass(frozen=True)
class TaskScore:
    """One task. Accuracies are shares of the questions; errors are standard errors of the mean over questions.

    metric: of lm-eval; "acc_norm" weighs the choices' log-probabilities by their length.
    reference_accuracy: of the float checkpoint. drop: how much higher that is; its error is that of the mean difference,
        question by question, and much smaller than the accuracy's.
    What compares is None without a checkpoint.
    """

    task: str
    metric: str
    questions: int
    accuracy: float
    accuracy_error: float
    reference_accuracy: float | None = None
    drop: float | None = None
    drop_error: float | None = None


@dataclass(frozen=True)
class ZeroShot:
    """All tasks, and their means, every task counted once. truncated: answers whose question lost tokens on its left."""

    tasks: tuple[TaskScore, ...]
    average: float
    reference_average: float | None
    average_drop: float | None
    average_drop_error: float | None
    truncated: int


def load_tasks(names: Sequence[str]) -> dict[str, Any]:
    """lm-eval's tasks by name, or a task's own .yaml file by path.

    Raises:
        UsageError: no such task.
        InputError: its data set is not on this machine, or the file cannot be read as a task.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    known = TaskManager(include_defaults=any(not name.endswith(YAML) for name in names))
    tasks: dict[str, Any] = {}
    for name in names:
        try:
            tasks |= known.load([name])["tasks"]
        except KeyError as error:
            if "not a registered task" not in str(error):
                what = f"is no task file: it lacks {error}"
                raise InputError(f"--tasks {name}", what, "see lm-eval's documentation of task files") from None
            close = difflib.get_close_matches(name, known.all_tasks, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            then = f"{hint}`lm-eval ls tasks` lists them"
            raise UsageError(f"--tasks {name}", "lm-eval knows no such task", then) from None
        except (OSError, ValueError, datasets.exceptions.DatasetsError, yaml.YAMLError) as error:
            what = f"its data set cannot be read, and nothing is downloaded: {_first_line(error)}"
            then = "fetch it once where there is a network, by load_dataset of the package `datasets`"
            raise InputError(f"--tasks {name}", what, then) from None
    return tasks


def answer(model: LM, tasks: Mapping[str, Any], limit: int | None) -> Answers:
    """Have a model answer the first `limit` questions of every task, without examples unless the task has its own.

    Raises:
        UsageError: a task without an accuracy.
    """
    for task in tasks.values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    samples = evaluate(model, {"tasks": dict(tasks)}, limit=limit, bootstrap_iters=0)["samples"]
    answers = {}
    for task in tasks:
        held = samples[task]
        metric = next((name for name in ACCURACIES if name in held[0]["metrics"]), None)
        if metric is None:
            what = f"measures {', '.join(held[0]['metrics'])}, no accuracy"
            raise UsageError(f"--tasks {task}", what, "name tasks with choices; `eval --text` measures perplexity")
        first = held[0]["filter"]  # of several readings of the same answer
        answers[task] = metric, {one["doc_id"]: float(one[metric]) for one in held if one["filter"] == first}
    return answers


def compare(found: Answers, wanted: Answers | None, truncated: int) -> ZeroShot:
    """Accuracies, and where a checkpoint answered the same questions, what was lost."""
    scores = tuple(_score(task, *found[task], wanted[task][1] if wanted else None) for task in found)
    average = statistics.fmean(score.accuracy for score in scores)
    if wanted is None:
        return ZeroShot(scores, average, None, None, None, truncated)
    references = [score.reference_accuracy for score in scores if score.reference_accuracy is not None]
    errors = [score.drop_error for score in scores if score.drop_error is not None]
    reference = statistics.fmean(references)
    return ZeroShot(scores, average, reference, reference - average, math.hypot(*errors) / len(scores), truncated)


def _score(task: str, metric: str, right: Mapping[int, float], wanted: Mapping[int, float] | None) -> TaskScore:
    accuracy, error = statistics.fmean(right.values()), _error(list(right.values()))
    if wanted is None:
        return TaskScore(task, metric, len(right), accuracy, error)
    lost = [wanted[question] - right[question] for question in right]
    reference = statistics.fmean(wanted.values())
    return TaskScore(task, metric, len(right), accuracy, error, reference, statistics.fmean(lost), _error(lost))


def _error(values: Sequence[float]) -> float:
    """Standard error of the mean; infinite for a single value, which says nothing of its spread."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
