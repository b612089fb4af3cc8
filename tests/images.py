"""
A Dockerfile carried out without Docker: each instruction on a copy-on-write copy of this machine, in namespaces.

In the place of the base image stands the machine that the tests run on, with the Python that runs them as ``python``.
What an instruction writes goes into memory and is gone at the end. Needs root, overlayfs and util-linux's ``unshare``
and ``nsenter``; `missing` says what of this is not there.

Instructions that `build` does not know are errors, so that none is passed over.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, Final

import attrs
from packaging.requirements import Requirement

from tests.processes import START_LIMIT, Process, wait_for

PYTHON: Final = Path(sys.executable).resolve()
PATH: Final = f"{PYTHON.parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LIMIT: Final = 100.0
"""Seconds for one instruction."""

# $1: a directory to mount a tmpfs on. The mounts end with the process that holds their namespace.
HOLD: Final = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
echo ready
exec sleep infinity
"""
# $1: the stage's directory; $2: the packages that pip is to find.
STAGE: Final = """
set -e
mkdir -p "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount --rbind /dev "$1/root/dev"
mount -t tmpfs tmpfs "$1/root/tmp"
mkdir "$1/root/wheels"
mount --bind "$2" "$1/root/wheels"
"""
PIP: Final = {
    "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels", "PIP_CONFIG_FILE": "/dev/null", "PIP_NO_COMPILE": "1"
}  # fmt: skip
"""No index is asked; and bytecode would take half of the time."""
# $1: the stage's root; the rest: the command. Whoever runs this is the first process of a PID namespace.
READ_ONLY: Final = """
set -e
root=$1
shift
mount -t proc proc "$root/proc"
mount -o remount,ro,bind "$root"
mount -o remount,ro,bind "$root/tmp"
exec "$@"
"""


def missing() -> str | None:
    """Why nothing can be built here; ``None`` if it can."""
    if os.geteuid() != 0:
        return "only root may mount"
    for program in ("unshare", "nsenter", "chroot"):
        if shutil.which(program) is None:
            return f"{program} is not here"
    if "\toverlay\n" not in Path("/proc/filesystems").read_text(encoding="ascii"):
        return "this kernel has no overlayfs"
    tried = subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False)
    return None if tried.returncode == 0 else "this process may not make namespaces"


@attrs.frozen(kw_only=True)
class Instruction:
    """One instruction: its name in capitals, its ``--name=value`` flags, and what follows them."""

    name: str
    flags: dict[str, str]
    text: str

    @property
    def words(self) -> list[str]:
        """Split as a shell would."""
        return shlex.split(self.text)

    @property
    def listed(self) -> list[str]:
        """The exec form. Raises `ValueError` for a shell form."""
        found = json.loads(self.text)
        if not isinstance(found, list):
            raise ValueError(f"{self.name} is no list: {self.text}")
        return [str(each) for each in found]


def instructions(text: str) -> Iterator[Instruction]:
    """The instructions of a Dockerfile."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        name, rest = line.strip().split(None, 1)
        flags = {}
        while found := re.match(r"--([\w-]+)=(\S+)\s+", rest):
            flags[found[1]] = found[2]
            rest = rest[found.end() :]
        yield Instruction(name=name.upper(), flags=flags, text=rest)


def stages(text: str) -> list[tuple[Instruction, list[Instruction]]]:
    """The stages of a Dockerfile: each its FROM and what follows it. What stands before the first FROM is left out."""
    found: list[tuple[Instruction, list[Instruction]]] = []
    for each in instructions(text):
        if each.name == "FROM":
            found.append((each, []))
        elif found:
            found[-1][1].append(each)
    return found


def let_through(source: Path, patterns: str) -> list[Path]:
    """
    The files below ``source``, relative to it, that a ``.dockerignore`` lets through.

    A pattern here is a name at the root, or ``**/`` before a name at any depth; ``!`` takes one back; the last that
    fits counts.
    """
    rules = [line.strip() for line in patterns.splitlines() if line.strip() and not line.startswith("#")]

    def ignored(path: PurePosixPath) -> bool:
        verdict = False
        for rule in rules:
            pattern = rule.removeprefix("!")
            # A directory's rule is that of all below it.
            prefixes = [path, *path.parents[:-1]]
            if pattern.startswith("**/"):
                fits = any(fnmatch.fnmatchcase(each.name, pattern[3:]) for each in prefixes)
            else:
                assert "/" not in pattern, f"{rule}: not understood here"
                fits = fnmatch.fnmatchcase(path.parts[0], pattern)
            if fits:
                verdict = not rule.startswith("!")
        return verdict

    found = []
    for directory, names, files in os.walk(source):
        here = Path(directory).relative_to(source)
        # Only a name at the root can be taken back: no need to look below what is ignored.
        names[:] = [name for name in names if not ignored(PurePosixPath(here / name))]
        found += [here / name for name in files if not ignored(PurePosixPath(here / name))]
    return found


def wheels(target: Path, *names: str) -> None:
    """Make wheels, in ``target``, of the installed distributions with these names and of all that they require."""
    wanted, made = list(names), set()
    while wanted:
        requirement = Requirement(wanted.pop())
        if requirement.marker is not None and not any(
            requirement.marker.evaluate({"extra": extra}) for extra in {"", *requirement.extras}
        ):
            continue
        distribution = metadata.distribution(requirement.name)
        extras = {"", *requirement.extras}
        for line in distribution.requires or []:
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                needed.marker = None
                wanted.append(str(needed))
        if distribution.metadata["Name"] in made:
            continue
        made.add(distribution.metadata["Name"])
        _wheel(target, distribution)


def _wheel(target: Path, distribution: metadata.Distribution) -> None:
    tags = re.findall(r"^Tag: (\w+)-(\w+)-(\S+)", distribution.read_text("WHEEL") or "", re.MULTILINE)
    python, abi, platform = (".".join(dict.fromkeys(parts)) for parts in zip(*tags, strict=True))
    name = re.sub(r"[-_.]+", "_", distribution.metadata["Name"])
    record = []
    with zipfile.ZipFile(target / f"{name}-{distribution.version}-{python}-{abi}-{platform}.whl", "w") as archive:
        for path in distribution.files or []:
            # Scripts lie outside, and are made anew; so is what pip notes.
            if path.parts[0] == ".." or path.suffix == ".pyc" or path.name in ("RECORD", "INSTALLER", "REQUESTED"):
                continue
            archive.write(str(path.locate()), str(path))
            digest = f"{path.hash.mode}={path.hash.value}" if path.hash else ""
            record.append(f"{path},{digest},{path.size if path.hash else ''}")
        (info,) = {
            path.parts[0] for path in distribution.files or [] if path.name == "METADATA" and len(path.parts) == 2
        }
        archive.writestr(f"{info}/RECORD", "\n".join([*record, f"{info}/RECORD,,", ""]))


@attrs.define(eq=False)
class Stage:
    """A file system, and what the instructions said of the processes that will run in it."""

    path: Path
    holder: int
    """The process whose mounts these are."""
    environment: dict[str, str]
    directory: str = "/"
    user: str = "0:0"
    entrypoint: list[str] = attrs.Factory(list)
    healthcheck: list[str] = attrs.Factory(list)
    health_flags: dict[str, str] = attrs.Factory(dict)
    volumes: list[str] = attrs.Factory(list)
    labels: dict[str, str] = attrs.Factory(dict)
    ports: list[str] = attrs.Factory(list)
    stop_signal: str = "SIGTERM"

    @property
    def root(self) -> Path:
        """Where its file system is, for processes with the holder's mounts."""
        return self.path / "root"

    def enter(self, *more: str) -> list[str]:
        """What comes before a command that is to have the holder's mounts."""
        return ["nsenter", f"--mount=/proc/{self.holder}/ns/mnt", "--", *more]

    def inside(self, command: Sequence[str], **environment: str) -> list[str]:
        """``command`` in this file system, as this user, with this environment and ``environment`` alone."""
        variables = [f"{name}={value}" for name, value in {**self.environment, **environment}.items()]
        chroot = ["chroot", f"--userspec={self.user}", "--groups=", str(self.root)]
        return [*chroot, "env", "--ignore-environment", f"--chdir={self.directory}", *variables, *command]

    def run(self, command: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it; its output is taken."""
        whole = self.enter(*self.inside(command, **environment))
        return subprocess.run(whole, capture_output=True, text=True, check=False, timeout=LIMIT)

    @contextmanager
    def container(self, **environment: str) -> Iterator[Container]:
        """
        A running container: its file system can be written to in its volumes alone, its ENTRYPOINT is PID 1 of a
        namespace. The network is the machine's.
        """
        for volume in self.volumes:
            where = self.root / volume.lstrip("/")
            # An empty volume gets what the image has there, and whose it is.
            self.outside(
                "sh", "-ec",
                'set -- "$1" $(stat -c "%u %g %a" "$1"); '
                'mountpoint -q "$1" && umount "$1"; mount -t tmpfs -o "uid=$2,gid=$3,mode=$4" tmpfs "$1"',
                "sh", where,
            )  # fmt: skip
        command = self.inside(self.entrypoint, **environment)
        first = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", READ_ONLY, "sh", str(self.root)]
        with Process(self.enter(*first, *command), environment={"PATH": PATH}, cwd=Path("/")) as process:
            yield Container(stage=self, process=process, environment=environment)

    def outside(self, *command: str | Path) -> None:
        """Run a command with the holder's mounts, to a successful end."""
        done = subprocess.run(
            self.enter(*map(str, command)), capture_output=True, text=True, check=False, timeout=LIMIT
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"

    def copy(self, sources: Path, target: str) -> None:
        """Copy what is in the directory ``sources`` into ``target``."""
        where = self.root / target.lstrip("/")
        self.outside("mkdir", "-p", where)
        self.outside("cp", "--recursive", "--preserve=mode,links,timestamps", f"{sources}/.", where)


@attrs.frozen(kw_only=True)
class Container:
    """A process in an image."""

    stage: Stage
    process: Process
    """What waits for it, and ends with its status."""
    environment: dict[str, str]

    @property
    def pid(self) -> int:
        """Its first process, as this machine numbers it."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(wait_for(lambda: children.read_text(encoding="ascii").split(), "its first process runs")[0])

    def check_health(self) -> int:
        """The exit status of the HEALTHCHECK's command in it."""
        return self.stage.run(self.stage.healthcheck, **self.environment).returncode


def _expand(text: str, variables: dict[str, str]) -> str:
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda found: variables.get(found[1] or found[2], ""), text)


def _run(stage: Stage, each: Instruction) -> None:
    done = stage.run(["/bin/sh", "-c", each.text], **PIP)
    assert done.returncode == 0, f"RUN {each.text}\n{done.stdout}\n{done.stderr}"


@contextmanager
def build(directory: Path, text: str, context: Path, packages: Path) -> Iterator[Stage]:
    """
    Carry out a Dockerfile; its last stage is the image.

    :param directory: an empty one.
    :param text: the Dockerfile.
    :param context: what COPY copies from.
    :param packages: a directory with the wheels that ``pip`` finds.
    """
    mounts = directory / "mounts"
    mounts.mkdir()
    holding = Process(["unshare", "--mount", "sh", "-c", HOLD, "sh", mounts], environment={"PATH": PATH}, cwd=directory)
    with holding:
        holding.wait_for_line("^ready$", timeout=START_LIMIT)
        named: dict[str, Stage] = {}
        for number, (begin, steps) in enumerate(stages(text)):
            stage = Stage(mounts / str(number), holding.pid, {"PATH": PATH, "HOME": "/root"})
            stage.outside("sh", "-c", STAGE, "sh", stage.path, packages)
            _be_python(stage)
            if len(begin.words) == 3:
                named[begin.words[2]] = stage
            for each in steps:
                _carry_out(stage, each, named, context)
        yield stage


def _be_python(stage: Stage) -> None:
    """Make ``python`` the one that runs this, for every user: it may be installed where root alone may go."""
    stage.outside("ln", "-sf", PYTHON.name, stage.root / str(PYTHON.with_name("python")).lstrip("/"))
    for path in (PYTHON, *PYTHON.parents):
        stage.outside("chmod", "go+rx", stage.root / str(path).lstrip("/"))


def _carry_out(stage: Stage, each: Instruction, named: dict[str, Stage], context: Path) -> None:
    text = _expand(each.text, stage.environment)
    pairs: Any = [word.split("=", 1) for word in shlex.split(text)] if each.name in ("ENV", "LABEL") else []
    match each.name:
        case "ENV":
            stage.environment.update(pairs)
        case "LABEL":
            stage.labels.update(pairs)
        case "RUN":
            _run(stage, each)
        case "COPY":
            source, target = text.split()
            origin = named[each.flags["from"]].root if "from" in each.flags else context
            stage.copy(origin / source.lstrip("/"), str(PurePosixPath(stage.directory, target)))
        case "WORKDIR":
            stage.outside("mkdir", "-p", stage.root / text.lstrip("/"))
            stage.directory = text
        case "USER":
            stage.user = text
            # So does Docker.
            home = stage.run(["getent", "passwd", text.partition(":")[0]]).stdout.split(":")[5]
            stage.environment["HOME"] = home
        case "VOLUME":
            stage.volumes.append(text)
        case "EXPOSE":
            stage.ports += text.split()
        case "STOPSIGNAL":
            stage.stop_signal = text
        case "HEALTHCHECK":
            command = Instruction(name="CMD", flags={}, text=each.text.removeprefix("CMD").strip())
            stage.healthcheck, stage.health_flags = command.listed, each.flags
        case "ENTRYPOINT":
            stage.entrypoint = each.listed
        case _:
            raise AssertionError(f"{each.name} is not carried out here")
