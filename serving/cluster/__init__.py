"""Palate in a cluster: what Kubernetes starts in place of `palate up`.

`applications` holds the Serve applications that serveConfigV2 names, `exporter` answers Prometheus, `drain` empties a
node before its pod ends, `secrets` makes a first Secret. k8s/README.md is the contract with the manifests.
"""
