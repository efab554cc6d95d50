"""What a run was made with, against the packages themselves and git repositories made here."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import hisem
from hisem import provenance
from hisem.provenance import git_state, versions


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one commit on the branch `trunk`."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-b", "trunk")
    (folder / "a.py").write_text("a = 1\n")
    git(folder, "add", "a.py")
    git(folder, "commit", "-m", "First")
    return folder


@pytest.fixture(autouse=True)
def no_stated_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HISEM_GIT_COMMIT", raising=False)


def test_versions_are_those_installed() -> None:
    import numpy
    import torch

    found = versions()
    assert found["hisem"] == hisem.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["numpy"] == numpy.__version__
    assert found["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert found["mlflow"] == version("mlflow")
    assert found.get("cuda") == torch.version.cuda
    assert set(found) - {"cuda"} == {"hisem", "python", *provenance.PACKAGES}


def test_versions_import_nothing_heavy() -> None:
    code = "import sys; from hisem.provenance import versions; versions(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "ray", "mlflow", "numpy", "rasterio"} & set(done.stdout.split()) == set()


def test_an_absent_package_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("no-such-package", "numpy"))
    assert set(versions()) - {"cuda"} == {"hisem", "python", "numpy"}


def test_the_cuda_of_torch_is_read_from_its_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for note, cuda in (("cuda: Optional[str] = '12.6'\nhip = None", "12.6"), ("cuda: Optional[str] = None\n", None)):
        folder = tmp_path / str(cuda)
        (folder / "torch").mkdir(parents=True)
        (folder / "torch" / "version.py").write_text(f"__version__ = '9.9'\n{note}\n")
        (folder / "torch-9.9.dist-info").mkdir()
        (folder / "torch-9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9\n")
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(folder))
            assert (versions()["torch"], versions().get("cuda")) == ("9.9", cuda)


def test_a_checkout(checkout: Path) -> None:
    state = {"commit": git(checkout, "rev-parse", "HEAD"), "branch": "trunk"}
    assert git_state(checkout) == {**state, "dirty": "no"}
    (checkout / "a.py").write_text("a = 2\n")
    assert git_state(checkout) == {**state, "dirty": "yes, 1 file"}
    (checkout / "b.py").write_text("b = 1\n")
    assert git_state(checkout)["dirty"] == "yes, 2 files"


def test_a_detached_head_has_no_branch(checkout: Path) -> None:
    git(checkout, "checkout", "--detach")
    assert git_state(checkout) == {"commit": git(checkout, "rev-parse", "HEAD"), "dirty": "no"}


def test_looking_takes_no_lock(checkout: Path) -> None:
    (checkout / ".git" / "index.lock").touch()
    before = (checkout / ".git" / "index").stat().st_mtime_ns
    (checkout / "a.py").touch()
    assert git_state(checkout)["dirty"] == "no"
    assert (checkout / ".git" / "index").stat().st_mtime_ns == before


def test_the_environment_stands_in_where_there_is_no_checkout(
    tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "plain").mkdir()
    assert git_state(tmp_path / "plain") == {}
    assert git_state(tmp_path / "absent") == {}
    monkeypatch.setenv("HISEM_GIT_COMMIT", "c0ffee")
    assert git_state(tmp_path / "plain") == {"commit": "c0ffee", "commit_source": "HISEM_GIT_COMMIT"}
    assert git_state(checkout)["commit"] == git(checkout, "rev-parse", "HEAD")


@pytest.mark.parametrize("program", [None, "#!/bin/sh\nexit 3\n", "#!/bin/sh\nexec /bin/sleep 60\n"])
def test_git_that_is_absent_fails_or_hangs(
    program: str | None, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    if program:
        (programs / "git").write_text(program)
        (programs / "git").chmod(0o755)
    monkeypatch.setattr(provenance, "GIT_SECONDS", 0.5)
    monkeypatch.setenv("PATH", str(programs))
    assert git_state(checkout) == {}


def test_an_installed_package_does_not_speak_for_the_checkout_around_it(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A virtual environment often lies inside a repository, which did not make the package in it.
    site = checkout / ".venv" / "hisem"
    site.mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(site / "provenance.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert git_state() == {}
    monkeypatch.setattr(provenance, "__file__", str(checkout / "hisem" / "provenance.py"))
    assert git_state()["commit"] == git(checkout, "rev-parse", "HEAD")
