"""Which workers fit on which nodes, and what one gets who asks for nothing."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml

from cohortseg import cluster
from cohortseg.cluster import (
    Resources,
    WorkerRequest,
    advice,
    cluster_address,
    connected,
    local_resources,
    one_line,
    require_answer,
    worker_request,
)
from cohortseg.errors import ConfigError
from cohortseg.processors import num_processors

ROOT = Path(__file__).parents[1]
SLURM = ROOT / "cluster/slurm.sbatch"
KUBERAY = ((4.0, 0.0), (8.0, 1.0), (8.0, 1.0))
"""cluster/kuberay.yaml: a head without GPU and two workers with one each."""


def test_the_manifest_for_kubernetes_has_these_nodes_the_tested_ray_and_a_token():
    manifest = yaml.safe_load((ROOT / "cluster/kuberay.yaml").read_text(encoding="utf-8"))
    ray_cluster = manifest["spec"]["rayClusterSpec"]
    assert ray_cluster["authOptions"] == {"mode": "token"}
    assert f"ray=={ray_cluster['rayVersion']}\n" in (ROOT / "constraints.txt").read_text(encoding="utf-8")
    nodes = []
    for group in (ray_cluster["headGroupSpec"], *ray_cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        nodes += [(float(limits["cpu"]), float(limits.get("nvidia.com/gpu", 0)))] * group.get("replicas", 1)
    assert tuple(nodes) == KUBERAY


@pytest.mark.parametrize(
    ("nodes", "workers", "expected"),
    [
        (((2.0, 0.0),), None, (1, 2, 0)),
        (((2.0, 0.0),), 2, (2, 1, 0)),
        (((2.0, 0.0),), 8, (8, 1, 0)),  # refused by `check`, with a share that fits
        (((4.0, 0.0), (4.0, 0.0)), None, (1, 4, 0)),
        (((4.0, 0.0), (8.0, 0.0)), 3, (3, 4, 0)),
        (KUBERAY, None, (2, 8, 1)),
        (((16.0, 4.0),), None, (4, 4, 1)),
    ],
)
def test_workers_share_nodes_and_not_their_sum(nodes, workers, expected):
    request = worker_request(workers, None, Resources(nodes=nodes, where="the cluster"))
    assert (request.num_workers, request.cpus_per_worker, request.gpus_per_worker) == expected


def test_the_default_request_fits_where_a_worker_fits():
    for nodes in (KUBERAY, ((4.0, 0.0), (4.0, 0.0)), ((1.0, 0.0),)):
        resources = Resources(nodes=nodes, where="the cluster")
        worker_request(None, None, resources).check(resources)


def checked(num_workers, cpus, gpus, resources):
    request = WorkerRequest(num_workers=num_workers, cpus_per_worker=cpus, gpus_per_worker=gpus)
    request.check(resources, cpus_flag=True)


def test_workers_that_do_not_fit_are_refused_with_the_flags_that_would():
    machine = Resources(nodes=((2.0, 0.0),), where="this machine")
    checked(8, 0.25, 0, machine)
    expected = r"8 workers x 1 CPU need 8 CPUs, this machine has 2; use --workers 2 or --cpus-per-worker 0.25"
    with pytest.raises(ConfigError, match=expected):
        checked(8, 1, 0, machine)
    with pytest.raises(
        ConfigError, match="2 workers x 1 CPU need 2 CPUs and 1 GPU need 2 GPUs, the cluster has 16 and 1"
    ):
        checked(2, 1, 1, Resources(nodes=((8.0, 1.0), (8.0, 0.0)), where="the cluster"))
    with pytest.raises(ConfigError, match="use --workers 2"):
        checked(3, 2, 0, Resources(nodes=((3.0, 0.0), (3.0, 0.0)), where="this machine"))


def test_the_share_advised_is_one_that_a_node_has():
    resources = Resources(nodes=KUBERAY, where="the cluster")
    with pytest.raises(ConfigError, match="use --cpus-per-worker 8"):
        checked(2, 10, 1, resources)
    with pytest.raises(ConfigError, match="use --workers 2"):
        checked(3, 1, 1, resources)
    assert resources.largest_share(3, 1.0) == 0
    assert resources.largest_share(5) == 4


def test_processors_are_those_of_the_affinity_or_the_quota_if_that_is_less(monkeypatch):
    assert 1 <= num_processors() <= len(os.sched_getaffinity(0))
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert local_resources().num_cpus == num_processors() == 1


def test_an_address_at_which_nothing_listens_is_refused_at_once(monkeypatch):
    """Ray waits for minutes, and prints lines of its own."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    require_answer(None)
    require_answer("auto")
    require_answer("local")
    assert cluster_address("local") is None, "it is begun here, and so bound to loopback"
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        require_answer(address)
    with pytest.raises(ConfigError, match=f"no Ray cluster answers at {address}"):
        require_answer(address)
    for odd in ("a..b:6379", f"{'x' * 70}:6379", "127.0.0.1:99999"):
        with pytest.raises(ConfigError, match="no Ray cluster answers"):
            require_answer(odd)
    unclear = ("head-node", "head-node:ray", ":6379", "2001:db8::1", "a:b:1")
    for no_address in ("ray://nowhere:10001", "http://nowhere:6379", *unclear):
        with pytest.raises(ConfigError, match=r"no address of a Ray cluster; give HOST:PORT"):
            require_answer(no_address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match="no Ray cluster answers"):
        require_answer(None)


def test_a_ray_that_was_imported_too_early_to_listen_on_loopback_is_refused(monkeypatch):
    for name in ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    with pytest.raises(ConfigError, match="ray was imported before cohortseg"), connected(None):
        pass


def test_a_signal_while_ray_starts_interrupts_and_what_ray_had_started_is_ended(monkeypatch, tmp_path):
    """Ray puts a handler of its own in place, and leaves it there."""
    raylet, of_another = (tmp_path / name / "sleep.py" for name in ("ray", "other"))
    for script in (raylet, of_another):
        script.parent.mkdir()
        script.write_text("import time; time.sleep(60)")
    children = [subprocess.Popen([sys.executable, of_another])]

    def init(**_):
        children.append(subprocess.Popen([sys.executable, raylet]))
        signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(number))
        os.kill(os.getpid(), signal.SIGTERM)

    ray = SimpleNamespace(
        __file__=str(tmp_path / "ray/__init__.py"), is_initialized=lambda: False, init=init, shutdown=lambda: None
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    for name, value in {**cluster._EVERYWHERE, **cluster._LOCAL}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), connected(None):
        pass
    assert signal.getsignal(signal.SIGTERM) is before
    other, started = children
    assert started.wait(timeout=10) == -signal.SIGKILL
    assert other.poll() is None
    other.kill()
    other.wait()


def run_slurm(tmp_path, *arguments, starts=True, ends=0, **slurm):
    """Run the script with commands in place of Slurm's, Ray's and ours; ours notes its arguments."""
    token = 'if [ "$1" = get-auth-token ]; then mkdir -p ~/.ray; echo secret | tee ~/.ray/auth_token; exit; fi\n'
    symmetric_run = f'while [ "$1" != -- ]; do shift; done; shift; {"" if starts else "exit 0; "}"$@"'
    commands = {
        "scontrol": "echo node1",
        "srun": 'while [[ $1 == -* ]]; do [ "$1" = -w ] && shift; shift; done; "$@"',
        "hostname": "echo 10.1.2.3",
        "ray": token + symmetric_run,
        "cohortseg": f'echo "$#: $* $RAY_AUTH_MODE" >"{tmp_path}/arguments"; exit {ends}',
    }
    for name, body in commands.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "node1", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_ID": "7", "HOME": str(tmp_path)}
    return subprocess.run(
        ["bash", str(SLURM), *arguments],
        env=os.environ | job | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(("starts", "ends"), [(True, 0), (True, 3), (False, 1)])
def test_the_slurm_script_ends_as_the_command_does_and_fails_where_ray_does_not_start(tmp_path, starts, ends):
    """Ray's own symmetric-run ends with 0 where it did not start, and so does the one here."""
    done = run_slurm(tmp_path, "infer", "a cohort", "-o", "out", starts=starts, ends=ends)
    assert done.returncode == ends, done.stderr
    assert ("did not run to its end" in done.stderr) == (not starts)
    if starts:
        assert (tmp_path / "arguments").read_text() == "4: infer a cohort -o out token\n"
    assert (tmp_path / ".ray/auth_token").stat().st_mode & 0o777 == 0o600
    assert "secret" not in done.stdout + done.stderr
    assert not list(tmp_path.glob(".cohortseg-*"))


@pytest.mark.parametrize("given", [["-o", "my run"], ["--output", "my run"], ["--output=my run"]])
def test_a_training_that_slurm_requeued_goes_on_if_it_had_begun(tmp_path, given):
    def arguments(*command):
        assert run_slurm(tmp_path, *command, SLURM_RESTART_COUNT="1").returncode == 0
        return (tmp_path / "arguments").read_text().split(": ")[1].removesuffix(" token\n").split()

    command = ["train", *given, "--workers", "2"]
    before = arguments(*command)
    assert "--resume" not in before
    (tmp_path / "my run").mkdir()
    (tmp_path / "my run/settings.json").write_text("{}")
    assert arguments(*command) == [*before, "--resume"]
    assert "--resume" not in arguments("infer", "cohort", "-o", "my run")
    assert "--resume" not in arguments("train", "-o", "another")


GLOO = """\x1b[36mray::execute._setup_torch_process_group()\x1b[39m (pid=3444, ip=10.77.0.10)
  File "/venv/torch/distributed/distributed_c10d.py", line 2169, in _new_process_group_helper
    backend_class = ProcessGroupGloo(
                    ^^^^^^^^^^^^^^^^^
RuntimeError: Gloo connectFullMesh failed with [pair.cc:152] timed out connecting: remote=[127.0.1.1]:25481
"""
"""What a training on two hosts ended with, shortened."""


def test_of_a_traceback_in_rays_words_the_cause_is_told_and_what_to_do_about_it():
    said = one_line(GLOO)
    assert said.startswith("RuntimeError: Gloo connectFullMesh failed with [pair.cc:152]")
    assert "\n" not in said
    assert re.fullmatch(r"set GLOO_SOCKET_IFNAME to .*, and then go on", advice(said, "go on"))
    lacking = "ModuleNotFoundError: No module named 'cohortseg'"
    assert "on every node" in advice(lacking, "go on")
    assert one_line("no room\n  for 3 workers\n") == "no room for 3 workers"
    assert advice("no room", "go on") == "go on"


def test_ray_of_another_version_is_named_as_such(monkeypatch):
    def init(**_):
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.60.0\nThis process: 2.61.0")

    ray = SimpleNamespace(init=init, exceptions=SimpleNamespace(AuthenticationError=PermissionError))
    monkeypatch.setattr(cluster, "require_answer", lambda _: None)
    with pytest.raises(
        ConfigError, match=r"^the Ray cluster at here:1 cannot be used.* with: Ray: 2\.60\.0 This"
    ) as raised:
        cluster._init(ray, "here:1")
    assert "RAY_AUTH_MODE" not in str(raised.value)


def test_a_worker_that_does_not_end_with_its_cluster_is_ended(monkeypatch):
    """Here it is stopped, so that only a kill ends it; what is not Ray's is left alone."""
    monkeypatch.setattr(cluster, "_EXIT_S", 0.2)
    with (
        subprocess.Popen(["ray::Hung", "60"], executable="/bin/sleep") as hung,
        subprocess.Popen(["sleep", "60"]) as other,
    ):
        os.kill(hung.pid, signal.SIGSTOP)
        workers = cluster._workers()
        while not workers:  # its name is set once it runs
            workers = cluster._workers()
        assert [worker.pid for worker in workers] == [hung.pid]
        cluster._end(workers)
        assert not psutil.pid_exists(hung.pid)
        assert other.poll() is None
        other.kill()
