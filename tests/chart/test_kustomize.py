"""k8s/kustomize says what the chart says: the files are those that scripts/kustomize writes now, and what kubectl makes
of each overlay is what helm renders for the profile of that name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.chart.rendering import PROFILES, ROOT, of_kind, template, tools

sys.path.insert(0, str(ROOT / "k8s"))
import generate

KUSTOMIZE = ROOT / "k8s" / "kustomize"


def test_the_files_are_what_the_chart_gives_now() -> None:
    there = {str(f.relative_to(KUSTOMIZE)): f.read_text(encoding="utf-8") for f in KUSTOMIZE.rglob("*.yaml")}
    wanted = generate.files(str(tools() / "helm"))
    assert sorted(there) == sorted(wanted), "run scripts/kustomize"
    assert [path for path in wanted if there[path] != wanted[path]] == [], "run scripts/kustomize"


@pytest.mark.parametrize("profile", PROFILES)
def test_kubectl_makes_of_an_overlay_what_helm_renders(profile: str, tmp_path: Path) -> None:
    command = [str(tools() / "kubectl"), "kustomize", str(KUSTOMIZE / "overlays" / profile)]
    done = subprocess.run(command, capture_output=True, text=True, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr
    built = {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(done.stdout)}
    assert built == generate.rendered(str(tools() / "helm"), profile)
    assert "helm.sh/" not in done.stdout


def test_kubectl_applies_a_job_of_another_pod_template_beside_the_one_before() -> None:
    def names(*arguments: str) -> set[str]:
        done = template("cpu-production", *arguments)
        assert done.returncode == 0, done.stderr
        jobs = of_kind([one for one in yaml.safe_load_all(done.stdout) if one], "Job")
        return {generate.named_by_template(job)["metadata"]["name"] for job in jobs}

    before = names()
    assert len(before) == 1
    assert all(re.fullmatch(r"palate-migrate-[0-9a-f]{8}", name) for name in before)
    assert names() == before
    assert not names("--set", "image.tag=0.0.9") & before
    assert not names("--set", "config.max_queue=512") & before
