"""README.md, CONTRIBUTING.md and docs/ as they are: their commands, code, links, and what they say about the code.

Commands run one after another, as a reader would type them, on a few digits and for one epoch.
"""

import ast
import hashlib
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from PIL import Image

import data_loader
import methods
from training.folder import FREE_FLAGS

PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
TEXT = {page: (ROOT / page).read_text() for page in PAGES}
BLOCKS = {page: re.findall(r"^```(\w+)\n(.*?)^```$", TEXT[page], re.MULTILINE | re.DOTALL) for page in PAGES}
EXTENDING = "docs/extending.md"  # its code is written into a copy of the repository, and its commands run there
QUICK = ["--num_epochs", "1", "--train_size", "256", "--device", "cpu"]


def blocks(kind, page):
    """The code blocks of a page, of one language."""
    return [block for language, block in BLOCKS[page] if language == kind]


def commands(page):
    """The lines of a page's shell blocks, without comments."""
    return [re.sub(r"\s+#.*", "", line) for block in blocks("sh", page) for line in block.splitlines() if line]


LINES = list(dict.fromkeys(line for page in PAGES if page != EXTENDING for line in commands(page)))
NODES = [line for line in LINES if "--nnodes" in line]  # tests/runtime/test_processes.py runs them
RESUMED = [line for line in LINES if "--resume" in line and line not in NODES]
TRAININGS = [line for line in LINES if line.startswith("python train") and line not in RESUMED]
EVALUATIONS = [line for line in LINES if line.startswith("python evaluate.py")]
REPORTS = [line for line in LINES if line.startswith("python report.py")]
SCRIPTS = [line for line in LINES if re.search(r"(^| )sh scripts/", line)]


def quick(text):
    """Other data, and smaller networks of the same family."""
    return text.replace("CIFAR10", "DIGITS").replace("resnet110", "resnet14").replace("resnet32", "resnet8")


def on_the_digits(line):
    """The words of a command, after ``python``, with another data set and what the commands before it have made."""
    line = quick(line).replace("--dataset folder", "--dataset DIGITS")
    line = line.replace("results/weights", f"{ROOT}/results/weights")
    return shlex.split(re.sub(r"runs/paper\w*", "DIGITS", line))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Shared: a command uses what those before it made."""
    where = tmp_path_factory.mktemp("commands")
    image = Image.fromarray(data_loader.digits("").test.images[0])
    image.save(where / "a.png")
    image.save(where / "b.jpg")
    return where


# --- commands ---------------------------------------------------------------------------------------------------------


def test_every_command_is_tested():
    """Except the one that sets up an environment. scripts/setup.sh does the same before these tests run."""
    rest = [line for line in LINES if line not in TRAININGS + NODES + RESUMED + EVALUATIONS + REPORTS + SCRIPTS]
    assert rest == ["python -m venv .venv && . .venv/bin/activate && pip install -r requirements.txt"]


@pytest.mark.parametrize("command", TRAININGS)
def test_training(command, folder, script):
    _, name, *flags = on_the_digits(command)
    before = set(folder.rglob("summary.json"))
    version = ["--version", "own_images"] if "path/to/images" in command else []  # otherwise this run exists already
    done = script(name, *flags, *QUICK, *version, cwd=folder)
    assert done.returncode == 0, done.stderr
    (made,) = set(folder.rglob("summary.json")) - before
    best = json.loads(made.read_text())["best"]
    assert 0 < best["test_accTop5"] <= 100 and f"best epoch {best['epoch']}" in done.stdout
    assert "diversity" in done.stdout if "dist" in best else "network" in done.stdout


@pytest.mark.parametrize("command", RESUMED)
def test_resuming(command, folder):
    """After the others: there is nothing left to do."""
    words = [*on_the_digits(command), *QUICK]
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    words = [*torchrun, *words[1:]] if words[0] == "torchrun" else [sys.executable, *words[1:]]
    words = [ROOT / word if word.startswith("train") else word for word in words]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and "is complete: 1 epochs" in done.stdout, done.stderr


@pytest.mark.parametrize("command", EVALUATIONS)
def test_evaluation(command, folder, script):
    _, name, *flags = on_the_digits(command)
    done = script(name, *flags, "--device", "cpu", cwd=folder)
    assert done.returncode == 0 and done.stdout, done.stderr


@pytest.mark.parametrize("command", REPORTS)
def test_reporting(command, folder, script):
    _, name, *flags = on_the_digits(command)
    done = script(name, *flags, cwd=folder)
    assert done.returncode == 0 and "DIGITS (10 classes)" in done.stdout, done.stderr


@pytest.mark.parametrize("command", SCRIPTS)
def test_shell_script(command):
    """Demo and tests cannot run within the tests; tests/scripts/ runs the scripts of the tables."""
    name = next(word for word in shlex.split(command) if word.endswith(".sh"))
    path = ROOT / name
    assert subprocess.run(["sh", "-n", path]).returncode == 0


def test_network_based_groups(folder, image_folder):
    root = image_folder()
    flags = ["--model", "resnet8", "--dataset", "folder", "--batch_size", "8", "--MulStu", "--num_epochs", "1",
             "--device", "cpu", "--data_dir", str(root)]
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nimport train_GL, train_one\n" \
           f"for script, *more in (train_GL,), (train_one, '--ind'), (train_one, '--avg'): script.main({flags} + more)"
    done = python(folder, "-c", code)
    assert done.returncode == 0, done.stderr
    assert {p.parent.name for p in (folder / "folder").glob("*-N/resnet8")} == {"OKDDip-N", "Ind-N", "CL-N"}


def test_a_lone_peer_runs_and_warns(folder, script):
    done = script("train_GL.py", "--model", "resnet8", "--dataset", "DIGITS", "--num_branches", "2", "--version",
                  "lone", *QUICK, cwd=folder)
    assert done.returncode == 0 and "can attend only to itself" in done.stderr


def test_own_images(folder, script, image_folder):
    """Files of any size, two classes: colours that a network tells apart at once."""
    root = image_folder(train=40, test=10)
    done = script("train_GL.py", "--model", "resnet8", "--dataset", "folder", "--data_dir", root, "--num_epochs", "6",
                  "--batch_size", "16", "--length", "0", "--device", "cpu", cwd=folder)
    assert done.returncode == 0, done.stderr
    best = json.loads((folder / "folder" / "OKDDip" / "resnet8" / "test_best_metrics.json").read_text())
    assert best["stu_test_accTop1"] >= 90


# --- code -------------------------------------------------------------------------------------------------------------


def copy_code(where):
    """Copy the code to a folder, where a test may change it; -> the folder."""
    for path in ROOT.glob("*.py"):
        shutil.copy(path, where)
    packages = [path.parent for path in ROOT.glob("*/__init__.py")]
    for path in (*packages, ROOT / "scripts", ROOT / "results"):
        shutil.copytree(path, where / path.name, ignore=shutil.ignore_patterns("__pycache__", "study", "figures"))
    return where


def python(where, *words):
    return subprocess.run([sys.executable, *words], cwd=where, capture_output=True, text=True)


def code_with(word):
    """The Python block of docs/extending.md that has this word."""
    (block,) = [block for block in blocks("python", EXTENDING) if word in block]
    return block


def insert(path, before, text):
    """Write ``text`` in front of the only place in a file that reads ``before``."""
    content = path.read_text()
    assert content.count(before) == 1, f"{path.name} has no single place that reads {before!r}"
    path.write_text(content.replace(before, text + before))


def extending(word):
    """The commands of docs/extending.md that have this word: on the digits, with a small network."""
    return [line.replace("resnet32", "resnet8") for line in commands(EXTENDING) if word in line]


def test_every_command_about_extending_is_tested():
    assert set(commands(EXTENDING)) == {line for word in ("tiny", "mean", "Mean") for line in commands(EXTENDING)
                                        if word in line}


def test_adding_a_network(tmp_path):
    copy = copy_code(tmp_path)
    (copy / "models" / "tiny.py").write_text(code_with("NETWORKS = "))
    insert(copy / "models" / "registry.py", "densenet, imagenet", "tiny, ")
    insert(copy / "models" / "registry.py", "**densenet.NETWORKS", "**tiny.NETWORKS, ")
    (command,) = extending("--model tiny")
    flags = ["--model", "tiny", "--dataset", "DIGITS", *QUICK]
    others = f"import train, train_GL, train_one\ntrain.main({flags})\ntrain_GL.main([*{flags}, '--MulStu'])\n" \
             f"train_one.main({flags})"
    for words in ([*on_the_digits(command)[1:], *flags], ["-c", others]):
        done = python(copy, *words)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def with_mean(tmp_path_factory):
    """A copy with the method of docs/extending.md: its script, its one line in METHODS, and a run of one epoch."""
    copy = copy_code(tmp_path_factory.mktemp("copy"))
    (copy / "train_mean.py").write_text(code_with("class Mean(Group)"))
    insert(copy / "methods.py", '    "baseline": Entry(', code_with("Entry("))
    first, _ = extending("train_mean.py")
    done = python(copy, *on_the_digits(first)[1:], *QUICK)
    assert done.returncode == 0 and "mean of the students" in done.stdout, done.stderr
    return copy


def test_an_added_method_resumes(with_mean):
    _, continued = extending("train_mean.py")
    done = python(with_mean, *on_the_digits(continued)[1:], *QUICK, "--num_epochs", "2")
    assert done.returncode == 0 and "continues after 1 epochs" in done.stdout, done.stderr


def test_an_added_method_is_evaluated_and_exported(with_mean):
    (command,) = extending("evaluate.py")
    words = on_the_digits(command)
    done = python(with_mean, *words[1:], "--device", "cpu")
    assert done.returncode == 0 and (with_mean / words[words.index("--export") + 1]).exists(), done.stderr
    done = python(with_mean, "evaluate.py", "DIGITS/Mean/resnet8", "--device", "cpu")
    assert done.returncode == 0 and "mean of the students" in done.stdout, done.stderr


def test_an_added_method_is_reported(with_mean):
    (command,) = extending("report.py")
    done = python(with_mean, *on_the_digits(command)[1:])
    assert done.returncode == 0, done.stderr
    header = next(line for line in done.stdout.splitlines() if line.startswith("|"))
    assert "Mean" in [cell.strip() for cell in header.split("|")]


def test_an_added_method_joins_the_study(with_mean):
    (command,) = extending("study.sh")
    done = subprocess.run(["sh", "-c", command], cwd=with_mean, capture_output=True, text=True,
                          env=os.environ | {"DRY_RUN": "1", "SEEDS": "0", "PYTHON": sys.executable})
    assert done.returncode == 0, done.stderr
    _, line = done.stdout.splitlines()
    words = shlex.split(line)
    assert words[1] == "train_mean.py"
    done = python(with_mean, *words[1:], "--dataset", "DIGITS", "--model", "resnet8", *QUICK)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", [block for page in PAGES if page != EXTENDING for block in blocks("python", page)])
def test_code(block, folder):
    """What loads a network: after the commands that make one, with this clone on the path."""
    block = quick(block).replace("path/to/this/repository", str(ROOT))
    block = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{block}"
    done = python(folder, "-c", block)
    assert done.returncode == 0, done.stderr


# --- links ------------------------------------------------------------------------------------------------------------


def slug(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("name", [*PAGES, "CHANGELOG.md", "results/README.md"])
def test_links_resolve(name):
    text = (ROOT / name).read_text()
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        assert not anchor or anchor in map(slug, re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)), link


def files_of_tests():
    """The name of each test function -> the files that define it."""
    found = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found.setdefault(node.name, []).append(path.relative_to(ROOT).as_posix())
    return found


def places(page):
    """Links such as [`OKDDip.forward`](../models/branches.py) -> (name, path from the root)."""
    links = re.findall(r"\[`([\w.]+)`\]\(([^)]+\.py)\)", TEXT[page])
    return [(name, os.path.relpath((ROOT / page).parent / path, ROOT)) for name, path in links]


def has(path, name):
    """Whether a module has this function, class or method."""
    value = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    for part in name.split("."):
        value = getattr(value, part, None)
    return value is not None


@pytest.mark.parametrize("page", PAGES)
def test_what_is_named_is_in_the_file_that_is_linked(page):
    """If it is elsewhere, the failure says where a test is now; a function may have another name."""
    tests = files_of_tests()
    wrong = [f"{name} is not in {path} but in {tests.get(name, 'no file')}" for name, path in places(page)
             if path.startswith("tests/") and path not in tests.get(name, [])]
    wrong += [f"{path} has no {name}" for name, path in places(page)
              if not path.startswith("tests/") and not ((ROOT / path).exists() and has(path, name))]
    assert not wrong


# --- what pages say ---------------------------------------------------------------------------------------------------


def rows(lines):
    """The rows of a Markdown table: lists of cells, without the ruler."""
    cells = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    return [row for row in cells if not set("".join(row)) <= set("-: ")]


def tables(text):
    """The tables of a page."""
    return [rows(part.splitlines()) for part in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)]


def test_every_difference_names_its_test():
    ((_, *differences),) = tables(TEXT["docs/differences.md"])
    assert all(re.search(r"\[`test_\w+`\]", test) for *_, test in differences)


def test_every_equation_names_its_function():
    of_code = [lines for head, *lines in tables(TEXT["docs/equations.md"]) if head[-1] == "computed by"]
    assert len(of_code) == 2 and all(re.search(r"\[`[\w.]+`\]", place) for lines in of_code for _, place in lines)


def test_every_method_has_a_section_with_its_loss():
    _, *parts = re.split(r"^##+ ", TEXT["docs/equations.md"], flags=re.MULTILINE)
    sections = dict(part.split("\n", 1) for part in parts)
    for name in methods.METHODS.keys() - {"baseline", "OKDDip-N"}:
        assert re.search(r"\[`\w+_loss`\]\(../losses.py\)", sections[name]), name


def test_every_file_is_on_the_map():
    """CONTRIBUTING.md names every Python file at the root and every package."""
    ((_, *lines),) = tables(TEXT["CONTRIBUTING.md"])
    named = set(" ".join(re.sub("[`,]", " ", name) for name, _ in lines).split())
    assert {path.name for path in ROOT.glob("*.py")} <= named
    assert {f"{path.parent.name}/" for path in ROOT.glob("*/__init__.py")} <= named


def test_every_flag_exists(capsys):
    """The flags that the pages name are in --help of a script."""
    helps = []
    names = {entry.module for entry in methods.METHODS.values()}
    names |= {"evaluate", "report", "benchmarks.gpu", "benchmarks.loader", "benchmarks.step"}
    for module in map(importlib.import_module, sorted(names)):
        with pytest.raises(SystemExit):
            module.parse_args(["--help"])
        helps.append(capsys.readouterr().out)
    known = set(re.findall(r"--\w+", "".join(helps)))
    known |= {"--standalone", "--nproc_per_node", "--nnodes", "--node_rank", "--rdzv_endpoint"}  # torchrun's
    known |= {"--time", "--cpus", "--partition", "--gres", "--signal", "--requeue", "--termseq"}  # SLURM's, parallel's
    known |= {"--array", "--dependency", "--job", "--nodes", "--ntasks"}  # SLURM's
    known |= {"--runslow"}  # of the tests
    for page in PAGES:
        assert set(re.findall(r"(?<![\w-])--[a-zA-Z]\w*", TEXT[page])) <= known, page


def test_the_published_numbers_are_those_of_the_paper():
    """The README's first table against results/published.json, and the sentence below it."""
    published = json.loads((ROOT / "results" / "published.json").read_text())["tables"]
    of_data = {"CIFAR-10": "table1", "CIFAR-100": "table2", "ImageNet": "table3"}
    (_, _, *names), *lines = next(table for table in tables(TEXT["README.md"]) if table[0][:2] == ["data", "network"])
    for data, network, *cells in lines:
        layout = published[of_data[data]]
        (row,) = [row for row in layout["rows"] if row["name"] == network]
        columns = [column["name"] for column in layout["columns"]]
        values = dict(zip(columns, row["published"], strict=True))
        assert cells == [f"{values[name][0]:.2f}" if name in values else "–" for name in names], (data, network)
    (resnet32,) = [row for row in published["table2"]["rows"] if row["name"] == "ResNet-32"]
    (pcl,) = [other["published"] for other in resnet32["others"] if other["source"] == "PCL (AAAI 2021)"]
    values = dict(zip([column["name"] for column in published["table2"]["columns"]], pcl, strict=True))
    assert f"{values['OKDDip-B'][0]} for OKDDip-B and {values['ONE'][0]} for ONE" in " ".join(TEXT["README.md"].split())


def test_the_results_are_the_committed_ones():
    """The tables of the study in README.md and results/README.md are those of results/study.md."""
    committed = tables((ROOT / "results" / "study.md").read_text())
    for page, heading in (("README.md", "error of Ind"), ("results/README.md", "epoch 1")):
        (shown,) = [table for table in tables((ROOT / page).read_text()) if heading in table[0]]
        assert shown in committed, f"copy the table with {heading!r} from results/study.md to {page}"


def test_the_model_card_states_the_records():
    """results/weights/README.md against the last epoch of its runs."""
    folder = ROOT / "results" / "weights"
    card = (folder / "README.md").read_text()
    assert hashlib.sha256((folder / "okddip_resnet20.safetensors").read_bytes()).hexdigest() in card
    itself = json.loads((folder / "okddip_resnet20" / "summary.json").read_text())["last"]["attention_self"]
    assert f"`attention_self` is {itself:.2f}" in card
    ((_, *lines),) = tables(card)
    outputs = {"leader": "stu_", "mean of the peers": "mean_", "ensemble of the peers": "", "network": ""}
    for run, output, *cells in lines:
        last = json.loads((folder / run.strip("`/") / "summary.json").read_text())["last"]
        names = [f"{outputs[output]}test_{metric}" for metric in ("accTop1", "accTop5", "loss")]
        assert cells == [f"{last[name]:.2f}" if name in last else "–" for name in names], (run, output)


def test_the_pilot_s_page_has_the_numbers_of_its_records():
    folder, shown = ROOT / "results" / "cifar100", []
    for path in sorted((folder / "pilot").rglob("metrics.jsonl")):
        flags = json.loads((path.parent / "parameters.json").read_text())
        last = json.loads(path.read_text().splitlines()[-1])
        metrics = ("stu_train_accTop1", "stu_test_accTop1", "mean_test_accTop1", "test_accTop1", "attention_self")
        shown.append([f"{flags['train_size']:,}", str(flags["num_epochs"]), *(f"{last[name]:.2f}" for name in metrics)])
    ((_, *table),) = tables((folder / "README.md").read_text())
    assert table == shown


def test_the_pilot_s_script_makes_the_recorded_runs():
    """The same flags, so that more seeds are of the same group."""
    done = subprocess.run(["sh", "scripts/cifar100.sh"], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"DRY_RUN": "1", "METHODS": "OKDDip"})
    found = [vars(importlib.import_module("train_GL").parse_args(shlex.split(line)[2:]))
             for line in done.stdout.splitlines()]
    for path in (ROOT / "results" / "cifar100").rglob("parameters.json"):
        recorded = json.loads(path.read_text())
        assert any(all(recorded[name] == value for name, value in flags.items() if name not in FREE_FLAGS)
                   for flags in found), path


def test_the_scripts_state_the_measured_results():
    """A script's docstring states the result of each of its methods that has been run."""
    header, _, last, *_ = tables((ROOT / "results" / "study.md").read_text())[0]
    results = dict(zip(header, last, strict=True))
    expected = {"train": ["Baseline"], "train_kd": ["KD"], "train_GL": ["OKDDip-B", "OKDDip-N"],
                "train_one": ["ONE", "CL-ILR", "Ind"], "train_DML": ["DML", "DML-detach_targets"],
                "train_FFL": ["FFL"], "train_PCL": ["PCL"], "train_KDCL": ["KDCL (mean)", "KDCL-minlogit"],
                "train_OKDPH": ["OKDPH"]}
    for script, names in expected.items():
        stated = re.findall(r"(\d+\.\d+(?: ± \d+\.\d+)?) % (\(\d+) seeds?\)", importlib.import_module(script).__doc__)
        assert [f"{error} {seeds})" for error, seeds in stated] == [
            results[name] for name in names if results.get(name, "not run") != "not run"], script
