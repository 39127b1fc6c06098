"""`eval --tasks`: log-likelihoods against lm-eval's own Hugging Face model, prefix reuse, accuracies by hand, refusals."""

import functools
import json
import math
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from exported import CONTEXT, PROMPT, ROOM, artifact, checkpoint, coreml_artifact, onnx_artifact
from tiny_checkpoints import CORPUS
from tiny_families import TOKENS, written

os.environ["HF_HUB_OFFLINE"] = os.environ["TQDM_DISABLE"] = "1"  # before lm-eval is imported, as the command does

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from mobile_export.cli import run
from mobile_export.cli.verify import runtime_of, weights_for
from mobile_export.errors import UsageError
from mobile_export.manifest import read_manifest
from mobile_export.verify.continuations import CachedContinuations, artifact_continuations, whole_continuations
from mobile_export.verify.lm_eval_model import LogitsModel, Vocabulary
from mobile_export.verify.oracle import float32_oracle
from mobile_export.verify.prompt import read_tokenizer
from mobile_export.verify.published import TASKS, published
from mobile_export.verify.zero_shot import compare

WORDS = CORPUS.split()
TINY = 1e-4  # of a log-likelihood of some 40: float32 sums in another order came to 1e-5


def words(count, seed):
    return " ".join(random.Random(seed).choices(WORDS, k=count))


PAIRS = [
    *((words(5, 1), f" {word}") for word in ("fox", "dog", "morning", "fox jumps over")),
    *((words(5, 1) + " the", f" {word}") for word in ("fox", "lazy dog")),
    ("", "the quick brown"),
    ("the end is a space ", "fox"),
    (words(90, 2), " over the lazy dog"),  # longer than the context: cut on its left
]
TEXTS = [words(6, 3), words(120, 4), "fox"]  # one of more than a window
ARTIFACTS = {
    "pte": lambda folder: artifact(folder, "--recipe", "fp32"),
    "onnx": lambda folder: onnx_artifact(folder, "--recipe", "fp32"),
    "onnx, all logits": lambda folder: onnx_artifact(folder, "--recipe", "fp32", "--all-logits"),
    "coreml": lambda folder: coreml_artifact(folder, "--recipe", "fp32", "--no-verify"),
}


def asked(pairs):
    return [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]


def vocabulary_of(manifest, folder):
    return Vocabulary(read_tokenizer(folder), manifest.bos_id, manifest.adds_bos, tuple(manifest.eos_ids))


def model_of(folder):
    manifest = read_manifest(folder)
    continuations = artifact_continuations(runtime_of(folder / manifest.file, manifest), manifest)
    return LogitsModel(continuations, vocabulary_of(manifest, folder), manifest.max_context, lambda _: None)


@functools.cache
def peer(folder):
    """lm-eval's own model over transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return HFLM(model, tokenizer=AutoTokenizer.from_pretrained(folder), max_length=CONTEXT, batch_size=1, device="cpu")


# --- the figures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ARTIFACTS)
def test_log_likelihoods_are_those_of_lm_evals_own_model(kind):
    folder = checkpoint()
    model, theirs = model_of(ARTIFACTS[kind](folder)), peer(folder)
    near = functools.partial(pytest.approx, abs=0.05 if kind == "coreml" else TINY)  # the package's weights are float16
    wanted = theirs.loglikelihood(asked(PAIRS), disable_tqdm=True)
    found = model.loglikelihood(asked(PAIRS))
    assert [score for score, _ in found] == [near(score) for score, _ in wanted]
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    assert model.truncated == 1
    rolled = model.loglikelihood_rolling(asked([(text,) for text in TEXTS]))
    assert rolled == [near(score) for score in theirs.loglikelihood_rolling(asked([(text,) for text in TEXTS]))]


def test_a_greedy_answer_is_found_greedy():
    """None of PAIRS is: their `False` could be anybody's."""
    folder = checkpoint()
    model = model_of(ARTIFACTS["onnx"](folder))
    (answer,) = model.generate_until(asked([("the quick", {"until": [], "max_gen_toks": 3})]))
    ids, tokenizer = model.tok_encode("the quick"), read_tokenizer(ARTIFACTS["onnx"](folder))
    best = tokenizer.encode(answer, add_special_tokens=False).ids
    (found,) = model._loglikelihood_tokens([(None, ids, best)])
    assert found[1] is True
    assert model._loglikelihood_tokens([(None, ids, [*best[:-1], (best[-1] + 1) % 96])])[0][1] is False


def test_generated_text_is_that_of_lm_evals_own_model():
    folder = checkpoint()
    settings = [{"until": ["o"], "max_gen_toks": 12}, {"until": [], "max_gen_toks": 5}, {"until": ["zzz"], "max_gen_toks": 20}]
    requests = [(words(4 + 40 * number, number), setting) for number, setting in enumerate(settings)]
    model = model_of(ARTIFACTS["pte"](folder))
    wanted = peer(folder).generate_until(asked(requests), disable_tqdm=True)
    assert model.generate_until(asked(requests)) == wanted
    assert len(set(wanted)) == 3
    assert model.truncated == 1
    with pytest.raises(UsageError, match="samples its answers"):
        model.generate_until(asked([("the", {"do_sample": True, "temperature": 1.0})]))


# --- what is run once --------------------------------------------------------------------------------------------------


def family_folder(name, *arguments):
    out = Path(ROOM.name) / f"tasks-{name}-{len(arguments)}"
    verb = ["onnx"] if "onnx" in arguments else ["pte", "--max-prompt", str(PROMPT)]
    if not out.exists():
        assert (
            run([*verb, str(written(name)), "--out", str(out), "--recipe", "fp32", "--max-context", "48", "--no-verify"]) == 0
        )
    return out


CHOICES = [(TOKENS[:20], TOKENS[20:23]), (TOKENS[:20], [5, 6]), (TOKENS[:17], [7]), (TOKENS[:2], [8, 9]), (TOKENS[:20], [4])]


@pytest.mark.parametrize(
    ("name", "form", "reuses"),
    [
        ("qwen3", "pte", True),
        ("qwen3", "onnx", True),
        ("gemma3", "pte", False),  # rings of rows
        ("gemma3", "onnx", True),
        ("lfm2", "onnx", False),  # columns of short convolutions
        ("rwkv4", "onnx", False),
    ],
)
def test_a_cache_that_goes_back_gives_what_a_whole_pass_gives(name, form, reuses):
    folder = family_folder(name, *([form] if form == "onnx" else []))
    manifest = read_manifest(folder)
    found = artifact_continuations(runtime_of(folder / manifest.file, manifest), manifest)
    wanted = whole_continuations(float32_oracle(weights_for(folder, manifest, str(written(name))), 48)[1])
    for context, continuation in CHOICES:
        torch.testing.assert_close(found(context, continuation), wanted(context, continuation), atol=2e-4, rtol=0)
    every = sum(len(context) + len(continuation) - 1 for context, continuation in CHOICES)
    assert every == 22 + 21 + 17 + 3 + 20
    # Of the first text all is run, of the second the choice, of the third and fourth the last token of the context and the
    # choice; the context of the last shares two tokens with what the cache held.
    assert found.tokens_run == (22 + 1 + 1 + 2 + 18 if reuses else every)


class Recorder:
    """A runtime that gives its cache back: row i of the logits is what was written at position i, and how often it ran."""

    def __init__(self):
        self.cache, self.calls = [], []

    def step(self, tokens, start):
        assert start <= len(self.cache)
        self.cache = [*self.cache[:start], *tokens]
        self.calls.append((len(tokens), start))
        return torch.tensor([float(sum(self.cache)), float(len(self.cache))])


def test_what_a_runtime_is_asked_for():
    runtime = Recorder()
    continuations = CachedContinuations(runtime, chunk=4, all_logits=False, steps_back=True)
    assert continuations([1, 2, 3, 4, 5, 6], [7, 8, 9]).tolist() == [[21, 6], [28, 7], [36, 8]]
    assert runtime.calls == [(4, 0), (2, 4), (1, 6), (1, 7)]
    runtime.calls.clear()
    assert continuations([1, 2, 3, 4, 5, 6], [5]).tolist() == [[21, 6]], "no call: the context's logits are known"
    assert continuations([1, 2, 3, 9], [5, 6]).tolist() == [[15, 4], [20, 5]]
    assert runtime.calls == [(1, 3), (1, 4)]
    runtime.calls.clear()
    assert continuations([1, 2], [3]).tolist() == [[3, 2]]
    assert runtime.calls == [(1, 1)], "its last token once more, for the logits"


# --- the command -------------------------------------------------------------------------------------------------------


def write_task(folder, questions=12, seed=0):
    """A task of lm-eval: its .yaml file and its questions, here three choices of one to four words each."""
    chosen, lines = random.Random(seed), []
    for number in range(questions):
        choices = [words(chosen.randint(1, 4), 10 * number + choice) for choice in range(3)]
        lines.append({"question": words(chosen.randint(3, 8), number), "choices": choices, "answer": chosen.randrange(3)})
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    task = folder / "words.yaml"
    task.write_text(
        f"""task: words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {folder / "cache"}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
    )
    return task, lines


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("task"))


def evaluated(capsys, *arguments):
    code = run(["eval", *map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def right_by_hand(lines, logits, tokenizer, bos):
    """1 for every question whose answer has the highest log-probability a character, in scalars."""
    right = []
    for line in lines:
        scores = []
        for choice in line["choices"]:
            context, text = (
                [*bos, *tokenizer.encode(part, add_special_tokens=False).ids]
                for part in (line["question"], f"{line['question']} {choice}")
            )
            rows = logits(text)
            total = 0.0
            for at in range(len(context), len(text)):
                row = rows[at - 1].double()
                total += float(row[text[at]] - row.logsumexp(0))
            scores.append(total / len(choice))
        right.append(float(scores.index(max(scores)) == line["answer"]))
    return right


def test_accuracies_are_those_worked_by_hand(capsys, task):
    path, lines = task
    folder = checkpoint()
    out = onnx_artifact(folder, "--recipe", "w4-all-fast")
    manifest = read_manifest(out)
    code, found = evaluated(capsys, out, "--tasks", path, "--against", folder)
    assert code == 0
    (score,) = found["tasks"]
    assert (score["task"], score["metric"], score["questions"]) == ("words", "acc_norm", 12)
    tokenizer, bos = read_tokenizer(out), [manifest.bos_id] if manifest.adds_bos else []
    runtime = runtime_of(onnx_artifact(folder, "--recipe", "w4-all-fast", "--all-logits") / manifest.file, manifest)
    ours = right_by_hand(lines, lambda text: runtime.logits(text, 0), tokenizer, bos)
    theirs = right_by_hand(lines, float32_oracle(weights_for(out, manifest, str(folder)), CONTEXT)[1], tokenizer, bos)
    assert score["accuracy"] == statistics.fmean(ours)
    assert score["accuracy_error"] == pytest.approx(statistics.stdev(ours) / math.sqrt(12))
    assert score["reference_accuracy"] == statistics.fmean(theirs)
    lost = [wanted - got for wanted, got in zip(theirs, ours, strict=True)]
    assert score["drop"] == pytest.approx(statistics.fmean(lost))
    assert score["drop_error"] == pytest.approx(statistics.stdev(lost) / math.sqrt(12))
    assert (found["average"], found["average_drop"]) == (score["accuracy"], score["drop"])
    assert 0 < statistics.fmean(theirs) < 1, "a task everybody fails says nothing"


def test_means_over_tasks():
    found = {"a": ("acc", {0: 1.0, 1: 0.0, 2: 1.0, 3: 1.0}), "b": ("acc", {0: 0.0, 1: 1.0})}
    wanted = {"a": ("acc", {0: 1.0, 1: 1.0, 2: 1.0, 3: 0.0}), "b": ("acc", {0: 1.0, 1: 1.0})}
    both = compare(found, wanted, 7)
    assert (both.average, both.reference_average, both.truncated) == (0.625, 0.875, 7)
    assert both.average_drop == pytest.approx(0.25)
    assert [score.drop for score in both.tasks] == [0, 0.5]
    errors = [statistics.stdev([0, 1, 0, -1]) / 2, statistics.stdev([1, 0]) / math.sqrt(2)]
    assert both.average_drop_error == pytest.approx(math.sqrt(errors[0] ** 2 + errors[1] ** 2) / 2)
    alone = compare(found, None, 0)
    assert (alone.average_drop, alone.tasks[0].drop, alone.tasks[0].accuracy) == (None, None, 0.75)


def test_the_page_and_the_gate(capsys, task, tmp_path):
    other = write_task(tmp_path, seed=5)[0]
    other.write_text(other.read_text().replace("task: words", "task: arc_easy"))
    folder = checkpoint()
    out = onnx_artifact(folder, "--recipe", "w4-all-fast")
    named = ("--tasks", f"{task[0]},{other}", "--against", folder)
    drop = 100 * evaluated(capsys, out, *named)[1]["average_drop"]
    assert run(["eval", *map(str, (out, *named)), "--limit", "5"]) == 0
    shown = capsys.readouterr().out
    assert "arc_easy  acc_norm          5" in shown
    header = next(line for line in shown.splitlines() if line.startswith("model "))
    rows = {line.split()[0]: line for line in shown.splitlines() if line.endswith(("MobileLLM", "this run"))}
    assert header.split() == ["model", "parameters", *TASKS.values(), "Avg.", "source"]
    assert rows["MobileLLM-LS-125M"].split()[2:4] == ["45.8", "28.7"]
    assert rows[out.name].split().count("-") == 8, "seven other tasks and their average"
    assert "arXiv:2402.14905" in shown
    gate = ("--max-accuracy-drop", max(drop, 0.0))
    assert evaluated(capsys, out, *named, *gate)[0] == 0
    if drop > 0:
        assert run(["eval", *map(str, (out, *named)), "--max-accuracy-drop", str(0.9 * drop)]) == 1
        assert f"over limit accuracy drop {drop:.2f} points, limit " in capsys.readouterr().out


def test_a_context_too_long_is_said_once(capsys, task):
    out = onnx_artifact(checkpoint(), "--recipe", "w8-fast", "--max-context", "8")
    assert run(["eval", str(out), "--tasks", str(task[0])]) == 0
    said = capsys.readouterr().err
    assert said.count("warning: ") == 1
    assert "answers had questions longer than the artifact's 8 positions: cut on the left" in said


# --- what others published ---------------------------------------------------------------------------------------------


def test_the_published_rows_are_whole_and_their_averages_right():
    held = published()
    assert {row.source for row in held.rows} == {source.name for source in held.sources}
    for row in held.rows:
        assert list(row.accuracy) == list(TASKS)
        assert row.average == pytest.approx(statistics.fmean(row.accuracy.values()), abs=0.11), row.model  # rounded twice
    averages = {row.model: row.average for row in held.rows}
    assert (averages["MobileLLM-125M"], averages["MobileLLM-LS-350M"]) == (46.3, 52.1)


# --- what it refuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "--text, --tasks: one of them says what to measure; give --text FILE or --tasks NAME,..."),
        (("--tasks", "piqa", "--text", "x"), 2, "--text, --tasks: one of them says what to measure; "),
        (("--tasks", ","), 2, "--tasks: names no task; "),
        (("--tasks", "piqa", "--max-kl", "1"), 2, "--max-kl: does not go with --tasks; leave it out"),
        (("--text", "x", "--limit", "3"), 2, "--limit: does not go with --text; leave it out"),
        (("--tasks", "piqa", "--max-accuracy-drop", "1"), 2, "--max-accuracy-drop: compare with a checkpoint; add "),
    ],
)
def test_a_question_that_is_none(capsys, arguments, code, says):
    out = onnx_artifact(checkpoint(), "--recipe", "w8-fast")
    assert run(["eval", str(out), *arguments]) == code
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {says}")


def test_tasks_that_are_not_there(capsys, task, tmp_path):
    out = onnx_artifact(checkpoint(), "--recipe", "w8-fast")
    assert run(["eval", str(out), "--tasks", "arc_esay"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: --tasks arc_esay: lm-eval knows no such task; did you mean 'arc_easy'? ")
    assert run(["eval", str(out), "--tasks", "paper"]) == 3
    line = capsys.readouterr().err
    assert line.startswith("error: --tasks arc_easy: its data set cannot be read, and nothing is downloaded: ")
    assert "allenai/ai2_arc" in line
    assert line.count("\n") == 1
    lost = tmp_path / "lost.yaml"
    lost.write_text(task[0].read_text().replace("questions.jsonl", "none.jsonl"))
    assert run(["eval", str(out), "--tasks", str(lost)]) == 3
    assert f"error: --tasks {lost}: its data set cannot be read" in capsys.readouterr().err


def test_a_task_without_an_accuracy(capsys, task, tmp_path):
    path = tmp_path / "perplexity.yaml"
    text = task[0].read_text().split("output_type")[0].replace("task: words", "task: rolling")
    rolling = 'output_type: loglikelihood_rolling\ntest_split: test\ndoc_to_text: ""\ndoc_to_target: "{{question}}"\n'
    path.write_text(f"{text}{rolling}metric_list: [{{metric: word_perplexity}}]\n")
    out = onnx_artifact(checkpoint(), "--recipe", "w8-fast")
    assert run(["eval", str(out), "--tasks", str(path)]) == 2
    assert "--tasks rolling: measures word_perplexity, no accuracy; name tasks with choices" in capsys.readouterr().err


def test_without_lm_eval():
    """In a process of its own: here it is imported already."""
    out = onnx_artifact(checkpoint(), "--recipe", "w8-fast")
    code = "import sys; sys.modules['lm_eval'] = None; from mobile_export.cli import run; sys.exit(run(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "eval", str(out), "--tasks", "piqa"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 4
    assert done.stderr == 'error: --tasks: needs lm-eval, which is not installed; pip install "mobile-export[eval]"\n'
