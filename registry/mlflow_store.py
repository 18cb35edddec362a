"""`MlflowStore`: releases in an MLflow server, where people see them, compare them and move their aliases.

Called by serving (get, fetch), training (publish) and the controller (aliases, tags) through
`registry.ports.ReleaseStore`; calls only MLflow's public client, whose import takes about a second and therefore waits
until a store is made.

What lies where in MLflow:

    experiment "palate components"   one run per component, tagged with its digest, its files as artefacts
    experiment <app>                 one run per release: params, metrics, lineage, the artefact release.json
    registered model <app>           one version per release, pointing to its run, tagged with its digests

A run counts only once it is FINISHED, and that is set last: a publisher that dies leaves a run nobody reads, and the
next one uploads again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from registry.component_cache import ComponentCache
from registry.config import bound_mlflow_client
from registry.content import digest_json
from registry.errors import RegistryError, RegistryUnavailable, ReleaseNotFound, ReleaseRefused
from registry.manifest import (
    APP_NAME,
    TAG_MANIFEST,
    TAG_RELEASE,
    check_folders,
    check_release,
    check_same,
    from_json,
    missing_folder,
    to_json,
    version_tags,
)
from registry.mlflow_layout import description, mlflow_key, spec_params
from registry.schema import ComponentRef, Release, ReleaseVersion

COMPONENTS_EXPERIMENT = "palate components"
RELEASE_FILE = "release.json"
TAG_DIGEST = "palate.digest"
PAGE = 200

log = logging.getLogger(__name__)


class MlflowStore:
    """Safe to share between threads and between processes; making one does not yet reach the server."""

    def __init__(self, tracking_uri: str) -> None:
        bound_mlflow_client()
        from mlflow import MlflowClient

        self.tracking_uri = tracking_uri
        self._client = MlflowClient(tracking_uri, registry_uri=tracking_uri)
        self._cache = ComponentCache()
        self._releases: dict[str, Release] = {}  # by run id; a release is immutable

    # --- publish ---

    def publish(self, release: Release, folders: Mapping[str, Path]) -> ReleaseVersion:
        """See the port. Components that the store has lost are uploaded again even where the version exists.

        Publishers at the same time, on any machines, end with one version: each creates its own if it saw none, looks
        again, and all keep the lowest. Versions are numbered by the server and tagged in the transaction that creates
        them, so whoever is not lowest sees the one that is. Only if a publisher dies between those two steps does an
        identical second version stay, without an alias; the next publish of that release removes it.
        """
        check_release(release)
        check_folders(release, folders)
        with self._mlflow_errors():
            for component in {c.digest: c for c in release.components}.values():
                if self._component_run(component.digest) is None:
                    self._upload(component, folders)
            versions = self._versions_with(release)
            if not versions:
                self._create_version(release)
                versions = self._versions_with(release)
            if not versions:
                raise RegistryError(f"the new version of {release.app} was deleted meanwhile: publish it again")
            kept = self._keep_lowest(release.app, versions)
        check_same(kept.release, release)
        return kept

    def _upload(self, component: ComponentRef, folders: Mapping[str, Path]) -> None:
        if component.digest not in folders:
            raise missing_folder(component)
        tags = {
            TAG_DIGEST: component.digest,
            "palate.role": component.role,
            "palate.fingerprint": component.fingerprint,
            "palate.size_bytes": str(component.size_bytes),
        }
        with self._run(COMPONENTS_EXPERIMENT, f"{component.name} {component.digest[:12]}", tags) as run:
            self._client.log_artifacts(run.info.run_id, str(folders[component.digest]))

    def _create_version(self, release: Release) -> None:
        from mlflow.entities import Metric, Param

        tags = {TAG_RELEASE: release.digest, **{mlflow_key(f"lineage.{k}"): v for k, v in release.lineage.items()}}
        with self._run(release.app, f"release {release.digest[:12]}", tags) as run:
            metrics = [Metric(mlflow_key(k), v, run.info.start_time, 0) for k, v in release.metrics.items()]
            params = [Param(k, v) for k, v in spec_params(release.spec).items()]
            self._client.log_batch(run.info.run_id, metrics=metrics, params=params)
            text = json.dumps(to_json(release), ensure_ascii=False, indent=1)
            self._client.log_text(run.info.run_id, text, RELEASE_FILE)
        with _tolerate("RESOURCE_ALREADY_EXISTS"):
            self._client.create_registered_model(release.app)
        self._client.create_model_version(
            release.app,
            source=run.info.artifact_uri,
            run_id=run.info.run_id,
            tags=version_tags(release),
            description=description(release),
            await_creation_for=0,
        )

    def _keep_lowest(self, app: str, versions: list[Any]) -> ReleaseVersion:
        first, *others = sorted(versions, key=lambda v: int(v.version))
        for other in others:
            with _tolerate("RESOURCE_DOES_NOT_EXIST"):
                if not self._client.get_model_version(app, other.version).aliases:
                    self._client.delete_model_version(app, other.version)
        return self._version(self._client.get_model_version(app, first.version))

    @contextmanager
    def _run(self, experiment: str, name: str, tags: Mapping[str, str]) -> Iterator[Any]:
        """A run that is FINISHED when the block ends well, FAILED when it raises, RUNNING when the process dies."""
        run = self._client.create_run(self._experiment(experiment, create=True), run_name=name, tags=dict(tags))
        status = "FAILED"
        try:
            yield run
            status = "FINISHED"
        finally:
            self._client.set_terminated(run.info.run_id, status)

    def _experiment(self, name: str, *, create: bool) -> str | None:
        found = self._client.get_experiment_by_name(name)
        if found is None and create:
            with _tolerate("RESOURCE_ALREADY_EXISTS"):
                return str(self._client.create_experiment(name))
            found = self._client.get_experiment_by_name(name)
        if found is not None and found.lifecycle_stage == "deleted":
            raise RegistryError(f"the MLflow experiment {name!r} was deleted: restore it in MLflow, then try again")
        return None if found is None else str(found.experiment_id)

    # --- read ---

    def get(self, app: str, version_or_alias: int | str) -> ReleaseVersion:
        """See the port. One request, and the download of release.json when this process first meets the version."""
        try:
            with self._mlflow_errors(invalid=ReleaseNotFound):
                if isinstance(version_or_alias, str):
                    found = self._client.get_model_version_by_alias(app, version_or_alias)
                else:
                    found = self._client.get_model_version(app, str(version_or_alias))
        except ReleaseNotFound as error:
            raise ReleaseNotFound(
                f"{app} has no version or alias {version_or_alias!r}: `palate releases {app}` lists what there is"
            ) from error
        return self._version(found)

    def versions(self, app: str) -> list[ReleaseVersion]:
        """See the port. A version that was not published here, or cannot be read, is left out with a warning."""
        if not APP_NAME.fullmatch(app):
            return []
        with self._mlflow_errors():
            found = self._search_versions(f"name = '{app}'")
            aliases = self._client.get_registered_model(app).aliases if found else {}
        versions = []
        for version in sorted(found, key=lambda v: int(v.version), reverse=True):
            names = frozenset(alias for alias, number in aliases.items() if int(number) == int(version.version))
            try:
                versions.append(self._version(version, names))
            except ReleaseRefused as error:
                log.warning("left out: %s", error)
        return versions

    def _version(self, found: Any, aliases: frozenset[str] | None = None) -> ReleaseVersion:
        return ReleaseVersion(
            version=int(found.version),
            release=self._release(found),
            aliases=frozenset(found.aliases) if aliases is None else aliases,
            tags=dict(found.tags),
            created_s=found.creation_timestamp / 1000,
        )

    def _release(self, found: Any) -> Release:
        cached = self._releases.get(found.run_id)
        if cached is not None:
            return cached
        name = f"version {found.version} of {found.name}"
        if TAG_MANIFEST not in found.tags or not found.run_id:
            raise ReleaseRefused(f"{name} was not published by Palate: choose a version that was")
        with self._mlflow_errors(missing=ReleaseRefused), TemporaryDirectory(prefix="palate-") as folder:
            path = Path(self._client.download_artifacts(found.run_id, RELEASE_FILE, folder))
            content = path.read_bytes()
        try:
            value = json.loads(content)
            sound = digest_json(value) == found.tags[TAG_MANIFEST]
        except ValueError:
            sound = False
        if not sound:
            raise ReleaseRefused(f"{RELEASE_FILE} of {name} was altered: publish the release again")
        release = self._releases[found.run_id] = from_json(value)
        return release

    def _versions_with(self, release: Release) -> list[Any]:
        return self._search_versions(f"name = '{release.app}' and tags.`{TAG_RELEASE}` = '{release.digest}'")

    def _search_versions(self, query: str) -> list[Any]:
        found: list[Any] = []
        token = None
        while True:
            page = self._client.search_model_versions(query, max_results=PAGE, page_token=token)
            found += page
            token = page.token
            if not token:
                return found

    # --- components ---

    def fetch(self, component: ComponentRef, into: Path) -> Path:
        """See the port. Raises ReleaseNotFound when no complete copy is stored."""
        return self._cache.fetch(component, into, lambda folder: self._download(component, folder))

    def _download(self, component: ComponentRef, folder: Path) -> None:
        with self._mlflow_errors(missing=ReleaseRefused):
            run = self._component_run(component.digest)
            if run is None:
                raise ReleaseNotFound(
                    f"no complete copy of {component.name} ({component.digest[:12]}) is stored: publish it again"
                )
            self._client.download_artifacts(run.info.run_id, "", str(folder))

    def _component_run(self, digest: str) -> Any | None:
        experiment = self._experiment(COMPONENTS_EXPERIMENT, create=False)
        if experiment is None:
            return None
        query = f"tags.`{TAG_DIGEST}` = '{digest}' and attributes.status = 'FINISHED'"
        runs = self._client.search_runs([experiment], query, max_results=1, order_by=["attributes.start_time ASC"])
        return runs[0] if runs else None

    # --- aliases and tags ---

    def aliases(self, app: str) -> dict[str, int]:
        """See the port. One request."""
        try:
            with self._mlflow_errors():
                found = self._client.get_registered_model(app)
        except ReleaseNotFound:
            return {}
        return {alias: int(version) for alias, version in found.aliases.items()}

    def set_alias(self, app: str, alias: str, version: int) -> None:
        with self._mlflow_errors():
            self._client.set_registered_model_alias(app, alias, str(version))

    def delete_alias(self, app: str, alias: str) -> None:
        with self._mlflow_errors():
            self._client.delete_registered_model_alias(app, alias)

    def set_tags(self, app: str, version: int, tags: Mapping[str, str]) -> None:
        with self._mlflow_errors():
            for key, value in tags.items():
                self._client.set_model_version_tag(app, str(version), key, value)

    @contextmanager
    def _mlflow_errors(
        self, *, missing: type[RegistryError] = ReleaseNotFound, invalid: type[RegistryError] = ReleaseRefused
    ) -> Iterator[None]:
        """Turn MLflow's errors into the registry's. What the server did not decide counts as out of reach."""
        from mlflow.exceptions import MlflowException
        from requests.exceptions import RequestException

        kinds = {
            "RESOURCE_DOES_NOT_EXIST": missing,
            "INVALID_PARAMETER_VALUE": invalid,
            "BAD_REQUEST": invalid,
            "PERMISSION_DENIED": RegistryError,
            "UNAUTHENTICATED": RegistryError,
        }
        try:
            yield
        except (MlflowException, RequestException) as error:
            kind = kinds.get(getattr(error, "error_code", ""), RegistryUnavailable)
            advice = (
                " is out of reach or failing: see that it runs and try again" if kind is RegistryUnavailable else ""
            )
            raise kind(f"MLflow at {self.tracking_uri}{advice}: {_one_line(error)}") from error


@contextmanager
def _tolerate(code: str) -> Iterator[None]:
    """Let pass the one MLflow error that says somebody else was quicker."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != code:
            raise


def _one_line(error: Exception, limit: int = 300) -> str:
    return " ".join(str(error).split())[:limit]
