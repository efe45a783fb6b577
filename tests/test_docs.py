"""README.md, CONTRIBUTING.md and docs/ as they are: their commands, code, links, and what they say about the code.

Commands run one after another, as a reader would type them, on a few digits and for one epoch. They run in this
process, except where processes are the point.
"""

import hashlib
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from statistics import fmean, stdev

import pytest
from conftest import ROOT, few_digits
from image_data import make_images
from PIL import Image

import data_loader
import methods
from analysis.records import find_runs
from benchmarks.cost import operations
from runtime.errors import Complete

PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
TEXT = {page: (ROOT / page).read_text() for page in PAGES}
BLOCKS = {page: re.findall(r"^```(\w+)\n(.*?)^```$", TEXT[page], re.MULTILINE | re.DOTALL) for page in PAGES}
EXTENDING = "docs/extending.md"  # its code is written into a copy of the repository, and its commands run there
NET = """from torch import nn


class Net(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(16, num_classes)
"""
QUICK = ["--num_epochs", "1", "--train_size", "64", "--batch_size", "32", "--device", "cpu"]


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
READING = [line for line in LINES if line.startswith(("python evaluate.py", "python report.py"))]
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
    (where / "net.py").write_text(NET)
    make_images(where / "path" / "to" / "images", 40, 10, size=(40, 36))  # a network tells their colours apart at once
    with few_digits():
        yield where


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """run("train.py", "--model", ...) -> what the script prints if it is started in the folder."""
    def start(name, *flags):
        monkeypatch.setattr(sys, "argv", [name, *flags])  # recorded as the run's command
        importlib.import_module(name.removesuffix(".py")).main(list(flags))
        return "".join(capsys.readouterr())

    monkeypatch.chdir(folder)
    return start


# --- commands ---------------------------------------------------------------------------------------------------------


def test_every_command_is_tested():
    """Except those that set up an environment. scripts/setup.sh does the same before these tests run."""
    rest = [line for line in LINES if line not in TRAININGS + NODES + RESUMED + READING + SCRIPTS]
    assert rest == [
        "git clone URL okddip && cd okddip",
        "python -m venv .venv && .venv/bin/pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu",
        "python -m venv .venv && . .venv/bin/activate && pip install -r requirements.txt"]


@pytest.mark.parametrize("command", TRAININGS)
def test_training(command, folder, run):
    _, name, *flags = shlex.split(quick(command))
    own = "path/to/images" in command
    faster = ["--lr", "0.02"] if "adamw" in command else []
    before = set(folder.rglob("summary.json"))
    quicker = ["--num_epochs", "6", "--batch_size", "16", "--length", "0", *faster] if own else QUICK
    printed = run(name, *flags, *quicker)
    (made,) = set(folder.rglob("summary.json")) - before
    best = json.loads(made.read_text())["best"]
    assert 0 < best["test_accTop5"] <= 100 and f"best epoch {best['epoch']}" in printed
    assert "diversity" in printed if "dist" in best else "network" in printed
    assert not own or best["stu_test_accTop1"] >= 90


@pytest.mark.parametrize("command", RESUMED)
def test_resuming(command, folder, run):
    """After the others: there is nothing left to do."""
    program, *words = [*on_the_digits(command), *QUICK]
    if program == "python":
        with pytest.raises(Complete, match="is complete: 1 epochs"):
            run(*words)
        return
    words = [ROOT / word if word.startswith("train") else word for word in words]
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", *words], cwd=folder, capture_output=True,
                          text=True)
    assert done.returncode == 0 and "is complete: 1 epochs" in done.stdout, done.stderr


@pytest.mark.parametrize("command", READING)
def test_evaluating_and_reporting(command, run):
    name, *words = on_the_digits(command)[1:]
    printed = run(name, *words, *["--device", "cpu"] * (name == "evaluate.py"))
    assert printed and (name == "evaluate.py" or "DIGITS (10 classes)" in printed)


def test_shell_scripts():
    """Demo and tests cannot run within the tests; tests/scripts/ runs the scripts of the tables."""
    for path in {word for command in SCRIPTS for word in shlex.split(command) if word.startswith("scripts/")}:
        assert subprocess.run(["sh", "-n", ROOT / path]).returncode == 0, path


@pytest.mark.parametrize("block", [block for page in PAGES if page != EXTENDING for block in blocks("python", page)])
def test_code(block, folder, monkeypatch):
    """What loads a network: after the commands that make one."""
    monkeypatch.chdir(folder)
    exec(quick(block).replace("path/to/this/repository", str(ROOT)), {})


# --- extending --------------------------------------------------------------------------------------------------------


def code_with(word):
    """The Python block of docs/extending.md that has this word."""
    (block,) = [block for block in blocks("python", EXTENDING) if word in block]
    return block


def insert(path, before, text):
    """Write ``text`` in front of the only place in a file that reads ``before``."""
    content = path.read_text()
    assert content.count(before) == 1, f"{path.name} has no single place that reads {before!r}"
    path.write_text(content.replace(before, text + before))


def test_an_added_network_and_method(tmp_path):
    """The commands of docs/extending.md in a copy of the code: train, resume, export, report, join the study.

    Besides: branches and networks of the added network, and what evaluate.py prints about the method.
    """
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    for path in (*(path.parent for path in ROOT.glob("*/__init__.py")), ROOT / "scripts", ROOT / "results"):
        shutil.copytree(path, tmp_path / path.name, ignore=shutil.ignore_patterns("__pycache__", "study", "figures"))
    (tmp_path / "models" / "tiny.py").write_text(code_with("NETWORKS = "))
    insert(tmp_path / "models" / "registry.py", "densenet, external", "tiny, ")
    insert(tmp_path / "models" / "registry.py", "**densenet.NETWORKS", "**tiny.NETWORKS, ")
    (tmp_path / "train_mean.py").write_text(code_with("class Mean(Group)"))
    insert(tmp_path / "methods.py", '    "baseline": Entry(', code_with("Entry("))

    lines, tiny = [], ["--model", "tiny", "--dataset", "DIGITS", *QUICK]
    for command in commands(EXTENDING):
        if "study.sh" in command:
            done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True,
                                  env=os.environ | {"DRY_RUN": "1", "SEEDS": "0", "PYTHON": sys.executable})
            command = f"{done.stdout.splitlines()[1]} --dataset DIGITS --model resnet8"
        lines.append([*on_the_digits(command)[1:], *(QUICK if "python train" in command else [])])
        lines[-1] += ["--num_epochs", "2"] * ("--num_epochs 300" in command)
    lines += [["train_one.py", *tiny], ["train_GL.py", *tiny, "--MulStu"],
              ["evaluate.py", "DIGITS/Mean/resnet8", "--device", "cpu"]]
    run_all = ("import importlib, json, sys\nfor name, *flags in json.loads(sys.argv[1]):\n"
               "    importlib.import_module(name.removesuffix('.py')).main(flags)")
    done = subprocess.run([sys.executable, "-c", run_all, json.dumps(lines)], cwd=tmp_path, capture_output=True,
                          encoding="utf-8")
    assert done.returncode == 0, done.stderr
    runs = ("DIGITS/OKDDip/tiny", "DIGITS/ONE/tiny", "DIGITS/OKDDip-N/tiny", "DIGITS/Mean/resnet8",
            "runs/study/DIGITS/Mean/resnet8_seed0")
    assert all((tmp_path / run / "summary.json").exists() for run in runs) and (tmp_path / "branch.pth").exists()
    assert "continues after 1 epochs" in done.stdout and re.search(r"^\| Mean +\|", done.stdout, re.MULTILINE)
    assert re.search(r"Mean, resnet8, epoch \d; .*^mean of the students +\d", done.stdout, re.MULTILINE | re.DOTALL)


# --- links ------------------------------------------------------------------------------------------------------------


def slug(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("name", [*PAGES, "CHANGELOG.md", "results/README.md", "results/weights/README.md"])
def test_links_resolve(name):
    text = (ROOT / name).read_text()
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        assert not anchor or anchor in map(slug, re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)), link


def has(path, name):
    """Whether a module has this function, class or method; whether a file of tests has this test."""
    if path.startswith("tests/"):
        return f"\ndef {name}(" in (ROOT / path).read_text()
    value = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    for part in name.split("."):
        value = getattr(value, part, None)
    return value is not None


@pytest.mark.parametrize("page", PAGES)
def test_what_is_named_is_in_the_file_that_is_linked(page):
    """Links such as [`OKDDip.forward`](../models/branches.py)."""
    links = re.findall(r"\[`([\w.]+)`\]\(([^)]+\.py)\)", TEXT[page])
    places = [(os.path.relpath((ROOT / page).parent / path, ROOT), name) for name, path in links]
    assert [place for place in places if not has(*place)] == []


# --- what pages say ---------------------------------------------------------------------------------------------------


def tables(text):
    """The tables of a page: lists of rows, without the ruler. A row is a list of cells."""
    found = [[[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines()]
             for part in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)]
    return [[header, *lines] for header, _, *lines in found]


def test_every_difference_names_its_test():
    ((_, *differences),) = tables(TEXT["docs/differences.md"])
    assert all(re.search(r"\[`test_\w+`\]", test) for *_, test in differences)


def test_every_method_has_a_section_of_three_parts():
    """What its paper states, what its authors' code does, and what is here, with a link to its loss."""
    _, *parts = re.split(r"^##+ ", TEXT["docs/equations.md"], flags=re.MULTILINE)
    sections = dict(part.split("\n", 1) for part in parts)
    for name in methods.METHODS.keys() - {"baseline", "OKDDip-N"}:
        _, paper, code, here = re.split(r"^\*\*(?:Paper|Authors' code|Here)\b", sections[name], flags=re.MULTILINE)
        assert paper.strip() and code.strip() and re.search(r"\[`\w+_loss`\]\(../losses.py\)", here), name


def test_every_file_is_on_the_map():
    """CONTRIBUTING.md names every Python file at the root and every package."""
    ((_, *lines),) = tables(TEXT["CONTRIBUTING.md"])
    named = set(" ".join(re.sub("[`,]", " ", name) for name, _ in lines).split())
    assert {path.name for path in ROOT.glob("*.py")} <= named
    assert {f"{path.parent.name}/" for path in ROOT.glob("*/__init__.py")} <= named


def test_every_flag_exists(capsys):
    """The flags that the pages name are in --help of a script."""
    names = {entry.module for entry in methods.METHODS.values()}
    names |= {"evaluate", "report", "benchmarks.cost", "benchmarks.loader", "benchmarks.step"}
    for module in names:
        with pytest.raises(SystemExit):
            importlib.import_module(module).parse_args(["--help"])
    known = set(re.findall(r"--\w+", capsys.readouterr().out))
    known |= {"--standalone", "--nproc_per_node", "--nnodes", "--node_rank", "--rdzv_endpoint"}  # torchrun's
    known |= {"--time", "--cpus", "--partition", "--gres", "--signal", "--requeue", "--termseq"}  # SLURM's, parallel's
    known |= {"--array", "--dependency", "--job", "--nodes", "--ntasks"}  # SLURM's
    known |= {"--runslow", "--index"}  # of the tests, of pip
    for page in PAGES:
        assert set(re.findall(r"(?<![\w-])--[a-zA-Z]\w*", TEXT[page])) <= known, page


def test_pages_are_short():
    """So that a newcomer reads them once."""
    results = (ROOT / "results" / "README.md").read_text()
    assert len(TEXT["README.md"].splitlines()) <= 170 and len(TEXT["README.md"].split()) <= 1500
    assert len(results.split()) <= 900


def test_the_costs_of_the_methods():
    """The factors beside the training commands of README.md: their operations, relative to the baseline's."""
    of_page = " ".join(TEXT["README.md"].split())
    stated = re.findall(r"^(python train.*?) +# (\d\.\d)x ", TEXT["README.md"], re.MULTILINE)
    stated.append((re.search(r"^python train_kd.*$", TEXT["README.md"], re.MULTILINE).group(),
                   re.search(r"KD has (\d\.\d)", of_page).group(1)))
    baseline = operations(stated[0][0])
    assert len(stated) == 12 and [cost for _, cost in stated] == [
        f"{operations(command) / baseline:.1f}" for command, _ in stated]


def test_the_page_of_the_study(monkeypatch, capsys):
    """It is what report.py prints for the committed records. (Of the older study: tests/test_report.py.)"""
    monkeypatch.chdir(ROOT)
    importlib.import_module("report").main(["results/cifar100"])
    assert capsys.readouterr().out == (ROOT / "results" / "cifar100" / "study.md").read_text(), "run report.py again"


def test_the_pilot():
    """The table of results/README.md: OKDDip-B minus Baseline and minus Ind, over seeds 0 and 1, at each size."""
    (_, *lines), *_ = tables((ROOT / "results" / "README.md").read_text())
    for images, epochs, *cells in lines:
        records = ROOT / "results" / "cifar100" / f"{images.replace(',', '')}_images_{epochs}_epochs"
        errors = {(run.flags["method"], run.flags["seed"]): run.error("last", run.output)[0]
                  for run in find_runs([records])[0]}
        for name, cell in zip(("baseline", "Ind"), cells, strict=True):
            minus = [errors["OKDDip", seed] - errors[name, seed] for seed in (0, 1)]
            assert cell == f"{fmean(minus):.2f} ({stdev(minus):.2f})"


@pytest.mark.parametrize("page", ["README.md", "results/README.md"])
def test_numbers_in_prose(page):
    """Each decimal number about results is in a table of report.py, in the table of the same page, or published."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    text = text.partition("## Results\n")[2].partition("\n## ")[0] if page == "README.md" else text
    sources = ("study.md", "cifar100/study.md", "published.json")
    known = "".join((ROOT / "results" / name).read_text() for name in sources)
    known += "".join(line for line in text.splitlines() if line.startswith("|")) + "0.1 2.11.0"
    numbers = set(re.findall(r"\d+\.\d+", text))
    assert numbers and numbers <= set(re.findall(r"\d+\.\d+", known)), numbers - set(re.findall(r"\d+\.\d+", known))


def published(network):
    """The numbers for CIFAR-100 in results/published.json, method -> error: of the paper, and of the others."""
    layout = json.loads((ROOT / "results" / "published.json").read_text())["tables"]["table2"]
    (row,) = [row for row in layout["rows"] if row["name"] == network]
    names = [column["name"] for column in layout["columns"]]
    return [{name: f"{pair[0]:.2f}" for name, pair in zip(names, of["published"], strict=True) if pair}
            for of in (row, *row["others"])]


def tables_of_the_study():
    """The tables with 10,000 images in results/cifar100/study.md: the errors, then the differences."""
    page = (ROOT / "results" / "cifar100" / "study.md").read_text()
    return tables(page.partition("## 10,000 training images")[2].partition("## 2,500 training images")[0])


def test_the_results_of_readme():
    """The paper's numbers are those of results/published.json, the measured ones those of the records."""
    (shown,) = [table for table in tables(TEXT["README.md"]) if table[0][0] == "method"]
    (paper, *_), ((_, *errors), *others) = published("ResNet-32"), tables_of_the_study()
    against_ind = next(table for table in others if "compared with Ind" in table[0])
    measured = {name: [error, seeds] for name, seeds, error, *_ in errors if int(seeds) > 2}
    minus = {name: f"{difference} ({interval})" for name, difference, interval, *_ in against_ind if name in measured}
    assert measured.keys() & paper.keys() <= {name for name, *_ in shown}
    for name, *cells in shown[1:]:
        assert cells == [paper[name], *measured.get(name, ["–", "–"]), minus.get(name, "–")], name


def test_the_published_numbers_beside_the_study():
    """The table of results/README.md whose lines are the sources."""
    _, ((_, *methods), *lines) = tables((ROOT / "results" / "README.md").read_text())
    (_, *errors), *_ = tables_of_the_study()
    here = {name: error for name, seeds, error, *_ in errors if int(seeds) > 2}
    for (_, *cells), source in zip(lines, [*published("ResNet-32"), here], strict=True):
        assert cells == [source.get(name, "–") for name in methods]


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


def test_the_scripts_state_the_measured_results():
    """A script's docstring states the result of each of its methods that has been run."""
    (_, *lines), *_ = tables((ROOT / "results" / "study.md").read_text())
    (_, *newer), *_ = tables_of_the_study()
    results = {name: f"{error} ({seeds})" for name, seeds, error, *_ in [*lines, *newer] if int(seeds) > 2}
    expected = {"train": ["Baseline"], "train_kd": ["KD"],
                "train_GL": ["OKDDip-B", "OKDDip-mean", "OKDDip-others", "OKDDip-N"],
                "train_one": ["ONE", "CL-ILR", "Ind"], "train_DML": ["DML", "DML-detach_targets"],
                "train_FFL": ["FFL"], "train_PCL": ["PCL"], "train_KDCL": ["KDCL (mean)", "KDCL-minlogit"],
                "train_OKDPH": ["OKDPH"]}
    for script, names in expected.items():
        stated = re.findall(r"(\d+\.\d+(?: ± \d+\.\d+)?) % (\(\d+) seeds?\)", importlib.import_module(script).__doc__)
        assert [f"{error} {seeds})" for error, seeds in stated] == [
            results[name] for name in names if name in results], script
