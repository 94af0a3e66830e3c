"""Links, files, commands, settings, Python and figures in the documents are correct.

The tests here only parse. Tests that run examples are next to the tests of the same feature.
"""

import ast
import functools
import importlib
import inspect
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Unpack, get_args, get_origin, get_type_hints

import pytest

from blip3o import Blip3oPipeline
from blip3o.cli import build_parser
from blip3o.cli_eval import COMMANDS as EVAL_COMMANDS
from blip3o.core.config import override
from blip3o.core.errors import UsageError
from blip3o.curate.config import read_curation
from blip3o.eval import BENCHMARKS
from blip3o.models.backbones.qwen2_5_vl import Qwen2_5VLBackboneConfig
from blip3o.recipes import RECIPES, qwen2_5_vl
from blip3o.runs.scenes import ScenesConfig
from blip3o.runs.start import Stages, load_recipe
from blip3o.study import STUDIES
from blip3o.study.grid import resolve
from blip3o.train.config import RunConfig

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "blip3o"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [page for page in PAGES if page.name != "log.md"]  # describes the past
NAMES = [page.name for page in PAGES]
USUAL = ("own_data", "pocket.tune", "blip3o_4b.tune", "blip3o_4b.joint")
"""Recipes that are tried for a setting whose text names no recipe."""
WIDTH = 110

each_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)


class Block(NamedTuple):
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```(\S*)[^\n]*\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    return [Block(*one) for one in found]


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def spans(page: Path) -> list[str]:
    """Returns the code spans of the running text, each on one line."""
    return [" ".join(one.split()) for one in re.findall(r"`([^`]+)`", prose(page))]


def recipe_docs() -> Iterator[str]:
    for file in sorted((SOURCE / "recipes").glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.FunctionDef):
                yield ast.get_docstring(node) or ""


def words_of(line: str) -> list[str] | None:
    """Returns the words after `blip3o` in a shell line; None if the line calls another program."""
    if "..." in line or " | " in line:  # a summary, not a command
        return None
    try:
        words = shlex.split(line.removeprefix("$ ").partition("  #")[0], comments=True)
    except ValueError:
        return None
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # environment variables
        words.pop(0)
    if words and words[0] == "torchrun" and "blip3o" in words:
        words = words[words.index("blip3o") :]
    if words and words[0] == "sbatch":
        (script,) = (n for n, word in enumerate(words) if word.endswith("train.sbatch"))
        words = ["blip3o", "train", *words[script + 1 :]]
    if ">" in words:
        words = words[: words.index(">")]
    if not words or words[0] != "blip3o" or len(words) == 1:
        return None
    return [word for word in words[1:] if word != "&"]


def commands() -> Sequence[object]:
    """Returns the words of every command, and whether the text only mentions it."""
    lines = [
        (page.name, line, False)
        for page in PAGES
        if page.name != "tutorial.md"  # adds names; tests/e2e/tutorial runs its commands
        for block in blocks(page)
        if block.language in ("", "console", "bash")
        for line in block.text.replace("\\\n", " ").splitlines()
    ]
    lines += [(page.name, span, True) for page in PAGES for span in spans(page)]
    lines += [("recipes", line, False) for text in recipe_docs() for line in text.splitlines()]
    found = []
    for where, line, is_mention in lines:
        words = words_of(re.sub(r"(?<=\S)   +[a-z].*", "", line.strip()))  # a comment in a column
        if words is not None:
            found.append(pytest.param(words, is_mention, id=f"{where}: {' '.join(words)}"))
    return found


@pytest.mark.parametrize(("words", "is_mention"), commands())
def test_commands_are_valid(
    words: list[str], is_mention: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    options, status = None, None
    if words[0] == "eval" and words[1:2] and words[1] in EVAL_COMMANDS:  # as in `cli.main`
        words = [" ".join(words[:2]), *words[2:]]
    try:
        options = parser().parse_args(words)
    except SystemExit as stop:
        status = stop.code
    if options is None:
        error = capsys.readouterr().err
        is_cut_short = "are required" in error or "expected one argument" in error
        assert status == 0 or (is_mention and is_cut_short), error
        return
    given = vars(options)
    if "recipe" in given:
        check_recipe(options.recipe, options.overrides)
    elif given.get("curation"):
        if not options.curation.endswith(".yaml"):  # a file of the reader
            read_curation(options.curation, options.overrides)
    elif given.get("benchmark"):
        override(BENCHMARKS.get(options.benchmark)(), options.overrides)
    elif given.get("study"):
        resolve(STUDIES.get(options.study)(), options.overrides, Path("shared"))
    elif words[0] == "scenes":
        override(ScenesConfig(), options.overrides)
    elif words[0] == "recipes" and options.name not in (None, "NAME"):
        RECIPES.get(options.name)
    if given.get("set"):
        override(qwen2_5_vl.model(Qwen2_5VLBackboneConfig.published_4b()), options.set)


parser = functools.cache(build_parser)


@functools.cache
def recipe(name: str) -> RunConfig | Stages:
    return load_recipe(name, Path("runs"))


def check_recipe(name: str, overrides: list[str]) -> None:
    if name.isupper() or name.endswith(".yaml"):  # a placeholder, or a file of the reader
        assert fits_some_run(overrides)
    else:
        assert not refusal(name, overrides)


def fits_some_run(assignments: list[str]) -> bool:
    return any(not refusal(name, assignments) for name in USUAL)


def refusal(name: str, assignments: list[str]) -> str:
    """Returns why the settings do not fit a recipe; one of several stages takes none here."""
    config = recipe(name)
    if not isinstance(config, RunConfig):
        return "\n".join(assignments)
    try:
        override(config, assignments)
    except UsageError as error:
        return str(error)
    return ""


@each_page
def test_settings_in_running_text_exist(page: Path) -> None:
    for span in spans(page):
        found = re.fullmatch(r"((?:train|data|objectives|init)\.[a-z][\w.]*\w)(=.+)?", span)
        if found is None or found[1].endswith((".py", ".jsonl")):
            continue
        if found[2] is None:  # no value fits all settings, but an unknown name is reported so
            errors = [refusal(name, [f"{span}=null"]) for name in USUAL]
            assert not all("unknown config key" in one for one in errors), errors
        else:
            assert fits_some_run([span]), span


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}


@each_page
def test_links_have_a_target(page: Path) -> None:
    text = prose(page)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target}"


@each_page
def test_named_files_exist(page: Path) -> None:
    for span in spans(page):
        for name in re.findall(r"[\w./-]+/[\w-]+\.(?:py|md|sbatch|toml)", span):
            if name.endswith("/x.py"):  # the file of a new part
                name = name.removesuffix("/x.py")
            places = [base / name for base in (ROOT, SOURCE)]
            assert any(place.exists() for place in places), f"{page.name}: {name}"


@each_page
def test_named_functions_exist(page: Path) -> None:
    """A span such as `flow/path.py: interpolate` names a module and a name in it."""
    for span in spans(page):
        found = re.fullmatch(r"([\w/]+)\.py: ([\w.]+)", span)
        if found is None:
            continue
        target: object = importlib.import_module(f"blip3o.{found[1].replace('/', '.')}")
        for name in found[2].split("."):
            assert hasattr(target, name), f"{page.name}: {span}"
            target = getattr(target, name)


def test_quoted_messages_exist() -> None:
    """Every part of a message under "When it breaks" is in a string of the source."""
    sources = " ".join(file.read_text(encoding="utf-8") for file in sorted(SOURCE.rglob("*.py")))
    strings = re.sub(r'"\s*\n\s*f?"', "", sources)  # joins strings that span lines
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").partition("## When it")[2]
    messages = re.findall(r"`([^`]*)`", "".join(re.findall(r"^- (`.*?`):", text, re.M)))
    assert len(messages) >= 10
    for message in messages:
        for part in re.split(r"\.\.\.|\bN\b", message):
            assert part.strip(" ,=") in strings, message


@each_page
def test_targets_of_make_exist(page: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    code = [*(b.text for b in blocks(page) if b.language == "console"), *spans(page)]
    for name in re.findall(r"^make ([a-z-]+)", "\n".join(code), re.M):
        assert name in targets, f"{page.name}: make {name}"


@each_page
def test_lines_are_not_too_long(page: Path) -> None:
    lines = [line for line in prose(page).splitlines() if not line.startswith("|")]
    long = [line for line in lines if len(re.sub(r"`[^`]*`", "", line)) > WIDTH]
    assert not long, long


def python_blocks() -> Sequence[object]:
    return [
        pytest.param(block.text, id=f"{page.name} {number}")
        for page in PAGES
        for number, block in enumerate(b for b in blocks(page) if b.language == "python")
    ]


@pytest.mark.parametrize("code", python_blocks())
def test_python_examples_use_existing_names(code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("blip3o"):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, one.name) for one in node.names), ast.unparse(node)
        if isinstance(node, ast.Call):
            check_call(node)


def check_call(node: ast.Call) -> None:
    """Checks that the pipeline has the method and that the method has the arguments."""
    match node.func:
        case ast.Name(id="pipe"):
            method = Blip3oPipeline.__call__
        case ast.Attribute(value=ast.Name(id="pipe" | "Blip3oPipeline"), attr=name):
            method = getattr(Blip3oPipeline, name)
        case _:
            return
    known = {*inspect.signature(method).parameters}
    for hint in get_type_hints(method).values():
        if get_origin(hint) is Unpack:  # keyword arguments that a TypedDict lists
            known |= {*get_type_hints(*get_args(hint))}
    for keyword in node.keywords:
        assert keyword.arg in known, ast.unparse(node)


def test_every_table_of_parts_is_in_its_documented_file() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w ]+) \| `([\w/]+)\.py` \| (.*?) \|", text, re.M)
    assert len(rows) >= 10
    for part, file, tables in rows:
        module = importlib.import_module(f"blip3o.{file.removesuffix('/x').replace('/', '.')}")
        for table in re.findall(r"`([A-Z_]+)`", tables):
            assert hasattr(module, table), f"{part}: {table}"


def test_figures_equal_the_measured_ones() -> None:
    """docs/results.md has the figures of the model card and of the stored benchmarks."""
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    card = (SOURCE / "pocket" / "README.md").read_text(encoding="utf-8")
    stored = re.findall(r"^\| [\w ,]+ \| (\d\.\d{3}) \|$", card, re.M)
    documented = re.findall(r"^\| [^|]+ \| (\d\.\d{3}) \|", results, re.M)
    assert documented
    assert documented == stored
    times = json.loads((ROOT / "benchmarks/results/generate.json").read_text(encoding="utf-8"))
    seconds = {row["variant"]: row["wall_s"]["median"] for row in times["rows"]}
    assert f"process start to files | {seconds['generate']:.1f} s |" in results
    assert f"warm, one batch | {seconds['batch_of_4']:.2f} s |" in results
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    repeated = re.findall(r"^\| [^|]+ \| [\d.]+(?: s)? \| [\d.]+(?: s)? \|$", readme, re.M)
    assert repeated
    assert set(repeated) <= set(results.splitlines())


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150


def test_every_document_is_on_the_site_and_in_the_indexes() -> None:
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    start = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert f" {page.name}\n" in site, page.name
        if page.name != "index.md":
            assert f"({page.name})" in start, page.name
            assert f"(docs/{page.name})" in readme, page.name


def test_the_log_has_dated_entries_and_an_index_that_leads_to_them() -> None:
    log = ROOT / "docs" / "log.md"
    text = log.read_text(encoding="utf-8")
    titles = re.findall(r"^## (.*)$", text, re.M)
    assert titles[0] == "Lessons"
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d, [^:]+: .+", one) for one in titles[1:])
    assert titles[1:] == sorted(titles[1:], key=lambda title: title[:10])
    links = re.findall(r"^\[\w+\]: #(\S+)$", text, re.M)
    assert links
    assert set(links) <= anchors(log)
    assert len(set(re.findall(r"\]\[(\w+)\]", text))) == len(links)
    cited = [file.read_text(encoding="utf-8") for file in sorted(SOURCE.rglob("*.py"))]
    assert not any(re.search(r"\bsessions? \d", one) for one in [text, *cited])
