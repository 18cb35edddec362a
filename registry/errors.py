"""The error tree of the registry.

RegistryError
  ReleaseNotFound      name a version or alias that exists
  ReleaseRefused       publish a sound release: fingerprints or contents do not match
  RegistryUnavailable  wait, then try again
  ClusterConflict      somebody else wrote the Kubernetes object: read it again
  ClusterRefused       change what the API server says is wrong, or grant what it says is missing
  LeaseLost            another controller took over: stop writing
  DeliveryRefused      send MLflow's own webhook, signed with this home's secret
  BadInput             change the field it names
  DatabaseRefused      give the URL of a database that this version of Palate can use
"""

from __future__ import annotations


class RegistryError(Exception):
    """Something about a release that a person can act upon; the message names the fault and the fix."""


class ReleaseNotFound(RegistryError):
    pass


class ReleaseRefused(RegistryError):
    pass


class RegistryUnavailable(RegistryError):
    pass


class ClusterConflict(RegistryError):
    pass


class ClusterRefused(RegistryError):
    pass


class DatabaseRefused(RegistryError):
    pass


class LeaseLost(RegistryError):
    pass


class BadInput(RegistryError):
    """`field` is the name of what was given wrongly."""

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(message)
        self.field = field


class DeliveryRefused(RegistryError):
    pass
