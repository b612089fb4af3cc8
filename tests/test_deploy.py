"""
What is in ``deploy/docker`` and ``deploy/kubernetes`` works, as far as that can be seen without Docker and a cluster.

The Dockerfile is carried out (`tests.images`): its build takes a quarter of a minute. Compose's labels are read by the
real Traefik, which is told of containers that are processes (`tests.docker_api`).
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from configparser import ConfigParser
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import compose_spec
import kubernetes_validate
import pytest
import yaml

from tests import images
from tests.balancers import traefik_program
from tests.docker_api import Container, DockerApi, docker_api
from tests.load import Ask, Clients, stream
from tests.processes import CHECKOUT, WAIT_LIMIT, Process, Proxy, StandIn, clean_environment, proxy, wait_for
from tests.sockets import Client, call, free_port, play, prompt
from twisted_proxy import __version__
from twisted_proxy.config import SETTINGS, Config, load
from twisted_proxy.config.model import DEFAULT_PORT
from twisted_proxy.record.keeper import CLOSE_TIMEOUT
from twisted_proxy.service import CUT_GRACE
from twisted_proxy.workers.supervisor import CLOSING

DOCKER: Final = CHECKOUT / "deploy" / "docker"
DOCKERFILE: Final = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
COMPOSE: Final = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
EXAMPLE: Final = (DOCKER / "env.example").read_text(encoding="utf-8")
DOCUMENT: Final = (CHECKOUT / "docs" / "deployment.md").read_text(encoding="utf-8")
KUBERNETES: Final = CHECKOUT / "deploy" / "kubernetes" / "claude-proxy.yaml"
TRAEFIK: Final = CHECKOUT / "deploy" / "traefik"

SLOTS: Final = ("blue", "green")
SECRET: Final = {setting.env for setting in SETTINGS if setting.secret}
LONGEST_STOP: Final = Config().drain_timeout + max(CUT_GRACE + CLOSE_TIMEOUT, CLOSING)
"""Seconds from SIGTERM to the end of the process, with the defaults; with workers, until they are killed."""


def seconds(text: str) -> float:
    """A duration of Compose, Traefik or this proxy."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    parts = re.findall(r"([\d.]+)(h|ms|m|s)", text)
    assert parts, text
    assert "".join(number + unit for number, unit in parts) == text
    return sum(float(number) * units[unit] for number, unit in parts)


def size(text: str) -> int:
    """A quantity of Kubernetes, in bytes."""
    found = re.fullmatch(r"(\d+)(Mi|Gi)", text)
    assert found, text
    return int(found[1]) << {"Mi": 20, "Gi": 30}[found[2]]


def flat(tree: Any, prefix: str = "") -> dict[str, str]:
    """The leaves of a tree, by dotted names in lower case, as Traefik's flags and labels have them."""
    if isinstance(tree, dict):
        pairs = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list) and any(isinstance(each, dict) for each in tree):
        pairs = [(f"{number}", value) for number, value in enumerate(tree)]
    elif isinstance(tree, list):
        return {prefix: ",".join(map(str, tree))}
    else:
        return {prefix: str(tree).lower() if isinstance(tree, bool) else str(tree)}
    found = {}
    for key, value in pairs:
        found.update(flat(value, f"{prefix}.{key}".lower().lstrip(".")))
    return found


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The Compose file, with its anchors resolved."""
    value: dict[str, Any] = yaml.safe_load(COMPOSE)
    return value


# -- the image -------------------------------------------------------------------------------------------------


def test_what_is_sent_to_docker(tmp_path: Path) -> None:
    """The build sees the package and what builds it. Records, keys, caches and everything else stay where they are."""
    wanted = {
        "LICENSE", "README.md", "pyproject.toml", "setup.cfg", "twisted/plugins/claude_proxy.py",
        "twisted_proxy/service.py", "twisted_proxy/web/static/index.html", "twisted_proxy/record/schema/sqlite/1.sql",
    }  # fmt: skip
    others = {
        ".env", "config.yaml", "requests.db", "requests.db-wal", "requests.db-spool/x/1.journal", ".git/config",
        "claude-proxy-spool/key", "deploy/docker/.env", "tests/test_deploy.py", ".venv/bin/python", "build/lib/x.py",
        "twisted_proxy/__pycache__/service.cpython-311.pyc", "twisted/plugins/dropin.cache", "twisted_proxy/web/x.pyc",
        "svelte/node_modules/x/index.js", "claude_proxy.egg-info/PKG-INFO",
    }  # fmt: skip
    for name in wanted | others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    patterns = (CHECKOUT / ".dockerignore").read_text(encoding="utf-8")
    assert {path.as_posix() for path in images.let_through(tmp_path, patterns)} == wanted


def test_the_dockerfile_names_what_it_builds_on() -> None:
    """Both stages have the same Python, a version that the package says it runs on, of a named Debian."""
    (argument,) = [each for each in images.instructions(DOCKERFILE) if each.name == "ARG"]
    found = re.fullmatch(r"PYTHON=(3\.\d+)-slim-\w+", argument.text)
    assert found
    assert {begin.words[0] for begin, _ in images.stages(DOCKERFILE)} == {"python:${PYTHON}"}
    parser = ConfigParser()
    parser.read(CHECKOUT / "setup.cfg", encoding="utf-8")
    assert f"Programming Language :: Python :: {found[1]}" in parser["metadata"]["classifiers"]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[images.Stage]:
    """The image's last stage, built of what Docker would be sent. The base image is this machine."""
    problem = images.missing()
    if problem is not None:
        pytest.skip(f"the Dockerfile cannot be carried out: {problem}")
    context, packages = tmp_path_factory.mktemp("context"), tmp_path_factory.mktemp("wheels")
    for path in images.let_through(CHECKOUT, (CHECKOUT / ".dockerignore").read_text(encoding="utf-8")):
        (context / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / path, context / path)
    parser = ConfigParser()
    parser.read(CHECKOUT / "setup.cfg", encoding="utf-8")
    required = [line for line in parser["options"]["install_requires"].splitlines() if line and line[0] != "#"]
    images.wheels(packages, *required, "setuptools")
    with images.build(tmp_path_factory.mktemp("image"), DOCKERFILE, context, packages) as built:
        yield built


@pytest.mark.timeout(400)
class TestImage:
    def test_what_it_says_of_itself(self, image: images.Stage) -> None:
        """Version, port, signal and volume are the proxy's; its user is a number, and not root's."""
        assert image.labels["org.opencontainers.image.version"] == __version__
        assert image.ports == [image.environment["PORT"]] == [str(DEFAULT_PORT)]
        assert image.stop_signal == "SIGTERM"
        assert image.volumes == [image.directory]
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", image.user)
        assert image.environment["HOME"] == image.directory
        known = {setting.env for setting in SETTINGS}
        assert set(image.environment) - known == {"PATH", "HOME", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}

    def test_arguments_are_options(self, image: images.Stage) -> None:
        """What follows the image's name on the command line, the proxy reads; its other command is there, too."""
        assert image.run([*image.entrypoint, "--version"]).stdout.startswith(f"claude-proxy {__version__} ")
        assert image.run(["claude-proxy", "check-config", "--port", "4000"]).stdout.count("= 4000 ") == 1

    def test_twisted_has_listed_its_plugins(self, image: images.Stage) -> None:
        """Who runs the proxy cannot write the list, and need not."""
        code = "import glob, twisted.plugins as p; print([glob.glob(f'{path}/dropin.cache') for path in p.__path__])"
        assert image.run(["python", "-I", "-c", code]).stdout.count("dropin.cache") == 1

    def test_a_container(self, image: images.Stage, upstream: StandIn) -> None:
        """
        It serves and records as a user without rights, on a file system of which its volume alone can be written to;
        its health is checked by its own command; SIGTERM drains it, the first process of a container as it is, while it
        stays healthy; and it ends with status 0.
        """
        port = free_port()
        settings = {"PORT": str(port), "ANTHROPIC_FORWARD_URL": upstream.url, "DRAIN_LAME_DUCK": "1s"}
        with image.container(**settings) as container:
            container.process.wait_for_line(r"listening on 0\.0\.0\.0:")
            proc = Path(f"/proc/{container.pid}")
            status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines())
            assert status["NSpid"].split()[-1] == "1"
            assert status["Uid"].split() == ["10001"] * 4
            assert status["Groups"].strip() in ("", "10001")
            for place in ("", "opt/claude-proxy", "tmp"):
                with pytest.raises(OSError, match="Read-only file system"):
                    (proc / "root" / place / "written").touch()
            body = prompt(stream=True)
            answer = call(port, "POST", "/v1/messages", [play("auto")], body)
            assert (answer.status, answer.whole) == (200, True)
            assert container.check_health() == 0
            os.kill(container.pid, signal.SIGTERM)
            wait_for(lambda: call(port, "GET", "/health").status == 503, "it drains")
            assert container.check_health() == 0
            assert container.process.wait(30) == 0, container.process.log
            assert "Traceback" not in container.process.log
            assert "plugin cache" not in container.process.log
            assert container.check_health() != 0
        count = (
            "import sqlite3; print(sqlite3.connect('requests.db').execute('select count(*) from exchanges').fetchone())"
        )
        assert image.run(["python", "-c", count]).stdout == "(1,)\n"


# -- Compose ---------------------------------------------------------------------------------------------------


def interpolated(text: str, values: Mapping[str, str]) -> str:
    """As Compose does with ``${NAME:?…}``. Another form is an error."""

    def value(found: re.Match[str]) -> str:
        return values[found[1]]

    done = re.sub(r"\$\{(\w+):\?[^}]+\}", value, text)
    assert "$" not in done, done
    return done


GIVEN: Final = {"POSTGRES_PASSWORD": "3f9d0c", "DASHBOARD_PASSWORD": "correct horse"}


class TestCompose:
    def test_it_is_one(self, compose: dict[str, Any]) -> None:
        """The Compose specification's parser takes it: no unknown key, no value in a wrong form."""
        # Without `<<`, which this parser does not know.
        parsed = compose_spec.PyCompose.from_yaml(yaml.safe_dump(compose))
        parsed.validate()
        assert set(parsed.service_names()) == {*SLOTS, "traefik", "postgres"}

    def test_compose_itself_takes_it(self, tmp_path: Path) -> None:
        """``docker compose config``, which needs no daemon."""
        docker = shutil.which("docker")
        if (
            docker is None
            or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode
        ):
            pytest.skip("docker compose is not here")
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **GIVEN}
        command = [docker, "compose", "--file", str(DOCKER / "compose.yaml"), "config", "--quiet"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")

    def test_the_slots_are_alike(self, compose: dict[str, Any]) -> None:
        """Whichever serves, it is the same proxy, of the image that is built of this tree."""
        blue, green = (compose["services"][name] for name in SLOTS)
        assert blue == green
        assert (DOCKER / blue["build"]["context"]).resolve() == CHECKOUT
        assert (CHECKOUT / blue["build"]["dockerfile"]) == DOCKER / "Dockerfile"
        assert blue["image"] == f"claude-proxy:{__version__}"

    def test_the_settings(self, compose: dict[str, Any], tmp_path: Path) -> None:
        """Each is one that there is, with a value that it takes; and no secret stands in the file."""
        for name in SLOTS:
            given = compose["services"][name]["environment"]
            assert set(given) <= {setting.env for setting in SETTINGS}
            assert all("${" in given[secret] for secret in SECRET & set(given))
            loaded = load([], {key: interpolated(value, GIVEN) for key, value in given.items()}, tmp_path)
            assert not loaded.warnings
            assert loaded.config.record.database_url == "postgresql://claude_proxy:3f9d0c@postgres:5432/claude_proxy"
        postgres = compose["services"]["postgres"]["environment"]
        assert interpolated(postgres["POSTGRES_PASSWORD"], GIVEN) == "3f9d0c"
        assert postgres["POSTGRES_USER"] == postgres["POSTGRES_DB"] == "claude_proxy"

    def test_the_example_asks_for_what_is_needed(self) -> None:
        """Its names are those that the file wants, all without a value; and what is made of it is never committed."""
        lines = [line for line in EXAMPLE.splitlines() if line and not line.startswith("#")]
        wanted = set(re.findall(r"\$\{(\w+)", COMPOSE))
        assert {line.partition("=")[0] for line in lines} == wanted == set(GIVEN)
        assert all(line.endswith("=") for line in lines)
        assert "/.env" in (DOCKER / ".gitignore").read_text(encoding="utf-8").splitlines()

    def test_the_times_agree(self, compose: dict[str, Any]) -> None:
        """Docker waits longer than the longest stop takes; the lame duck is as long as interval and timeout."""
        for name in SLOTS:
            slot = compose["services"][name]
            assert seconds(slot["stop_grace_period"]) > LONGEST_STOP
            check = "traefik.http.services.claude-proxy.loadbalancer.healthcheck."
            interval, timeout = (seconds(slot["labels"][check + part]) for part in ("interval", "timeout"))
            assert seconds(slot["environment"]["DRAIN_LAME_DUCK"]) >= interval + timeout
        traefik = compose["services"]["traefik"]
        (grace,) = [flag.partition("=")[2] for flag in traefik["command"] if "gracetimeout" in flag]
        # Streams have ended by then, or been cut.
        assert seconds(traefik["stop_grace_period"]) > seconds(grace) > Config().drain_timeout + CUT_GRACE

    def test_images_have_versions(self, compose: dict[str, Any]) -> None:
        """What is tried today is what runs tomorrow."""
        for service in compose["services"].values():
            assert re.fullmatch(r"[\w./-]+:v?\d+[\w.-]*", service["image"]), service["image"]

    def test_places_agree(self, compose: dict[str, Any]) -> None:
        """Port and volume are the image's; the networks of the slots are Traefik's and PostgreSQL's."""
        labels = compose["services"]["blue"]["labels"]
        assert labels["traefik.http.services.claude-proxy.loadbalancer.server.port"] == str(DEFAULT_PORT)
        (volume,) = compose["services"]["blue"]["volumes"]
        (declared,) = [each.text for each in images.instructions(DOCKERFILE) if each.name == "VOLUME"]
        assert volume == f"spool:{declared}"
        networks = compose["services"]["blue"]["networks"]
        assert networks == compose["services"]["traefik"]["networks"] + compose["services"]["postgres"]["networks"]
        assert labels["traefik.docker.network"] == compose["networks"]["clients"]["name"]

    def test_it_says_what_the_files_say(self, compose: dict[str, Any]) -> None:
        """Labels and flags are those of ``deploy/traefik``, but for what differs by its nature."""
        static = flat(yaml.safe_load((TRAEFIK / "traefik.yml").read_text(encoding="utf-8")))
        dynamic = flat(yaml.safe_load((TRAEFIK / "claude-proxy.yml").read_text(encoding="utf-8")))
        flags = dict(flag.removeprefix("--").split("=", 1) for flag in compose["services"]["traefik"]["command"])
        # The transport of a file's service can have a name; for labels it is the one that is there for all.
        named = "http.serverstransports.claude-proxy."
        transport = {key.removeprefix(named): value for key, value in dynamic.items() if key.startswith(named)}
        expected = {
            **{
                key: value
                for key, value in static.items()
                if not key.startswith(("providers.", "api.", "entrypoints.traefik."))
            },
            **{f"serverstransport.{key}": value for key, value in transport.items()},
        }
        assert {key: value for key, value in flags.items() if not key.startswith("providers.")} == expected

        labels = compose["services"]["blue"]["labels"]
        said = {key.removeprefix("traefik."): value for key, value in labels.items()}
        service = "http.services.claude-proxy.loadbalancer."
        left = {key for key in dynamic if key.startswith((named, f"{service}servers.", f"{service}serverstransport"))}
        right = {"enable", "docker.network", f"{service}server.port"}
        assert {key: said[key] for key in said.keys() - right} == {key: dynamic[key] for key in dynamic.keys() - left}


class Slot:
    """A slot of the Compose file as a process, on an address of its own, and what Docker would say of it."""

    def __init__(self, name: str, compose: dict[str, Any], place: Path, upstream: StandIn, api: DockerApi) -> None:
        # An address of this host that nobody else has a port on.
        self.address = f"127.83.{os.getpid() % 250}.{SLOTS.index(name) + 1}"
        self.url = f"http://{self.address}:{DEFAULT_PORT}"
        service = compose["services"][name]
        given = {key: interpolated(value, GIVEN) for key, value in service["environment"].items()}
        self._settings = {key: value for key, value in given.items() if key not in ("DATABASE_URL", "LOG_FORMAT")}
        self._labels = {**service["labels"], "com.docker.compose.project": compose["name"]}
        self._network = str(compose["networks"]["clients"]["name"])
        self._container = f"claude-proxy-{name}-1"
        self._directory, self._upstream, self._api = place / name, upstream, api
        self._directory.mkdir()
        self.logs: list[list[str]] = []
        self.start()

    def start(self) -> None:
        """As ``docker compose up --wait``: the container runs, and is found healthy."""
        here = {"HOST": self.address, "PORT": str(DEFAULT_PORT)}
        self._running = proxy(self._directory, self._upstream, **self._settings, **here)
        self.logs.append(self._running.lines)
        container = Container(name=self._container, labels=self._labels, network=self._network, address=self.address)
        self._api.start(container)
        self._api.set_health(self._container, "healthy")

    def stop(self) -> None:
        """As ``docker compose stop``."""
        self._running.signal(signal.SIGTERM)
        self._api.stop(self._container)
        assert self._running.wait(30) == -signal.SIGTERM
        self._running.kill()
        self._api.die(self._container)

    def __enter__(self) -> Slot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.kill()


def test_traefik_understands_the_labels(compose: dict[str, Any], tmp_path: Path, upstream: StandIn) -> None:
    """
    Traefik, with the flags of the Compose file and the labels of its slots, has one service with two servers and the
    health check; and both slots are rolled, as the file says how, without a failed or cut request.
    """
    port, api_port = free_port(), free_port()
    flags = [flag.replace("=:80", f"=127.0.0.1:{port}") for flag in compose["services"]["traefik"]["command"]]
    socket = tmp_path / "docker.sock"
    own = [
        f"--providers.docker.endpoint=unix://{socket}",
        "--api.insecure=true",
        f"--entrypoints.traefik.address=127.0.0.1:{api_port}",
    ]

    def service() -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", api_port, timeout=WAIT_LIMIT)
        try:
            connection.request("GET", "/api/http/services/claude-proxy@docker")
            response = connection.getresponse()
            return json.loads(response.read()) if response.status == 200 else {}
        except OSError:
            return {}
        finally:
            connection.close()

    def up() -> set[str]:
        return {url for url, status in service().get("serverStatus", {}).items() if status == "UP"}

    with ExitStack() as stack:
        api = stack.enter_context(docker_api(socket))
        slots = [stack.enter_context(Slot(name, compose, tmp_path, upstream, api)) for name in SLOTS]
        both = {slot.url for slot in slots}
        command = [traefik_program(), *flags, *own]
        running = stack.enter_context(Process(command, environment=clean_environment(), cwd=tmp_path))
        try:
            wait_for(lambda: up() == both, "Traefik has found both slots", timeout=20)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{service()}\n{api.asked}\n{running.describe()}") from None
        check = service()["loadBalancer"]["healthCheck"]
        assert {check[key] for key in ("path", "interval", "timeout")} == {"/health", "1s"}
        assert "/events" in api.asked

        # Whoever logs in to the dashboard is known at each request.
        password = json.dumps({"password": GIVEN["DASHBOARD_PASSWORD"]}).encode()
        content = ("Content-Type", "application/json")
        login = call(port, "POST", "/api/login", [content], password)
        assert login.status == 200, login
        cookies = [value.partition(";")[0] for name, value in login.headers if name.lower() == "set-cookie"]
        for _ in range(6):
            assert call(port, "GET", "/api/in-flight", [("Cookie", "; ".join(cookies))]).status == 200

        mixes = [[Ask(scenario="auto"), stream(12, 0.6)], [stream(30, 1.5)], [Ask(scenario="echo", size=100_000)]]
        with Clients(lambda: port, mixes, keep=lambda number: number != 1, pause=0.05) as asking:
            for slot in slots:
                slot.stop()
                wait_for(lambda: len(up()) == 1, "Traefik has dropped the slot")
                slot.start()
                wait_for(lambda: up() == both, "Traefik has the slot again")
        lines = [line for slot in slots for log in slot.logs for line in log if "verdict=complete" not in line]
        assert not asking.failures, "\n".join([str(asking), *lines, running.log])
        assert asking.answered > 20


# -- nginx -----------------------------------------------------------------------------------------------------

AROUND: Final = """
daemon off; master_process off; pid nginx.pid; error_log stderr warn;
events {{ }}
http {{
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
    {snippet}
}}
"""


def test_nginx_in_front(tmp_path: Path, upstream: StandIn) -> None:
    """
    What docs/deployment.md shows for nginx: events go on as they come, large bodies and headers arrive, and who comes
    through it does not count as local.
    """
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    program = shutil.which("nginx", path=path)
    if program is None:
        pytest.skip("nginx is not here. On Debian: apt install nginx")
    (snippet,) = re.findall(r"```nginx\n(.*?)```", DOCUMENT, re.DOTALL)
    port = free_port()

    def answers() -> bool:
        try:
            return call(port, "GET", "/health").status == 200
        except OSError:
            return False

    command = [program, "-p", str(tmp_path), "-e", "stderr", "-c", "nginx.conf"]
    with ExitStack() as stack:
        slot = stack.enter_context(proxy(tmp_path, upstream))
        for old, new in (("listen 80;", f"listen 127.0.0.1:{port};"), (":3001;", f":{slot.port};")):
            assert snippet.count(old) == 1
            snippet = snippet.replace(old, new)
        (tmp_path / "nginx.conf").write_text(AROUND.format(snippet=snippet), encoding="utf-8")
        running = stack.enter_context(Process(command, environment=clean_environment(), cwd=tmp_path))
        wait_for(answers, f"nginx passes on what is asked: {running.describe()}")

        gate = f"{tmp_path.name}-nginx"
        with Client(port) as client:
            client.ask("POST", "/v1/messages", [play(f"auto?count=4&gate={gate}@3")], prompt(stream=True))
            start = client.read_until(b"event: content_block_start")
            upstream.release(gate)
            assert client.answer(already=start).whole
        body = prompt("x" * 20_000_000)
        echoed = call(port, "POST", "/v1/messages", [play("echo"), ("X-Long", "y" * 50_000)], body).json()
        assert echoed["body_sha256"] == hashlib.sha256(body).hexdigest()
        assert slot.get("/api/in-flight")[0] == 200
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_LIMIT)) as connection:
            connection.request("GET", "/api/in-flight")
            assert connection.getresponse().status == 403


# -- Kubernetes ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    """The objects of the manifest, by their kind."""
    found = list(yaml.safe_load_all(KUBERNETES.read_text(encoding="utf-8")))
    assert len({each["kind"] for each in found}) == len(found)
    return {each["kind"]: each for each in found}


class TestKubernetes:
    @pytest.mark.parametrize("version", ["1.29", "1.34"])
    def test_the_api_takes_it(self, objects: dict[str, Any], version: str) -> None:
        """By the API's own schemas, in which no unknown key is allowed."""
        assert set(objects) == {"Deployment", "Service", "PodDisruptionBudget"}
        for each in objects.values():
            assert kubernetes_validate.validate(each, version, strict=True) == version

    @pytest.fixture
    def pod(self, objects: dict[str, Any]) -> Any:
        return objects["Deployment"]["spec"]["template"]

    @pytest.fixture
    def container(self, pod: Any) -> Any:
        (only,) = pod["spec"]["containers"]
        return only

    def test_the_times_agree(self, pod: Any, container: Any) -> None:
        """
        A pod is killed later than the longest stop takes, lame duck included; that is as long as the readiness probe
        takes to see it; the first start may take a while.
        """
        (lame_duck,) = [seconds(each["value"]) for each in container["env"] if each["name"] == "DRAIN_LAME_DUCK"]
        probe = container["readinessProbe"]
        assert lame_duck == probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"]
        assert pod["spec"]["terminationGracePeriodSeconds"] > LONGEST_STOP + lame_duck
        startup = container["startupProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] >= 30

    def test_a_rollout_leaves_none_out(self, objects: dict[str, Any], pod: Any) -> None:
        """A new pod is there before an old one goes, and all objects mean the same pods."""
        deployment = objects["Deployment"]["spec"]
        assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
        assert objects["PodDisruptionBudget"]["spec"]["maxUnavailable"] < deployment["replicas"]
        labels = pod["metadata"]["labels"]
        assert deployment["selector"]["matchLabels"] == labels
        assert objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
        assert objects["Service"]["spec"]["selector"] == labels

    def test_the_probes_ask_what_there_is(self, container: Any, proxied: Proxy) -> None:
        """Readiness asks whether new requests are welcome, the others whether the process lives. All are answered."""
        (port,) = container["ports"]
        assert port["containerPort"] == DEFAULT_PORT
        paths = {}
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container[name]["httpGet"]
            assert probe["port"] == port["name"]
            paths[name] = probe["path"]
            assert call(proxied.port, "GET", probe["path"]).status == 200
        assert paths == {"startupProbe": "/livez", "readinessProbe": "/health", "livenessProbe": "/livez"}

    def test_the_settings(self, container: Any, tmp_path: Path) -> None:
        """Each is one that there is, with a value that it takes; secrets come from a Secret that the comment makes."""
        given = {each["name"]: each["value"] for each in container["env"]}
        assert not set(given) & SECRET
        (source,) = container["envFrom"]
        text = KUBERNETES.read_text(encoding="utf-8")
        assert f"create secret generic {source['secretRef']['name']} " in text
        made = set(re.findall(r"--from-literal=(\w+)=", text))
        assert made == {"DATABASE_URL", "DASHBOARD_PASSWORD", "DASHBOARD_TOKEN", "CREDENTIAL_KEY"} <= SECRET
        secrets = dict.fromkeys(made, "0123456789abcdef") | {"DATABASE_URL": "postgresql://user:password@host/database"}
        assert not load([], given | secrets, tmp_path).warnings

    def test_it_runs_as_the_image_says(self, pod: Any, container: Any, compose: dict[str, Any]) -> None:
        """The image's user, and its volume; nothing else can be written to."""
        said = {each.name: each.text for each in images.stages(DOCKERFILE)[-1][1]}
        security = pod["spec"]["securityContext"]
        assert f"{security['runAsUser']}:{security['runAsGroup']}" == said["USER"]
        assert security["fsGroup"] == security["runAsGroup"]
        assert security["runAsNonRoot"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        (mount,), (volume,) = container["volumeMounts"], pod["spec"]["volumes"]
        assert mount == {"name": volume["name"], "mountPath": said["VOLUME"]}
        assert container["image"] == compose["services"]["blue"]["image"]

    def test_there_is_room(self, pod: Any, container: Any) -> None:
        """For the bodies that may be in memory, and the spool that may be on the disk, by the defaults."""
        config = Config()
        (volume,) = pod["spec"]["volumes"]
        assert size(volume["emptyDir"]["sizeLimit"]) > config.record.spool_max_bytes + (256 << 20)
        assert size(container["resources"]["limits"]["memory"]) > config.max_bodies_bytes + (512 << 20)
        assert "cpu" not in container["resources"]["limits"]

    def test_the_monitor_of_the_comment(self, objects: dict[str, Any]) -> None:
        """Without the marks of the comment it is YAML, and means these pods, their port, and a key of their Secret."""
        text = KUBERNETES.read_text(encoding="utf-8").partition("# Where the Prometheus operator runs:\n#\n")[2]
        monitor = yaml.safe_load(re.sub(r"^#     ", "", text, flags=re.MULTILINE))
        deployment = objects["Deployment"]["spec"]
        assert monitor["spec"]["selector"] == deployment["selector"]
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        (container,) = deployment["template"]["spec"]["containers"]
        assert endpoint["port"] == container["ports"][0]["name"]
        assert endpoint["path"] == "/metrics"
        credentials = endpoint["authorization"]["credentials"]
        assert credentials == {"name": container["envFrom"][0]["secretRef"]["name"], "key": "DASHBOARD_TOKEN"}
