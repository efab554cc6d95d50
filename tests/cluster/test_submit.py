"""cluster/submit.sh: one Ray job for a name, whatever happens to who follows it, and the command's own exit code."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

RAY = r"""#!/usr/bin/env bash
# Says what `ray job` of Ray 2.60 says. A file for each job holds its state; $END is how the next one ends.
echo "$2 ${*: -1}" >>"$JOBS/calls"
case $2 in
    submit) echo RUNNING >"$JOBS/$5.state" ;;
    logs) [[ $END == never ]] && { touch "$JOBS/followed"; exec sleep 60; }; echo "$END" >"$JOBS/$4.state" ;;
    stop) echo STOPPED >"$JOBS/$3.state" ;;
    status)
        [[ -e $JOBS/silent ]] && { rm "$JOBS/silent"; echo "ConnectionError: Failed to connect to Ray"; exit 1; }
        [[ -e $JOBS/denied ]] && { echo "ray.exceptions.AuthenticationError: Invalid authentication token"; exit 1; }
        case $(cat "$JOBS/$3.state" 2>/dev/null) in
            "") echo "RuntimeError: Request failed with status code 404: Job $3 does not exist."; exit 1 ;;
            RUNNING) echo "Status for job '$3': RUNNING" ;;
            STOPPED) echo "Job '$3' was stopped" ;;
            0) echo "Job '$3' succeeded" ;;
            killed) printf "Job '%s' failed\nStatus message: its node died.\n" "$3" ;;
            *) printf "Job '%s' failed\nStatus message: Job entrypoint command failed with exit code %s, last" \
                "$3" "$(cat "$JOBS/$3.state")"
               printf " available logs (truncated to 20,000 chars):\nthree tiles failed\n" ;;
        esac ;;
esac
"""

Submit = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    (tmp_path / "ray").write_text(RAY)
    (tmp_path / "ray").chmod(0o755)
    return tmp_path


@pytest.fixture
def submit(jobs: Path) -> Submit:
    def run(end: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PATH": f"{jobs}:{os.environ['PATH']}", "JOBS": str(jobs), "END": end}
        environment["SUBMIT_PATIENCE"] = "0"
        command = [str(ROOT / "cluster" / "submit.sh"), "night", "python", "caption.py"]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)

    return run


def calls(jobs: Path, name: str) -> list[str]:
    """What `ray job NAME` was last given, call by call."""
    said = (line.split(maxsplit=1) for line in (jobs / "calls").read_text().splitlines())
    return [last for call, last in said if call == name]


@pytest.mark.parametrize(
    ("end", "code"), [("0", 0), ("1", 1), ("2", 2), ("3", 3), ("-9", 1), ("killed", 1), ("STOPPED", 1)]
)
def test_it_ends_with_the_exit_code_of_the_command(jobs: Path, submit: Submit, end: str, code: int) -> None:
    process = submit(end)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert (jobs / "night-1.state").read_text().strip() == end
    assert (f"night-1 ended with exit code {code}" in errors) == (code != 0)
    assert ("its node died" in errors) == (end == "killed")


def test_a_second_one_follows_what_the_first_submitted(jobs: Path, submit: Submit) -> None:
    (jobs / "night-1.state").write_text("RUNNING")
    assert submit("3").wait(timeout=30) == 3
    assert calls(jobs, "submit") == []
    assert calls(jobs, "logs") == ["night-1"]


@pytest.mark.parametrize("code", [0, 2, 3])
def test_what_is_over_is_not_done_again(jobs: Path, submit: Submit, code: int) -> None:
    (jobs / "night-1.state").write_text(str(code))
    assert submit("0").wait(timeout=30) == code
    assert calls(jobs, "submit") == []


@pytest.mark.parametrize("before", ["1", "killed", "STOPPED"])
def test_what_failed_is_submitted_anew(jobs: Path, submit: Submit, before: str) -> None:
    (jobs / "night-1.state").write_text(before)
    assert submit("0").wait(timeout=30) == 0
    assert calls(jobs, "submit") == ["caption.py"]
    assert (jobs / "night-2.state").read_text().strip() == "0"


def test_a_cluster_that_is_silent_for_a_while_is_asked_again(jobs: Path, submit: Submit) -> None:
    (jobs / "silent").touch()
    process = submit("0")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "the cluster does not answer: ConnectionError" in errors


def test_a_wrong_token_is_told_at_once(jobs: Path, submit: Submit) -> None:
    (jobs / "denied").touch()
    process = submit("0")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "refuses the token (RAY_AUTH_TOKEN): ray.exceptions.AuthenticationError" in errors
    assert calls(jobs, "status") == ["night-1"]


def test_ended_it_stops_the_job(jobs: Path, submit: Submit) -> None:
    process = submit("never")
    while not (jobs / "followed").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    assert calls(jobs, "stop") == ["night-1"]
    assert (jobs / "night-1.state").read_text().strip() == "STOPPED"


def test_ray_still_says_what_the_script_reads() -> None:
    (package,) = importlib.util.find_spec("ray").submodule_search_locations  # type: ignore[union-attr,misc]
    jobs = Path(package) / "dashboard" / "modules" / "job"
    said = (jobs / "cli.py").read_text()
    for text in ("Job '{job_id}' succeeded", "Job '{job_id}' was stopped", "Job '{job_id}' failed"):
        assert f'"{text}"' in said
    assert "f\"Status for job '{job_id}': {info.status}\"" in said
    assert "failed with exit code {return_code}" in (jobs / "job_supervisor.py").read_text()
    assert "Job {job_or_submission_id} does not exist" in (jobs / "job_head.py").read_text()
