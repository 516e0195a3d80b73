"""The files in deploy/: what they name exists, and a server runs as they start it."""

from __future__ import annotations

import configparser
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import headrace
from headrace.cli.main import VERBS
from headrace.cli.options import SERVE_SETTINGS
from headrace.server.routes import ENDPOINTS
from headrace.settings.sources import public_options

ROOT = Path(headrace.__file__).parent.parent
DEPLOY = ROOT / "deploy"
CONTAINER = (DEPLOY / "container" / "Containerfile").read_text(encoding="utf-8")
MANIFESTS: list[dict[str, Any]] = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "headrace.yaml").read_text(encoding="utf-8")))
OPTIONS = public_options(SERVE_SETTINGS).values()
KEY = "a-key-of-the-test"


def manifest(kind: str) -> dict[str, Any]:
    [found] = [one for one in MANIFESTS if one["kind"] == kind]
    return found


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = manifest("StatefulSet")["spec"]["template"]["spec"]
    return spec


def container() -> dict[str, Any]:
    [one] = pod()["containers"]
    found: dict[str, Any] = one
    return found


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment]
    parser.read(DEPLOY / "systemd" / "headrace.service", encoding="utf-8")
    return parser


def probe_program(shown: str = "readinessProbe") -> str:
    program: str = container()[shown]["exec"]["command"][2]
    return program


def health_program() -> str:
    found = re.search(r'HEALTHCHECK.*?CMD \["python", "-c", "(.*?)"\]', CONTAINER, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("path", ["container/Containerfile", "kubernetes/headrace.yaml", "systemd/headrace.service"])
def test_every_option_and_variable_exists(path: str) -> None:
    text = (DEPLOY / path).read_text(encoding="utf-8")
    variables = set(re.findall(r"\bHEADRACE_[A-Z_]+\b", text))
    assert variables
    assert variables <= {one.environment for one in OPTIONS}
    started = re.findall(r"(?:args|CMD|ExecStart).*\b(serve)\b(.*)", text)
    assert started
    for verb, rest in started:
        assert verb in VERBS
        assert set(re.findall(r"--[a-z-]+", rest)) <= {one.flag for one in OPTIONS}


def test_probes_ask_for_paths_that_exist() -> None:
    paths = {one.path for one in ENDPOINTS if one.method == "GET"}
    asked = [container()[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe")]
    asked += re.findall(r"127\.0\.0\.1:8080(/\w+)", probe_program() + health_program())
    assert asked == ["/livez", "/livez", "/readyz", "/livez"]
    assert set(asked) <= paths
    ports = {one["name"]: one["containerPort"] for one in container()["ports"]}
    assert f"HEADRACE_PORT={ports['http']}" in CONTAINER
    assert f"EXPOSE {ports['http']}" in CONTAINER


def test_the_manifests_fit_together() -> None:
    labels = manifest("StatefulSet")["spec"]["template"]["metadata"]["labels"]
    for selector in (
        manifest("Service")["spec"]["selector"],
        manifest("StatefulSet")["spec"]["selector"]["matchLabels"],
        manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        manifest("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    assert manifest("StatefulSet")["spec"]["serviceName"] == manifest("Service")["metadata"]["name"]
    assert pod()["serviceAccountName"] == manifest("ServiceAccount")["metadata"]["name"]
    volumes = {one["name"] for one in pod()["volumes"]}
    volumes |= {one["metadata"]["name"] for one in manifest("StatefulSet")["spec"]["volumeClaimTemplates"]}
    assert {one["name"] for one in container()["volumeMounts"]} == volumes
    assert headrace.__version__ in container()["image"]


def test_promises_of_time_and_memory_fit() -> None:
    values = {one["name"]: one["value"] for one in container()["env"]}
    limits = container()["resources"]["limits"]
    assert values["HEADRACE_THREADS"] == limits["cpu"]
    assert int(values["HEADRACE_MEMORY_MIB"]) < 1024 * int(limits["memory"].removesuffix("Gi"))
    assert float(values["HEADRACE_DRAIN"]) < pod()["terminationGracePeriodSeconds"]
    drain = re.search(r"HEADRACE_DRAIN=(\d+)", unit()["Service"]["Environment"])
    assert drain is not None
    assert int(drain[1]) < int(unit()["Service"]["TimeoutStopSec"])


def test_nothing_runs_as_root_or_writes_where_it_should_not() -> None:
    user = re.findall(r"^USER (\d+):(\d+)$", CONTAINER, re.MULTILINE)
    assert user == [(str(pod()["securityContext"]["runAsUser"]), str(pod()["securityContext"]["runAsGroup"]))]
    assert pod()["securityContext"]["runAsNonRoot"] is True
    safe = container()["securityContext"]
    assert safe["readOnlyRootFilesystem"] is True
    assert safe["allowPrivilegeEscalation"] is False
    assert safe["capabilities"] == {"drop": ["ALL"]}
    mounts = {one["mountPath"] for one in container()["volumeMounts"]}
    volumes = re.search(r"^VOLUME \[(.*)\]$", CONTAINER, re.MULTILINE)
    assert volumes is not None
    assert set(re.findall(r'"(.*?)"', volumes[1])) <= mounts
    service = unit()["Service"]
    assert service["DynamicUser"] == service["NoNewPrivileges"] == "yes"
    assert service["ProtectSystem"] == "strict"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_unit_and_finds_it_hard(tmp_path: Path) -> None:
    program = tmp_path / "headrace"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    text = (DEPLOY / "systemd" / "headrace.service").read_text(encoding="utf-8")
    copy = tmp_path / "headrace.service"
    copy.write_text(text.replace("/opt/headrace/bin/headrace", str(program)), encoding="utf-8")
    checked = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
    assert "headrace.service" not in checked.stderr, checked.stderr
    rated = subprocess.run(["systemd-analyze", "security", "--offline=true", copy], capture_output=True, text=True, check=False)
    found = re.search(r"exposure level for headrace.service: ([\d.]+)", rated.stdout)
    assert found is not None, rated.stdout + rated.stderr
    assert float(found[1]) <= 2.0


# Everything read-only but the two folders, as the container is started with --read-only.
_READ_ONLY = """
set -e
mount --rbind / /
mount --bind "$1" "$1"
mount --bind "$2" "$2"
for place in / /tmp /home /root /var /dev/shm; do
  if mountpoint -q "$place"; then mount -o remount,bind,ro "$place"; fi
done
if touch "$3" 2>/dev/null; then echo "it is writable" >&2; exit 3; fi
shift 3
exec "$@"
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address and key file of a server on a read-only root, with the image's variables and the manifest's arguments."""
    root = tmp_path_factory.mktemp("image")
    state, cache, keys = root / "state", root / "cache", root / "keys.txt"
    state.mkdir()
    cache.mkdir()
    keys.write_text(f"# keys\n* requests_per_minute=600\n{KEY} name=test\n", encoding="utf-8")
    environment = {
        "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1",
        "XDG_CACHE_HOME": str(cache), "HEADRACE_STATE_DIR": str(state), "HEADRACE_PORT": "0",
    }  # fmt: skip
    prefix = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    command = [
        *prefix,
        "sh",
        "-c",
        _READ_ONLY,
        "sh",
        str(state),
        str(cache),
        str(root / "forbidden"),
        sys.executable,
        "-m",
        "headrace",
    ]
    command += [str(keys) if one == "/etc/headrace/keys.txt" else one for one in container()["args"]]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            found, until = "", time.monotonic() + 90
            while " is ready" not in found:
                assert process.poll() is None, found
                if select.select([process.stderr], [], [], max(0.0, until - time.monotonic()))[0]:
                    found += process.stderr.readline()
                assert time.monotonic() < until, found
            match = re.search(r"listening on (http://[\d.]+:\d+)", found)
            assert match is not None, found
            assert "no files, batches or fine-tuning here" not in found
            yield match[1], keys
        finally:
            process.terminate()
            assert process.wait(timeout=60) == 0


@pytest.mark.server
@pytest.mark.model
@pytest.mark.parametrize("program", [probe_program, health_program])
def test_probes_work_on_a_read_only_root(program: Any, served: tuple[str, Path]) -> None:
    address, keys = served
    source = program().replace("http://127.0.0.1:8080", address).replace("/etc/headrace/keys.txt", str(keys))
    subprocess.run([sys.executable, "-c", source], check=True, capture_output=True, timeout=30)
    if "keys" in source:
        keys_of_another = keys.with_name("other.txt")
        keys_of_another.write_text("no-such-key\n", encoding="utf-8")
        refused = source.replace(str(keys), str(keys_of_another))
        assert subprocess.run([sys.executable, "-c", refused], check=False, capture_output=True, timeout=30).returncode


@pytest.mark.server
@pytest.mark.model
def test_a_read_only_root_answers_and_keeps_files(served: tuple[str, Path]) -> None:
    from openai import OpenAI

    with OpenAI(base_url=f"{served[0]}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
        message = client.chat.completions.create(
            model="smollm2-135m-instruct", messages=[{"role": "user", "content": "Say hello."}], max_tokens=8
        )
        assert message.choices[0].message.content
        kept = client.files.create(file=("a.jsonl", b'{"messages": []}\n'), purpose="user_data")
        assert client.files.retrieve(kept.id).bytes == 17
