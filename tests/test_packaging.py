"""What gets installed: the wheel's and the sdist's contents, the entry points, the lock file."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import EntryPoint, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = {"spin_composer", "spin_kernels"}

# Built from a copy of the checkout by setuptools itself: no network, no build isolation, and no
# build/ or egg-info left in the checkout.
BUILD = """
import sys
from setuptools.build_meta import build_sdist, build_wheel
out = sys.argv[1]  # setuptools writes to sys.argv
build_wheel(out)
build_sdist(out)
"""


def declared_entry_points() -> list[EntryPoint]:
    groups: dict[str, dict[str, str]] = {
        **PROJECT["entry-points"],
        "console_scripts": PROJECT["scripts"],
    }
    return [
        EntryPoint(name, value, group)
        for group, entries in groups.items()
        for name, value in entries.items()
    ]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the sdist."""
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout, so the list of the project's files is unknown")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(out)],
        cwd=source, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def built(archives: tuple[Path, Path]) -> tuple[set[str], set[str]]:
    """Names of the files in the wheel and in the sdist (there below the sdist's own folder)."""
    wheel, sdist = archives
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    return in_wheel, in_sdist


def test_wheel_holds_the_packages_and_nothing_else(built: tuple[set[str], set[str]]):
    tops = {name.split("/")[0] for name in built[0]}
    assert {name for name in tops if not name.endswith(".dist-info")} == PACKAGES


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_every_module_is_shipped(built: tuple[set[str], set[str]], kind: str):
    roots = {"spin_composer": ROOT, "spin_kernels": ROOT / "kernels"}
    base = ROOT if kind == "sdist" else None
    for package, root in roots.items():
        for path in (root / package).rglob("*.py"):
            name = path.relative_to(base or root).as_posix()
            assert name in built[kind == "sdist"], f"{name} is missing from the {kind}"


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_the_parts_of_the_reports_page_are_shipped(built: tuple[set[str], set[str]], kind: str):
    names = {f"spin_composer/report/page.{ending}" for ending in ("html", "css", "js")}
    assert names <= built[kind == "sdist"]


def test_the_demos_yaml_is_read_from_the_installed_package(
    archives: tuple[Path, Path], tmp_path: Path
):
    with zipfile.ZipFile(archives[0]) as wheel:
        wheel.extractall(tmp_path / "site")
    program = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from omegaconf import OmegaConf
from spin_composer.demo.run import Paths, prepare
from spin_composer.settings import yaml
assert yaml.__file__.startswith(sys.argv[1])
paths = Paths(Path("demo"))
prepare(paths)
config = OmegaConf.to_container(yaml.read_yaml(paths.yaml, []))
print(yaml.validate(config).store)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "site")],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "runs/demo/spin/self-play"


def test_sdist_holds_license_and_yamls_but_no_tests(built: tuple[set[str], set[str]]):
    assert {"LICENSE", "yamls/zephyr-7b-ultrachat.yaml"} <= built[1]
    assert not [name for name in built[1] if {"tests", "benchmarks"} & set(name.split("/"))]


def test_kernels_are_a_distribution_of_their_own(tmp_path: Path):
    kernels = ROOT / "kernels"
    source = shutil.copytree(kernels, tmp_path / "kernels", ignore=shutil.ignore_patterns("*.egg*"))
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)],
        cwd=source, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("spin_kernels-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    modules = {f"spin_kernels/{path.name}" for path in (kernels / "spin_kernels").glob("*.py")}
    shipped = {name for name in names if not name.startswith("spin_kernels-0")}
    assert shipped == modules | {"spin_kernels/py.typed"}
    # it runs on a CPU without triton, and from where it was unpacked
    program = """
import sys
sys.modules["triton"] = None
sys.path.insert(0, sys.argv[1])
import torch, spin_kernels
assert spin_kernels.__file__.startswith(sys.argv[1])
hidden = torch.ones(2, 3, requires_grad=True)
args = hidden, torch.eye(4, 3), torch.tensor([0, 3])
bounds = torch.tensor([0, 1, 2])
spin_kernels.linear_pair_loss(*args, bounds, lambda real, generated: generated - real)[0].backward()
print(float(spin_kernels.linear_log_softmax_gather(*args).sum()), float(hidden.grad.sum()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "site")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    # logits (1, 1, 1, 0): targets 0 and 3; the loss is the log of the second less the first
    total = math.log(3 * math.e + 1)
    logps, gradient = map(float, done.stdout.split())
    assert logps == pytest.approx(1 - 2 * total, abs=1e-5)
    assert gradient == pytest.approx(-1, abs=1e-5)


def test_modules_lie_in_packages():
    # A folder without __init__.py would still be shipped, as a namespace package, but pyright and
    # pytest see it differently: every folder with modules is a package.
    for package in (ROOT / "spin_composer", ROOT / "kernels" / "spin_kernels"):
        for path in package.rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), f"{path.parent} has no __init__.py"


@pytest.mark.parametrize("point", declared_entry_points(), ids=lambda p: f"{p.group}:{p.name}")
def test_entry_points_lead_to_objects(point: EntryPoint):
    assert callable(point.load())


def test_installed_entry_points_are_the_declared_ones():
    installed = {(p.group, p.name, p.value) for p in distribution("spin-composer").entry_points}
    declared = {(p.group, p.name, p.value) for p in declared_entry_points()}
    assert installed == declared, "pyproject.toml changed: run `make install`"


def test_entry_points_are_found_by_llm_foundry():
    from llmfoundry import registry

    for point in declared_entry_points():
        if point.group.startswith("llmfoundry_"):
            found = getattr(registry, point.group.removeprefix("llmfoundry_")).get(point.name)
            assert found is point.load()


def locked() -> dict[str, list[Requirement]]:
    pins: dict[str, list[Requirement]] = {}
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            pins.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return pins


def test_lock_names_versions_and_no_addresses():
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert not re.search(r"://| @ |--|\bfile:", text)
    for pins in locked().values():
        for pin in pins:
            assert [specifier.operator for specifier in pin.specifier] == ["=="], str(pin)


def test_lock_satisfies_what_the_project_asks_for():
    pins = locked()
    extras = PROJECT["optional-dependencies"]
    wanted = PROJECT["dependencies"] + [line for lines in extras.values() for line in lines]
    for line in wanted:
        requirement = Requirement(line)
        found = pins.get(canonicalize_name(requirement.name))
        assert found, f"{requirement.name} is not in requirements.lock"
        for pin in found:
            version = next(iter(pin.specifier)).version
            assert requirement.specifier.contains(version), f"{pin} does not fit {line}"


def test_lock_is_what_is_installed_here():
    from importlib.metadata import version

    for name, pins in locked().items():
        for pin in pins:
            if pin.marker is None or pin.marker.evaluate():
                assert version(name) == next(iter(pin.specifier)).version, f"{name}: make install"


def test_package_version_is_the_project_version():
    import spin_composer

    assert spin_composer.__version__ == PROJECT["version"]


def test_the_citation_names_the_version_that_is_packaged() -> None:
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE)
    assert cited is not None
    assert cited[1] == PROJECT["version"]
