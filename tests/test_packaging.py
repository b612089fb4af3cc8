"""Wheel, editable install and checkout, each in a virtual environment of its own: ``twistd`` must find the plugin.

These tests take seconds: they build, install and start for real. No package index is asked. What a fresh environment
would have installed as dependencies is linked from this one's; of claude-proxy itself nothing is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from configparser import ConfigParser
from pathlib import Path

import attrs
import pytest

from twisted_proxy import __version__

ROOT = Path(__file__).parent.parent
SHIPPED = ("setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "twisted_proxy", "twisted")
PURELIB = Path(sysconfig.get_path("purelib"))


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    """Run to a successful end; returns standard output. The environment of this process's Python is kept away."""
    ours = ("PYTHON", "PIP_", "VIRTUAL_ENV")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    clean |= {"PYTHONDONTWRITEBYTECODE": "1", **env}
    done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def pip(*arguments: str | Path, cwd: Path) -> str:
    """Run this environment's pip, which asks no index."""
    quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    return run(sys.executable, "-m", "pip", *arguments, cwd=cwd, **quiet)


@attrs.frozen
class Environment:
    """A virtual environment with every dependency, and without claude-proxy."""

    path: Path
    elsewhere: Path
    """An empty directory to run in."""

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.path / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        """Where its packages are."""
        return self.path / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"

    def install(self, *what: str | Path) -> None:
        """Install without dependencies."""
        pip("--python", self.python, "install", "--no-deps", "--no-build-isolation", *what, cwd=self.elsewhere)

    def twistd_lists_it(self, **env: str) -> bool:
        """Whether ``twistd --help``, run in an unrelated directory, shows the plugin."""
        code = "from twisted.scripts.twistd import run; run()"
        out = run(self.python, "-c", code, "--help", cwd=self.elsewhere, **env)
        assert "\n    web " in out, "twistd lists no plugin at all"
        return "\n    claude-proxy " in out

    def origin(self, **env: str) -> Path:
        """The file that ``import twisted_proxy`` gives."""
        code = "import twisted_proxy; print(twisted_proxy.__file__)"
        return Path(run(self.python, "-c", code, cwd=self.elsewhere, **env).strip())


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of the tree: nothing that a build or a run left behind."""
    copy = tmp_path_factory.mktemp("checkout")
    leftovers = shutil.ignore_patterns("__pycache__", "*.egg-info", "dropin.cache")
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=leftovers)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that the tree builds."""
    target = tmp_path_factory.mktemp("wheel")
    source = tmp_path_factory.mktemp("source") / "tree"
    shutil.copytree(checkout, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", target, source, cwd=target)
    (built,) = target.iterdir()
    return built


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[], Environment]:
    """Makes environments in which nothing of claude-proxy is."""

    def make() -> Environment:
        path = tmp_path / "venv"
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        venv.create(path, with_pip=False, symlinks=True)
        made = Environment(path, elsewhere)
        for entry in PURELIB.iterdir():
            if "claude_proxy" in entry.name or entry.name in ("twisted_proxy", "__pycache__", "twisted"):
                continue
            # A *.pth file could lead back to the tree that is being tested.
            if entry.suffix != ".pth":
                (made.site_packages / entry.name).symlink_to(entry)
        # Twisted is copied: a wheel puts the plugin into its directory, and it keeps a cache there.
        shutil.copytree(
            PURELIB / "twisted",
            made.site_packages / "twisted",
            ignore=shutil.ignore_patterns("test", "__pycache__", "dropin.cache", "claude_proxy.py"),
        )
        return made

    return make


def test_fresh_is_without_it(fresh: Callable[[], Environment]) -> None:
    """The environments of these tests do not have claude-proxy by another way; else the others would show nothing."""
    environment = fresh()
    assert not environment.twistd_lists_it()
    code = "import importlib.util as u, importlib.metadata as m\n"
    code += "print(u.find_spec('twisted_proxy'), [d.name for d in m.distributions() if d.name == 'claude-proxy'])"
    assert run(environment.python, "-c", code, cwd=environment.elsewhere) == "None []\n"


def test_wheel(fresh: Callable[[], Environment], wheel: Path) -> None:
    """Installed from a wheel: listed, imported from there, and the console script runs."""
    environment = fresh()
    environment.install(wheel)
    assert environment.twistd_lists_it()
    assert environment.origin().is_relative_to(environment.site_packages)
    script = environment.path / "bin" / "claude-proxy"
    assert run(script, "--version", cwd=environment.elsewhere) == f"claude-proxy {__version__}\n"


def test_editable(fresh: Callable[[], Environment], checkout: Path, tmp_path: Path) -> None:
    """Installed editable: listed, and imported from the tree."""
    environment = fresh()
    tree = tmp_path / "tree"
    shutil.copytree(checkout, tree)
    environment.install("--editable", tree)
    assert environment.twistd_lists_it()
    assert environment.origin().is_relative_to(tree)


def test_checkout(fresh: Callable[[], Environment], checkout: Path, tmp_path: Path) -> None:
    """Not installed at all, with the tree on ``PYTHONPATH``: listed, and imported from the tree."""
    environment = fresh()
    tree = tmp_path / "tree"
    shutil.copytree(checkout, tree)
    assert environment.twistd_lists_it(PYTHONPATH=str(tree))
    assert environment.origin(PYTHONPATH=str(tree)).is_relative_to(tree)


def test_contents_of_the_wheel(wheel: Path) -> None:
    """Every module, what they read, the plugin and the license; no tests, and no package ``twisted``."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    metadata = {name for name in names if ".dist-info/" in name}
    assert any(name.endswith("/LICENSE") for name in metadata)
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "twisted_proxy").rglob("*.py")}
    read = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("py.typed", "record/prices.json", "record/schema/*/*.sql", "web/openapi.yaml", "web/static/*")
        for path in (ROOT / "twisted_proxy").glob(pattern)
    }
    assert len(read) > 5
    assert names - metadata == modules | read | {"twisted/plugins/claude_proxy.py"}


def test_twisted_stays_a_stranger() -> None:
    """An ``__init__.py`` in ``twisted/`` or ``twisted/plugins/`` would hide Twisted, or all its plugins."""
    assert [path.name for path in (ROOT / "twisted").rglob("*.py")] == ["claude_proxy.py"]


def test_every_package_is_listed() -> None:
    """The packages are listed by hand in ``setup.cfg``: a new one must be there."""
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = set(parser["options"]["packages"].split())
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "twisted_proxy").rglob("__init__.py")}
    assert listed == found | {"twisted.plugins"}
