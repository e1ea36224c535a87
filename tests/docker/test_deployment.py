"""The files in docker/: by their schemas, and what they say of this project is so."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from cyclopts import App, Parameter
from torch.distributed.run import get_args_parser

from experiments.cli import app
from experiments.cluster.setting import Setting

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
KUBERNETES = "1.37"
MISSING = "is not installed: pip install --requirement docker/validators.txt"

COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
POLICY, RAY_JOB = yaml.safe_load_all((DOCKER / "rayjob.yaml").read_text())
TORCHRUN: list[dict[str, Any]] = [*yaml.safe_load_all((DOCKER / "torchrun-job.yaml").read_text())]
CLUSTER = RAY_JOB["spec"]["rayClusterSpec"]
GROUPS = [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]
TEMPLATES = [*(group["template"] for group in GROUPS), RAY_JOB["spec"]["submitterPodTemplate"]]
JOB = TORCHRUN[-1]
PODS = [group["template"]["spec"] for group in GROUPS] + [JOB["spec"]["template"]["spec"]]


def needed(module: str) -> Any:
    return pytest.importorskip(module, reason=f"{module} {MISSING}")


def pins(path: Path) -> dict[str, str]:
    """Versions by the names of packages."""
    lines = [line.partition("==") for line in path.read_text().splitlines() if "==" in line]
    return {name.lower().replace("_", "-"): version for name, _, version in lines}


def torchrun(words: list[str]) -> Any:
    """What torchrun makes of them in the pod of index 1."""
    return get_args_parser().parse_args([word.replace("$(INDEX)", "1") for word in words])


class TestSchemas:
    def test_compose(self) -> None:
        parse = needed("compose_spec").PyCompose.from_yaml
        # With its anchors in their places, which are YAML's affair and none of Compose's.
        found = parse(yaml.safe_dump(COMPOSE))
        assert set(found.services) == {"head", "node", "job"}
        head = {**COMPOSE["services"]["head"], "shm_sizes": "1g"}
        with pytest.raises(ValueError, match="shm_sizes"):
            parse(yaml.safe_dump({**COMPOSE, "services": {"head": head}}))

    def test_manifests(self) -> None:
        validator = needed("kubernetes_validate")
        for resource in (POLICY, *TORCHRUN):
            assert validator.validate(resource, KUBERNETES, strict=True) == KUBERNETES
        with pytest.raises(validator.ValidationError, match="shm"):
            validator.validate({**JOB, "shm": 1}, KUBERNETES, strict=True)

    @pytest.mark.parametrize("template", TEMPLATES)
    def test_pods_of_the_ray_job(self, template: dict[str, Any]) -> None:
        """Kubernetes knows no RayJob; the pods that are in one it knows."""
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "template": template}
        assert needed("kubernetes_validate").validate(pod, KUBERNETES, strict=True) == KUBERNETES

    def test_dockerfile(self) -> None:
        lint = Path(sys.executable).with_name("hadolint")
        if not lint.exists():
            pytest.skip(f"hadolint {MISSING}")
        done = subprocess.run(
            [lint, DOCKER / "Dockerfile"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


class TestPods:
    @pytest.mark.parametrize("pod", PODS)
    def test_are_not_root_and_have_shared_memory(self, pod: dict[str, Any]) -> None:
        assert pod["securityContext"]["runAsNonRoot"]
        assert not pod["automountServiceAccountToken"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for container in pod["containers"]:
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
            assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
            # What Dockerfile's first lines build.
            assert container["image"] == COMPOSE["services"]["head"]["image"] == "robust-agg:cpu"

    @pytest.mark.parametrize("template", TEMPLATES)
    def test_of_the_ray_job_reach_each_other_and_nobody_else_them(
        self, template: dict[str, Any]
    ) -> None:
        own = POLICY["spec"]["podSelector"]
        assert own["matchLabels"].items() <= template["metadata"]["labels"].items()
        assert POLICY["spec"]["policyTypes"] == ["Ingress"]
        ours, operators = POLICY["spec"]["ingress"]
        assert ours == {"from": [{"podSelector": own}]}
        assert operators["ports"] == [{"port": 8265}], "how the job is, and nothing else"
        (who,) = operators["from"]
        assert who["podSelector"]["matchLabels"] == {
            "app.kubernetes.io/component": "kuberay-operator"
        }
        assert template["spec"]["securityContext"]["runAsNonRoot"]
        (container,) = template["spec"]["containers"]
        assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
        assert container["image"] == "robust-agg:cpu"

    def test_indices_are_ranks(self) -> None:
        assert JOB["spec"]["completionMode"] == "Indexed"
        assert JOB["spec"]["completions"] == JOB["spec"]["parallelism"]
        service, policy, job = TORCHRUN
        name = service["metadata"]["name"]
        assert service["spec"]["clusterIP"] == "None"
        assert JOB["spec"]["template"]["spec"]["subdomain"] == name
        assert service["spec"]["selector"].items() <= (
            job["spec"]["template"]["metadata"]["labels"].items()
        )
        (container,) = JOB["spec"]["template"]["spec"]["containers"]
        assert policy["spec"]["policyTypes"] == ["Ingress"]
        own = policy["spec"]["podSelector"]
        assert policy["spec"]["ingress"] == [{"from": [{"podSelector": own}]}]
        labels = job["spec"]["template"]["metadata"]["labels"]
        assert own["matchLabels"].items() <= labels.items()
        assert "--node-rank=$(INDEX)" in container["args"]
        given = torchrun(container["args"])
        assert given.nnodes == str(JOB["spec"]["completions"])
        assert given.master_addr == f"{JOB['metadata']['name']}-0.{name}"
        assert given.master_port == service["spec"]["ports"][0]["port"]


class TestCommands:
    """What is started is there, and takes the options it is given."""

    @pytest.mark.parametrize(
        "command",
        [RAY_JOB["spec"]["entrypoint"].split(), COMPOSE["services"]["job"]["entrypoint"][5:]],
    )
    def test_the_main_job(self, command: list[str]) -> None:
        assert command[:2] == ["robust-agg", "run"]
        _, bound, _ = app.parse_args(command[1:], exit_on_error=False, print_error=False)
        assert bound.arguments["config"].transport == "ray"
        assert bound.arguments["config"].hosts == 2

    def test_the_ddp_job(self) -> None:
        (container,) = JOB["spec"]["template"]["spec"]["containers"]
        given = torchrun(container["args"])
        assert (given.module, given.training_script) == (True, "experiments.cluster.ddp")
        script = App(result_action="return_value")

        @script.default
        def read(setting: Annotated[Setting | None, Parameter(name="*")] = None) -> Setting | None:
            return setting

        setting = script(given.training_script_args, exit_on_error=False)
        setting.check_ranks(JOB["spec"]["completions"])
        assert setting.defence == "GeometricMedian"

    def test_nodes_are_asked_how_they_are(self) -> None:
        """By a file of the image; what it says is tested on hosts."""
        text = (DOCKER / "Dockerfile").read_text()
        copied = re.search(r"^COPY docker/(\S+\.py) (\S+)$", text, re.M)
        assert copied is not None
        assert (DOCKER / copied[1]).is_file()
        for name in ("head", "node"):
            asked = COMPOSE["services"][name]["healthcheck"]["test"]
            assert asked == ["CMD", "python", copied[2], "--required"]

    def test_hosts_have_the_cpus_they_ask_for(self) -> None:
        hosts = 2
        services, head, (nodes,) = COMPOSE["services"], GROUPS[0], GROUPS[1:]
        (cpus,) = (w for w in services["node"]["command"] if w.startswith("--num-cpus="))
        assert services["node"]["deploy"]["replicas"] * int(cpus.partition("=")[2]) >= hosts
        assert "--num-cpus=0" in services["head"]["command"]
        assert services["job"]["depends_on"]["node"] == {"condition": "service_healthy"}
        assert head["rayStartParams"]["num-cpus"] == "0"
        (container,) = nodes["template"]["spec"]["containers"]
        assert nodes["replicas"] * int(container["resources"]["limits"]["cpu"]) >= hosts
        for command in (RAY_JOB["spec"]["entrypoint"], " ".join(services["job"]["entrypoint"])):
            assert re.findall(r"--hosts[ =](\d+)", command) == [str(hosts)]

    def test_tokens_are_asked_for(self) -> None:
        assert RAY_JOB["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
        for service in COMPOSE["services"].values():
            assert service["environment"]["RAY_AUTH_MODE"] == "token"
            assert service["secrets"] == ["ray_token"]


class TestVersions:
    def test_ray_is_that_of_the_image(self) -> None:
        ray = pins(ROOT / "constraints.txt")["ray"]
        assert RAY_JOB["spec"]["rayClusterSpec"]["rayVersion"] == ray

    def test_no_package_is_pinned_twice(self) -> None:
        own, images = (pins(folder / "constraints.txt") for folder in (ROOT, DOCKER))
        assert not own.keys() & images.keys()

    def test_what_is_installed_is_sent_to_the_build(self) -> None:
        kept = {
            line.removeprefix("!").rstrip("/")
            for line in (ROOT / ".dockerignore").read_text().splitlines()
            if line.startswith("!")
        }
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
        assert kept >= {*packages, "pyproject.toml", "README.md", "LICENSE", "constraints.txt"}
        text = (DOCKER / "Dockerfile").read_text()
        copied = set(re.findall(r"^COPY (\w\S+) \S+$", text, re.M))
        assert copied
        assert kept >= copied
