"""What `pip install .` gives to a line: it judges photographs, and there is no torch."""

from __future__ import annotations

import json
import os
import subprocess
import venv
from pathlib import Path

import pytest

from conftest import encode, spot_picture

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with Linegate alone, and its `bin` folder."""
    place = tmp_path_factory.mktemp("bare") / "environment"
    venv.create(place, with_pip=True)
    subprocess.run([place / "bin" / "python", "-m", "pip", "install", "--quiet", str(ROOT)], check=True)
    return place / "bin"


def run(program: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run([program, *arguments], cwd=folder, env=clean, capture_output=True, text=True, check=False)


@pytest.mark.timeout(900)
def test_a_bare_install_judges_a_photograph_without_torch(bare: Path, spot_package: Path, tmp_path: Path) -> None:
    heavy = "['torch', 'torchvision', 'albumentations', 'timm', 'sklearn', 'scipy', 'onnx', 'iotcore', 'pytest']"
    code = f"from importlib.util import find_spec; print([name for name in {heavy} if find_spec(name)])"
    assert run(bare / "python", "-c", code, folder=tmp_path).stdout.strip() == "[]"
    for name, defect, status in (("good.png", False, 0), ("bad.png", True, 1)):
        (tmp_path / name).write_bytes(encode(spot_picture(defect=defect)))
        done = run(bare / "linegate", "inspect", name, "--model", str(spot_package), "--json", folder=tmp_path)
        assert done.returncode == status, done.stderr
        assert json.loads(done.stdout)["verdict"] == ("fail" if defect else "pass")


def test_the_wheel_carries_the_page_the_demo_s_model_and_the_data_sets(bare: Path, tmp_path: Path) -> None:
    code = (
        "from linegate.package import ModelPackage; from linegate_edge.demo import demo_package; "
        "from importlib.resources import files; "
        "print(ModelPackage.load(demo_package()).manifest.name, "
        "files('linegate_edge.review').joinpath('pages/live.html').is_file(), "
        "files('linegate_training').joinpath('datasets-manifest.yaml').is_file())"
    )
    done = run(bare / "python", "-c", code, folder=tmp_path)
    assert done.stdout.split() == ["elpv", "True", "True"], done.stderr


@pytest.mark.parametrize("command", [["train", "parts", "--out", "package"], ["demo", "--parts", "1", "--headless"]])
def test_a_command_of_an_extra_says_how_to_install_it(bare: Path, tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "parts" / "train" / "good").mkdir(parents=True)
    (tmp_path / "parts" / "train" / "good" / "a.png").write_bytes(encode(spot_picture(defect=False)))
    done = run(bare / "linegate", *command, folder=tmp_path)
    assert done.returncode == 2
    assert "pip install 'linegate[" in done.stderr
    assert done.stderr.count("\n") == 1, "one line, no traceback"


def test_python_s_own_inspect_module_is_not_shadowed_in_the_checkout(bare: Path) -> None:
    done = run(bare / "python", "-c", "import inspect, asyncio; print(inspect.__file__)", folder=ROOT)
    assert Path(done.stdout.strip()).name == "inspect.py"
