"""The rooms, and what may import what."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = {
    "pyproject.toml", "README.md", "inspect", "training", "models", "edge", "tests", "datasets-manifest.yaml", "Dockerfile",
    "LICENSE", "Makefile", "CHANGELOG.md",
}  # fmt: skip


def tracked() -> list[str]:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return listing.stdout.split("\n")[:-1]


def test_the_top_level_is_as_the_design_names_it() -> None:
    top = {path.split("/")[0] for path in tracked()}
    assert {name for name in top if not name.startswith(".")} <= NAMED


def test_source_roots_are_no_packages() -> None:
    for room in ("inspect", "training", "edge"):
        assert not (ROOT / room / "__init__.py").exists()


def test_inspect_is_the_standard_library_s() -> None:
    assert Path(str(inspect.__file__)).name == "inspect.py"
    done = subprocess.run([sys.executable, "-c", "import inspect; inspect.signature"], cwd=ROOT, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("package", ["linegate.cli", "linegate_edge.station", "linegate_edge.cli", "linegate_training.cli"])
def test_the_line_never_imports_torch(package: str) -> None:
    heavy = ["torch", "torchvision", "albumentations", "timm", "sklearn", "scipy", "onnx"]
    code = f"import sys, {package}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_onnxruntime_calls_nobody_and_writes_nothing_at_home(tmp_path: Path, spot_package: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from linegate.infer import Inspector; "
        "from linegate.package import ModelPackage; "
        "Inspector(ModelPackage.load(Path(sys.argv[1])))"
    )
    home = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"} | {"HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code, str(spot_package)], env=home, check=True)
    assert list(tmp_path.rglob("*")) == []


def test_the_bare_install_asks_for_nothing_of_training() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bare = " ".join(project["dependencies"])
    for name in ("torch", "albumentations", "timm", "scipy", "headless", "elpv", "iotcore", "pytest"):
        assert name not in bare


def test_both_opencv_packages_are_of_one_version() -> None:
    assert version("opencv-python") == version("opencv-python-headless"), "both own the folder cv2"


def test_model_packages_in_git_stay_small() -> None:
    sizes = {path.parent.name: 0 for path in (ROOT / "models").glob("*/package.json")}
    for name in sizes:
        sizes[name] = sum(path.stat().st_size for path in (ROOT / "models" / name).iterdir())
    assert sizes
    assert all(size < 8 * 2**20 for size in sizes.values()), sizes
    assert sum(sizes.values()) < 40 * 2**20


def test_no_python_module_has_outgrown_a_reader() -> None:
    for path in (*ROOT.glob("inspect/**/*.py"), *ROOT.glob("training/**/*.py"), *ROOT.glob("edge/**/*.py")):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 420, f"{path.relative_to(ROOT)} has {lines} lines"
