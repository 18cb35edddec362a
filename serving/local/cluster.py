"""Ray on this machine: its settings, its start and its end. The only place that sets Ray's environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from registry.net import free_port
from serving.local.home import Home, SetupError


def ray_environment(home: Home, log_file: Path) -> dict[str, str]:
    """The environment Ray, Serve and our replicas start with. Must be set before ray is imported.

    Paths and ports are per home, so that two homes can run on one machine.
    """
    metrics = home.run / "metrics"
    return {
        **haproxy_environment(home.sockets / "ha"),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "5",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        # Ray runs its workers at niceness 15: on a machine that does anything else, replicas would come last.
        "RAY_worker_niceness": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home.root / "ray.secret"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_memory_monitor_refresh_ms": "1000",
        "PROMETHEUS_MULTIPROC_DIR": str(metrics),
        "PALATE_LOG": str(log_file),
        "TOKENIZERS_PARALLELISM": "false",
        "ORT_LOGGING_LEVEL": "3",
    }


def haproxy_environment(folder: Path) -> dict[str, str]:
    """HAProxy mode and the throughput settings, which make the endpoint fast (7 to 8 times the default proxy). Its
    files lie in `folder` and its ports are free ones, so that two clusters can run on one machine."""
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
    }


def start_ray(home: Home, num_cpus: int, num_gpus: int | None) -> None:
    """A Ray of our own, whatever else runs on this machine; it ends with this process. Raises SetupError."""
    import ray

    home.secret("ray")
    temporary = home.sockets / "ray"
    try:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="warning",
            object_store_memory=256 * 2**20,
            _temp_dir=str(temporary),
            _node_ip_address="127.0.0.1",
        )
    except Exception as error:  # a start that takes Ray more than 30 s is a plain Exception to it
        raise SetupError(f"Ray could not start: {error} (its logs are under {temporary})") from error


def stop_ray() -> None:
    import ray
    from ray import serve

    if ray.is_initialized():
        serve.shutdown()
        ray.shutdown()


def clear_metrics(environment: Mapping[str, str]) -> None:
    """Counters of an earlier run would be merged into this one's."""
    folder = Path(environment["PROMETHEUS_MULTIPROC_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.db"):
        file.unlink()
