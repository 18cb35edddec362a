"""Writes k8s/kustomize from the chart: `python k8s/generate.py HELM`; scripts/kustomize calls it.

`base` holds the objects that are the same in every profile of the chart, `overlays/PROFILE` the others, as rendered for
a release `palate` in the namespace `palate`. What only Helm reads (hooks, its labels) is left out, and so is its test.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
CHART = HERE.parent / "charts" / "palate"
HEAD = "# Written by scripts/kustomize from charts/palate: change the chart, then run it again.\n"
Objects = dict[tuple[str, str], dict[str, Any]]


def profiles() -> list[str]:
    return sorted(path.stem for path in (CHART / "profiles").glob("*.yaml"))


def rendered(helm: str, profile: str) -> Objects:
    """(kind, name) -> object, without what only Helm reads."""
    command = [helm, "template", "palate", str(CHART), "--namespace", "palate",
               "--values", str(CHART / "profiles" / f"{profile}.yaml")]  # fmt: skip
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = [one for one in yaml.safe_load_all(text) if one and "test" not in hooks(one)]
    objects = [without_helm(named_by_template(one)) for one in found]
    return {(one["kind"], one["metadata"]["name"]): one for one in objects}


def hooks(manifest: dict[str, Any]) -> list[str]:
    said: str = (manifest["metadata"].get("annotations") or {}).get("helm.sh/hook", "")
    return said.split(",") if said else []


def named_by_template(manifest: dict[str, Any]) -> dict[str, Any]:
    """Helm deletes a hook Job before it makes the next of that name; `kubectl apply` would change its pod template,
    which an API server refuses."""
    if manifest["kind"] != "Job" or not hooks(manifest):
        return manifest
    template = json.dumps(manifest["spec"]["template"], sort_keys=True)
    digest = hashlib.sha256(template.encode()).hexdigest()[:8]
    return {**manifest, "metadata": {**manifest["metadata"], "name": f"{manifest['metadata']['name']}-{digest}"}}


def without_helm(value: Any) -> Any:
    """Everywhere: pod templates have labels too."""
    if isinstance(value, list):
        return [without_helm(one) for one in value]
    if not isinstance(value, dict):
        return value
    kept = {key: without_helm(one) for key, one in value.items() if not str(key).startswith("helm.sh/")}
    if kept.get("app.kubernetes.io/managed-by") == "Helm":
        kept["app.kubernetes.io/managed-by"] = "kustomize"
    if kept.get("annotations") == {}:
        del kept["annotations"]
    return kept


def common(all_of: list[Objects]) -> Objects:
    first, *rest = all_of
    return {key: one for key, one in first.items() if all(other.get(key) == one for other in rest)}


def files(helm: str) -> dict[str, str]:
    """Path below k8s/kustomize -> text."""
    found = {profile: rendered(helm, profile) for profile in profiles()}
    base = common(list(found.values()))
    out = {"base/kustomization.yaml": kustomization(["objects.yaml"]), "base/objects.yaml": text_of(base)}
    for profile, objects in found.items():
        own = {key: one for key, one in objects.items() if key not in base}
        out[f"overlays/{profile}/kustomization.yaml"] = kustomization(["../../base", "objects.yaml"])
        out[f"overlays/{profile}/objects.yaml"] = text_of(own)
    return out


def kustomization(resources: list[str]) -> str:
    content = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": resources}
    return HEAD + yaml.safe_dump(content, sort_keys=False)


def text_of(objects: Objects) -> str:
    ordered = [objects[key] for key in sorted(objects)]
    return HEAD + yaml.safe_dump_all(ordered, sort_keys=False, width=120, allow_unicode=True)


def main(helm: str) -> None:
    root = HERE / "kustomize"
    wanted = files(helm)
    for old in root.rglob("*.yaml"):
        if str(old.relative_to(root)) not in wanted:
            old.unlink()
    for path, text in wanted.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
