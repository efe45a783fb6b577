"""README.md as it stands: its commands, one after another, on the digits and for one epoch; its code; its links."""

import ast
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from PIL import Image

import data_loader

TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
LINES = [re.sub(r"\s+#.*", "", line) for kind, block in BLOCKS if kind == "sh" for line in block.splitlines() if line]
PYTHON = [block for kind, block in BLOCKS if kind == "python"]
TRAININGS = [line for line in LINES if line.startswith("python train") and "--resume" not in line]
RESUMED = [line for line in LINES if "--resume" in line]
EVALUATIONS = [line for line in LINES if line.startswith("python evaluate.py")]
REPORTS = [line for line in LINES if line.startswith("python report.py")]
SCRIPTS = [line for line in LINES if re.search(r"(^| )sh scripts/", line)]
QUICK = ["--num_epochs", "1", "--device", "cpu"]


def on_the_digits(line):
    """The words of a command, after ``python``, with another data set and what the commands before it have made."""
    line = line.replace("CIFAR10", "DIGITS").replace("--dataset folder", "--dataset DIGITS")
    return shlex.split(re.sub(r"runs/paper\w*", "DIGITS", line))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Shared: a command uses what those before it made."""
    where = tmp_path_factory.mktemp("commands")
    image = Image.fromarray(data_loader.digits("").test.images[0])
    image.save(where / "a.png")
    image.save(where / "b.jpg")
    return where


def test_no_command_is_left_out():
    """What sets up an environment is run by hand, and by scripts/setup.sh before these tests are."""
    rest = [line for line in LINES if line not in TRAININGS + RESUMED + EVALUATIONS + REPORTS + SCRIPTS]
    assert rest == ["python -m venv .venv && . .venv/bin/activate && pip install -r requirements.txt"]
    assert len(TRAININGS) == len(set(TRAININGS)) == 10 and len(RESUMED) == 2 and EVALUATIONS and REPORTS and SCRIPTS


@pytest.mark.parametrize("command", TRAININGS)
def test_training(command, folder, script):
    _, name, *flags = on_the_digits(command)
    before = set(folder.rglob("summary.json"))
    version = ["--version", "own_images"] if "path/to/images" in command else []  # else it is a run that was made
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
    done = script(name, *flags, *QUICK[2:], cwd=folder)
    assert done.returncode == 0 and done.stdout, done.stderr


@pytest.mark.parametrize("command", REPORTS)
def test_reporting(command, folder, script):
    _, name, *flags = on_the_digits(command)
    done = script(name, *flags, cwd=folder)
    assert done.returncode == 0 and "DIGITS (10 classes)" in done.stdout, done.stderr


@pytest.mark.parametrize("command", SCRIPTS)
def test_shell_script(command):
    """Demo and tests cannot run within the tests; the tables' scripts are run in test_tables.py."""
    path = ROOT / shlex.split(command)[-1]
    assert subprocess.run(["sh", "-n", path]).returncode == 0


def test_network_based_groups(folder, script, image_folder):
    root = image_folder()
    for flags in (["train_GL.py"], ["train_one.py", "--ind"], ["train_one.py", "--avg"]):
        done = script(*flags, "--model", "resnet8", "--dataset", "folder", "--batch_size", "8", "--MulStu", *QUICK,
                      "--data_dir", root, cwd=folder)
        assert done.returncode == 0, done.stderr
    assert {p.parent.name for p in (folder / "folder").glob("*-N/resnet8")} == {"OKDDip-N", "Ind-N", "CL-N"}


def test_a_lone_peer_runs_and_warns(folder, script):
    done = script("train_GL.py", "--model", "resnet8", "--dataset", "DIGITS", "--num_branches", "2", "--version",
                  "lone", *QUICK, cwd=folder)
    assert done.returncode == 0 and "nobody but itself" in done.stderr


def test_own_images(folder, script, image_folder):
    """Files of any size, two classes: colours that a network tells apart at once."""
    root = image_folder(train=40, test=10)
    done = script("train_GL.py", "--model", "resnet8", "--dataset", "folder", "--data_dir", root, "--num_epochs", "6",
                  "--batch_size", "16", "--length", "0", "--device", "cpu", cwd=folder)
    assert done.returncode == 0, done.stderr
    best = json.loads((folder / "folder" / "OKDDip" / "resnet8" / "test_best_metrics.json").read_text())
    assert best["stu_test_accTop1"] >= 90


# --- code -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path):
    """The code alone, to be changed."""
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    shutil.copytree(ROOT / "models", tmp_path / "models")
    return tmp_path


def python(where, *words):
    return subprocess.run([sys.executable, *words], cwd=where, capture_output=True, text=True)


def code_with(word):
    (block,) = [block for block in PYTHON if word in block]
    assert len(block.splitlines()) < 30
    return block


def test_adding_a_network(copy):
    (copy / "models" / "tiny.py").write_text(code_with("NETWORKS = "))
    registry = copy / "models" / "registry.py"
    text = registry.read_text().replace("from . import densenet", "from . import tiny, densenet")
    registry.write_text(text.replace("**imagenet.NETWORKS}", "**imagenet.NETWORKS, **tiny.NETWORKS}"))
    for script, *flags in (["train.py"], ["train_GL.py"], ["train_GL.py", "--MulStu"], ["train_one.py"]):
        done = python(copy, script, "--model", "tiny", "--dataset", "DIGITS", *flags, *QUICK)
        assert done.returncode == 0, done.stderr


def test_adding_a_method(copy):
    (copy / "train_mean.py").write_text(code_with("with_mean"))
    flags = ["train_mean.py", "--model", "resnet8", "--dataset", "DIGITS", "--device", "cpu"]
    done = python(copy, *flags, "--num_epochs", "1", "--loss", "CE")
    assert done.returncode == 0 and "mean of the students" in done.stdout, done.stderr
    again = python(copy, *flags, "--num_epochs", "2", "--loss", "CE", "--resume", "auto")
    assert again.returncode == 0 and "continues after 1 epochs" in again.stdout, again.stderr
    command = copy / "evaluate.py"
    text = command.read_text().replace("import train_kd\n", "import train_kd\nimport train_mean\n")
    command.write_text(text.replace('SCRIPTS = {', 'SCRIPTS = {"Mean": train_mean, '))
    done = python(copy, "evaluate.py", "DIGITS/Mean/resnet8", "--branch", "1", "--export", "one.pth")
    assert done.returncode == 0 and (copy / "one.pth").exists(), done.stderr


@pytest.mark.parametrize("block", [block for block in PYTHON if not re.search("with_mean|NETWORKS = ", block)])
def test_code(block, folder):
    """What loads a leader: after the commands that make one, with this clone on the path."""
    block = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + block.replace("CIFAR10", "DIGITS")
    done = python(folder, "-c", block)
    assert done.returncode == 0, done.stderr


# --- words ------------------------------------------------------------------------------------------------------------


def slug(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "results/README.md"])
def test_links_resolve(name):
    text = (ROOT / name).read_text()
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        assert not anchor or anchor in map(slug, re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)), link


def table_under(heading):
    part = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_difference_has_a_test_that_is_there():
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    rows = table_under("Differences from the authors' code")
    assert len(rows) >= 20
    for *_, held in rows:
        names = re.findall(r"`(test_\w+)`", held)
        assert names or held == "the same" or re.search(r"tests/test_\w+\.py", held), held
        assert all(f"def {name}(" in tests for name in names), held


def test_every_equation_is_where_it_is_said_to_be():
    modules = [importlib.import_module(name) for name in
               ("models.aggregation", "models.branches", "losses", "engine", "run")]
    for _, place in table_under("Where each equation is"):
        names = [name for name in re.findall(r"`([\w.]+)`", place) if not name.startswith("--")]
        assert names
        for name in names:
            first, _, rest = name.partition(".")
            assert any(hasattr(getattr(module, first, None), rest or "__name__") for module in modules), name


def test_every_file_is_told():
    told = " ".join(row[0] for row in table_under("Where what is"))
    assert all(path.name in told for path in ROOT.glob("*.py"))


def test_the_results_are_the_committed_ones():
    committed = (ROOT / "results" / "study.md").read_text()
    table = re.search(r"^### folder .*?\n\n(\|.*?)\n\n", committed, re.MULTILINE | re.DOTALL)[1]
    assert table in TEXT


def test_the_scripts_figures_are_those_of_the_results():
    names, last = re.findall(r"^\|  \|.*?\| (.*) \|$", (ROOT / "results" / "study.md").read_text(), re.MULTILINE)[:2]
    measured = dict(zip(names.split(" | "), last.split(" | "), strict=True))
    expected = {
        "train.py": ["Baseline"],
        "train_kd.py": ["KD", "Baseline"],
        "train_GL.py": ["OKDDip-B", "OKDDip-N"],
        "train_one.py": ["ONE", "CL-ILR", "Ind"],
        "train_DML.py": ["DML"],
    }
    for script, methods in expected.items():
        told = re.findall(r"\d+\.\d+ ± \d+\.\d+", ast.get_docstring(ast.parse((ROOT / script).read_text())))
        assert [f"{figure} (3)" for figure in told] == [measured[name] for name in methods], script
